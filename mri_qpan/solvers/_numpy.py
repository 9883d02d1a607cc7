"""The bridge between a solver's torch call and SigPy's NumPy algorithms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_qpan.encoding import Normal

if TYPE_CHECKING:
    from sigpy.alg import Alg


def to_numpy(image: Tensor) -> NDArray[Any]:
    """Return a NumPy copy of `image`."""
    return np.array(image.detach().cpu().numpy())


def numpy_normal(normal: Normal, like: Tensor) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return `normal` as a map between NumPy arrays; it runs on the device of `like`."""

    def apply(image: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            return normal(torch.from_numpy(image).to(like.device)).cpu().numpy()

    return apply


def run(alg: Alg) -> None:
    """Run a SigPy algorithm to its end, in silence."""
    # SigPy's soft threshold divides 0 by 0 on its way to the right answer.
    with np.errstate(invalid="ignore"):
        while not alg.done():
            alg.update()
