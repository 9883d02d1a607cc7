"""What every reader asks of samples."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import InputError

LARGEST_SAMPLE = 1e15  # no receiver's; squares of larger ones leave single precision


def check_samples(numbers: NDArray[Any], path: Path, where: str) -> None:
    """Raise `InputError` if a number is NaN, infinite or absurd; `where` in the file is named in it."""
    if not (np.abs(numbers) < LARGEST_SAMPLE).all():
        raise InputError(
            f"{path}: {where} holds samples that are NaN, infinite or beyond {LARGEST_SAMPLE:g}: "
            "the file is damaged"
        )
