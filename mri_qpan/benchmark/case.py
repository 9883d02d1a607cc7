"""What a benchmark reconstructs, and what came out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_qpan.sampling_masks import mask_hash, ratio_of


@dataclass(frozen=True)
class Case:
    """One undersampled slice with the image it came from.

    Attributes
    ----------
    group
        The file or folder it belongs to; tables have a row a group.
    name
        Names the slice within all cases of one mask.
    source
        SHA-256 of the file, 12 hexadecimal digits.
    mask_spec
        The words that asked for the mask, "KIND:RATIO[:SEED]".
    kspace
        Samples (coil, y, x), zero where none was acquired.
    mask
        True where a sample was acquired, (y, x).
    mps
        Coil sensitivities (coil, y, x), or (set, coil, y, x) where the object folds over, estimated from
        `kspace` alone; every method gets these.
    reference
        Magnitude (y, x) of the fully sampled image, combined with `mps`.
    """

    group: str
    name: str
    source: str
    mask_spec: str
    kspace: NDArray[np.complex64]
    mask: NDArray[np.bool_]
    mps: NDArray[np.complex64]
    reference: NDArray[np.float32]

    @property
    def key(self) -> str:
        """Names input and mask exactly."""
        return f"{self.source}:{self.name}:{mask_hash(self.mask)}"

    @property
    def ratio(self) -> float:
        """Fraction of the samples acquired."""
        return ratio_of(self.mask)

    @property
    def sets(self) -> int:
        """Number of sets of maps."""
        return self.mps.shape[0] if self.mps.ndim == 4 else 1


def magnitude(image: NDArray[Any], mps: NDArray[Any]) -> NDArray[np.float32]:
    """Return the magnitude (y, x) of a complex image: the root sum of squares over sets of maps.

    It is zero where no coil sees anything, since no sample says what the image is there.

    Parameters
    ----------
    image
        ([set,] y, x) complex; leading axes of size 1 do not matter.
    mps
        ([set,] coil, y, x).
    """
    seen = (mps != 0).any(axis=-3)
    return np.linalg.norm(np.reshape(image * seen, (-1, *seen.shape[-2:])), axis=0).astype(np.float32)


@dataclass
class Outcome:
    """What one method made of one case.

    Attributes
    ----------
    method
        Its name.
    parameters
        What it ran with, tuned values included.
    metrics
        PSNR (dB), SSIM, NMSE and HFEN by name.
    given
        Whether the parameters came from an earlier benchmark, not from a search in this one.
    seconds
        From samples, mask and maps in memory to the magnitude image in memory, a run each.
    inner_seconds
        The same without starting a process and exchanging files; empty for a method that does neither.
    """

    method: str
    parameters: dict[str, Any]
    metrics: dict[str, float]
    given: bool = False
    seconds: list[float] = field(default_factory=list)
    inner_seconds: list[float] = field(default_factory=list)
