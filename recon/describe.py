"""What a sampling mask looks like: spacing of the lines, complete centre, partial Fourier."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEGLIGIBLE = 0.03  # share of an axis: less left out at the ends is no partial Fourier, nor lost resolution
REGULAR = 0.9  # share of the gaps outside the centre that must be equal for lines to count as equispaced


@dataclass(frozen=True)
class Axis:
    """How one phase-encoding direction, or the readout, is sampled.

    Attributes
    ----------
    size
        Places on the axis.
    acquired
        Places with any sample.
    spacing
        Distance between lines outside the complete centre; None where it varies.
    centre
        Places around the k-space centre that were acquired without a gap.
    first, last
        The outermost acquired places.
    """

    size: int
    acquired: int
    spacing: int | None
    centre: int
    first: int
    last: int

    @property
    def missing(self) -> tuple[int, int]:
        """Places left out at the low and the high end, beyond what the spacing of the lines leaves out."""
        slack = (self.spacing or 1) - 1
        return max(self.first - slack, 0), max(self.size - 1 - self.last - slack, 0)

    @property
    def partial(self) -> float:
        """Share of the axis that was acquired where one end alone was left out (partial Fourier), else 1."""
        low, high = self.missing
        return _share(abs(low - high) / self.size)

    @property
    def resolution(self) -> float:
        """Share of the axis inside the symmetric extent of what was acquired (zero filling beyond it)."""
        return _share(2 * min(self.missing) / self.size)


@dataclass(frozen=True)
class Sampling:
    """How a matrix (z, y, x) is sampled: the share acquired, and each axis."""

    ratio: float
    z: Axis
    y: Axis
    x: Axis


def describe_sampling(mask: NDArray[np.bool_]) -> Sampling:
    """Describe a mask (z, y, x) that has samples."""
    other = {0: (1, 2), 1: (0, 2), 2: (0, 1)}
    z, y, x = (_axis(np.asarray(mask.any(axis=other[axis]))) for axis in range(3))
    return Sampling(float(mask.mean()), z, y, x)


def _share(lost: float) -> float:
    return 1 - lost if lost > NEGLIGIBLE else 1.0


def _axis(sampled: NDArray[np.bool_]) -> Axis:
    places = np.flatnonzero(sampled)
    middle = sampled.size // 2
    gaps = np.flatnonzero(~sampled)
    below, above = gaps[gaps <= middle], gaps[gaps >= middle]
    low = int(below[-1]) + 1 if below.size else 0
    high = int(above[0]) if above.size else sampled.size
    return Axis(
        size=sampled.size,
        acquired=places.size,
        spacing=_spacing(places, low, high),
        centre=max(high - low, 0),
        first=int(places[0]),
        last=int(places[-1]),
    )


def _spacing(places: NDArray[np.intp], low: int, high: int) -> int | None:
    """Distance between neighbouring lines outside the complete centre [low, high), None where it varies."""
    steps = np.diff(places)
    steps = steps[~((places[:-1] >= low) & (places[1:] < high))]
    if steps.size == 0:
        return 1
    values, counts = np.unique(steps, return_counts=True)
    likely = int(values[np.argmax(counts)])
    # a grid of lines may meet the centre's edge in a shorter step
    return likely if counts.max() >= REGULAR * steps.size or (counts.max() >= steps.size - 2) else None
