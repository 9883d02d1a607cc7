"""Partial Fourier: the edge of k-space that was never acquired, from its conjugate-symmetric partner.

An image whose phase is smooth is real after that phase is taken away, so opposite samples of its k-space are
conjugates (Noll, Nishimura and Macovski, IEEE Trans Med Imaging 10:154, 1991). Projections onto convex sets
(POCS; Haacke, Lindskog and Lin, J Magn Reson 92:126, 1991) hold that phase and the acquired samples in turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_qpan.errors import InputError, OptionError
from mri_qpan.fourier import fft, ifft
from mri_qpan.solvers import SOLVERS

DIRECTIONS = "zyx"
GAPS = 4
"""A missing edge is wider than so many of the widest gaps inside: none that undersampling leaves is."""

UNKNOWN = 2.0
"""By which `edge_signal` is raised without a noise scan: the outermost samples hold signal too."""

NARROWEST = 8
"""Lines on each side of the k-space centre; from fewer no phase is taken."""

FOLLOWING = NARROWEST // 2
"""The same for an image whose series is filled: it is not to be blurred among sharp ones."""

ITERATIONS = 10

WORTH = 1.0
"""Least signal in a missing edge, over its noise as power, for POCS to bring more of it than of noise.

Of head phantoms with 9/16 to 7/8 of k-space and noise of 0.5 to 30 % of the maximum, the error against the
noise-free image falls above 0.8 to 1.5, that against the full noisy one above 0.5.
"""

MODES = ("auto", "pocs", "none")


@dataclass(frozen=True)
class PartialFourier:
    """A direction in which one side of k-space was acquired farther out than the other.

    Attributes
    ----------
    direction
        "z", "y" or "x".
    size
        Of the matrix in it.
    start, stop
        The lines within which samples were acquired; the centre is size // 2.
    """

    direction: str
    size: int
    start: int
    stop: int

    @property
    def near(self) -> int:
        """How far from the centre the shorter side was acquired."""
        return min(self.size // 2 - self.start, self.stop - 1 - self.size // 2)

    @property
    def fraction(self) -> float:
        """What was acquired of the lines as far out as the longer side."""
        far = max(self.size // 2 - self.start, self.stop - self.size // 2)
        return (self.stop - self.start) / min(self.size, 2 * far)

    def extent(self) -> NDArray[np.bool_]:
        """Return True between the outermost lines that were acquired, (size,)."""
        line = np.arange(self.size)
        return (line >= self.start) & (line < self.stop)


def find_partial_fourier(mask: NDArray[np.bool_]) -> tuple[PartialFourier, ...]:
    """Find the directions in which an edge of k-space was not acquired.

    Parameters
    ----------
    mask
        True where a sample was acquired, (z, y, x).

    Returns
    -------
    Those whose sides differ by more than `GAPS` times the widest gap between acquired lines.
    """
    found = []
    for axis, direction in enumerate(DIRECTIONS):
        lines = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        if lines.size < 2 or not lines[0] <= mask.shape[axis] // 2 <= lines[-1]:
            continue
        size = mask.shape[axis]
        # The lowest line of an even matrix has no partner.
        lowest = max(int(lines[0]), 1 - size % 2)
        missing = abs(size // 2 - lowest - (int(lines[-1]) - size // 2))
        if missing > GAPS * np.diff(lines).max():
            found.append(PartialFourier(direction, size, int(lines[0]), int(lines[-1]) + 1))
    return tuple(found)


@dataclass(frozen=True)
class Edge:
    """A missing edge of k-space in the figures of an image.

    Attributes
    ----------
    filled_by
        "pocs"; or it is as the reconstruction made it: "method", or "noise" for that is what POCS would add.
    fraction
        Of k-space that was acquired, by direction (see `PartialFourier.fraction`).
    followed
        Whether that is as in the image that decides for its series, where it would not be so of itself.
    """

    filled_by: str
    fraction: dict[str, float]
    followed: bool = False

    @property
    def decides(self) -> bool:
        """Whether the series is to follow: an image whose edge is noise is as sharp without it."""
        return self.filled_by != "noise"

    def __str__(self) -> str:
        shown = ", ".join(f"{share:.1%} along {d}" for d, share in self.fraction.items())
        left = "the method made it: it holds too little signal above the noise"
        words = {"pocs": "POCS fills it", "method": "the method made it", "noise": left}
        first = ", as in the series' first image with signal there" if self.followed else ""
        return f"{shown}; the edge as {words[self.filled_by]}{first}"


def check_mode(mode: str) -> str:
    """Return a mode of `fill_edge`; raises `OptionError` if it is none."""
    if mode not in MODES:
        raise OptionError(f"unknown partial Fourier reconstruction {mode!r}: choose {', '.join(MODES)}")
    return mode


def fill_edge(
    image: Tensor,
    mask: NDArray[np.bool_],
    mode: str,
    method: str,
    signal: float = math.inf,
    before: Edge | None = None,
) -> tuple[Tensor, Edge | None]:
    """Fill the edge of k-space that a reconstruction had no samples of, where that helps.

    Parameters
    ----------
    image
        (..., y, x) or, of a slab, (..., z, y, x) complex64.
    mask, mode, method, signal, before
        See `plan_edge`.

    Returns
    -------
    The image, and what became of its edge: None where no edge is missing.

    Raises
    ------
    InputError
        As `plan_edge` does.
    """
    partial, edge = plan_edge(mask, mode, method, signal, before=before)
    return (pocs(image, partial) if partial else image), edge


def plan_edge(
    mask: NDArray[np.bool_],
    mode: str,
    method: str,
    signal: float = math.inf,
    directions: str = DIRECTIONS,
    before: Edge | None = None,
) -> tuple[tuple[PartialFourier, ...], Edge | None]:
    """Decide what becomes of the edge of k-space that was never acquired.

    Parameters
    ----------
    mask
        True where a sample was acquired, (z, y, x).
    mode
        "pocs", "none", or "auto": POCS after a classical solver, unless zero-filling left aliases, or the
        edge holds less than `WORTH` times as much signal as noise. The edge that a network makes is better:
        POCS takes the opposite samples' noise, and a smooth phase.
    method
        Name of the method that makes the image.
    signal
        Over the noise in the edge, as power (`edge_signal`).
    directions
        Those to fill.
    before
        What became of the edge in the first image of the series that `decides`: "auto" then does the same, so
        that no image is sharp beside blurred ones; but it fills none that has aliases, or fewer lines than
        `FOLLOWING`.

    Returns
    -------
    What `pocs` is to fill, nothing where the edge is left, and the edge: None where none is missing.

    Raises
    ------
    InputError
        If there is no such mode, or "pocs" finds too few lines for the phase.
    """
    check_mode(mode)
    found = find_partial_fourier(mask)
    partial = tuple(p for p in found if p.direction in directions)
    if not partial:
        return (), None
    fraction = {p.direction: p.fraction for p in partial}
    near = min(p.near for p in partial)
    narrow = near < NARROWEST
    if mode == "pocs" and narrow:
        raise InputError(
            f"--partial-fourier pocs: fewer than {NARROWEST} lines on the short side of the k-space centre"
            " say too little of the phase"
        )
    aliased = method == "zero-filled" and not mask[np.broadcast_to(_extent(found), mask.shape)].all()
    left = narrow or aliased or method not in SOLVERS
    own = "pocs"
    if mode == "none" or (mode == "auto" and left):
        own = "method"
    elif mode == "auto" and signal < WORTH:
        own = "noise"
    if mode == "auto" and before is not None and (own == "pocs") != (before.filled_by == "pocs"):
        if own == "pocs":
            return (), Edge(before.filled_by, fraction, followed=True)
        if near >= FOLLOWING and not aliased:
            return partial, Edge("pocs", fraction, followed=True)
    return (partial if own == "pocs" else ()), Edge(own, fraction)


def edge_signal(data: NDArray[np.complex64], mask: NDArray[np.bool_], sigma: float) -> float:
    """Return how much signal the missing edge holds, by its acquired partners: power over that of noise.

    Parameters
    ----------
    data
        Samples (coil, z, y, x) of channels with equal and uncorrelated noise.
    mask
        True where a sample was acquired, (z, y, x).
    sigma
        Standard deviation of the noise of a sample.

    Returns
    -------
    Mean over the partners of what the coils hold together beyond their noise, over the noise of one coil,
    which is that of their combination. Infinite where no edge is missing or there is no noise.
    """
    partial = find_partial_fourier(mask)
    if not partial or sigma == 0:
        return math.inf
    partners = _mirrored(_mirrored(_extent(partial), partial) & ~_extent(partial), partial) & mask
    if not partners.any():
        return math.inf
    power = sum(float(np.square(np.abs(coil[partners]), dtype=np.float64).sum()) for coil in data)
    return max(0.0, power / int(partners.sum()) / sigma**2 - len(data))


def pocs(image: Tensor, partial: Sequence[PartialFourier], iterations: int = ITERATIONS) -> Tensor:
    """Fill the missing edge of an image's k-space by projections onto convex sets.

    Parameters
    ----------
    image
        (..., y, x) or (..., z, y, x) complex64; what it has in the missing edge is not used.
    partial
        Where that edge is.
    iterations
        Projections onto the phase and the acquired samples.

    Returns
    -------
    The image with the edge filled and the rest of its k-space as it was. Its phase is that of the symmetric
    centre of k-space under a Hann window of the same resolution in every direction.
    """
    spatial = 2 if all(p.direction != "z" for p in partial) else 3
    axes = [DIRECTIONS.index(p.direction) - 3 for p in partial]
    missing = _missing(partial, image.device)
    kspace = torch.where(missing, 0, fft(image, axes))
    phase = torch.sgn(_low_resolution(image, partial, range(-spatial, 0)))
    filled = ifft(kspace, axes)
    for _ in range(iterations):
        kspace = torch.where(missing, fft(filled.abs() * phase, axes), kspace)
        filled = ifft(kspace, axes)
    return filled


def _missing(partial: Sequence[PartialFourier], device: torch.device) -> Tensor:
    """Return True where a sample was not acquired but its partner was, as wide as the directions need."""
    acquired = _extent(partial)
    missing = torch.from_numpy(_mirrored(acquired, partial) & ~acquired).to(device)
    return missing[0] if missing.shape[0] == 1 else missing


def _mirrored(acquired: NDArray[np.bool_], partial: Sequence[PartialFourier]) -> NDArray[np.bool_]:
    """Return a mask (z, y, x) about the k-space centre, in the directions that are partial."""
    for p in partial:
        acquired = np.take(acquired, _partners(p.size), DIRECTIONS.index(p.direction))
    return acquired


def _extent(partial: Sequence[PartialFourier]) -> NDArray[np.bool_]:
    """Return True between the outermost lines acquired in every direction, (z, y, x) or 1 for the others."""
    acquired = np.ones((1, 1, 1), bool)
    for p in partial:
        acquired = acquired & p.extent().reshape([p.size if p.direction == d else 1 for d in DIRECTIONS])
    return acquired


def _partners(size: int) -> NDArray[np.intp]:
    """Return where the opposite of each frequency lies; the lowest of an even size is its own."""
    return (2 * (size // 2) - np.arange(size)) % size


def _low_resolution(image: Tensor, partial: Sequence[PartialFourier], axes: Sequence[int]) -> Tensor:
    """Return the image of the symmetric centre of k-space."""
    resolution = min(p.near / p.size for p in partial)
    least = min(NARROWEST, *(p.near for p in partial))
    kspace = fft(image, axes)
    for axis in axes:
        size = image.shape[axis]
        half = max(resolution * size, least) + 1
        distance = (torch.arange(size, device=image.device) - size // 2).abs() / half
        window = torch.where(distance < 1, 0.5 + 0.5 * torch.cos(torch.pi * distance), 0)
        kspace = kspace * window.reshape([-1] + [1] * (-axis - 1))
    return ifft(kspace, axes)
