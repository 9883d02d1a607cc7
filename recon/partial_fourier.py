"""Partial Fourier: the edge of k-space that was never acquired, from its conjugate-symmetric partner.

An image whose phase is smooth is real after that phase is taken away, so opposite samples of its k-space are
conjugates (Noll, Nishimura and Macovski, IEEE Trans Med Imaging 10:154, 1991). Projections onto convex sets
(POCS; Haacke, Lindskog and Lin, J Magn Reson 92:126, 1991) hold that phase and the acquired samples in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_qpan.errors import InputError
from mri_qpan.fourier import fft, ifft
from mri_qpan.solvers import SOLVERS

DIRECTIONS = "zyx"
GAPS = 4
"""A missing edge is wider than so many of the widest gaps inside: none that undersampling leaves is."""

NARROWEST = 8
"""Lines on each side of the k-space centre; from fewer no phase is taken."""

ITERATIONS = 10

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
        "pocs", or "method": it is as the reconstruction made it.
    fraction
        Of k-space that was acquired, by direction (see `PartialFourier.fraction`).
    """

    filled_by: str
    fraction: dict[str, float]

    def __str__(self) -> str:
        shown = ", ".join(f"{share:.1%} along {d}" for d, share in self.fraction.items())
        return f"{shown}; the edge as {'POCS fills it' if self.filled_by == 'pocs' else 'the method made it'}"


def check_mode(mode: str) -> str:
    """Return a mode of `fill_edge`; raises `InputError` if it is none."""
    if mode not in MODES:
        raise InputError(f"unknown partial Fourier reconstruction {mode!r}: choose {', '.join(MODES)}")
    return mode


def fill_edge(image: Tensor, mask: NDArray[np.bool_], mode: str, method: str) -> tuple[Tensor, Edge | None]:
    """Fill the edge of k-space that a reconstruction had no samples of, where that helps.

    Parameters
    ----------
    image
        (..., y, x) or, of a slab, (..., z, y, x) complex64.
    mask
        True where a sample was acquired, (z, y, x).
    mode
        "pocs", "none", or "auto": POCS after a classical solver, unless zero-filling left aliases. The edge
        that a network makes is better: POCS takes the opposite samples' noise, and a smooth phase.
    method
        Name of the method that made the image.

    Returns
    -------
    The image, and what became of its edge: None where no edge is missing.

    Raises
    ------
    InputError
        If there is no such mode, or "pocs" finds too few lines for the phase.
    """
    check_mode(mode)
    partial = find_partial_fourier(mask)
    if not partial:
        return image, None
    fraction = {p.direction: p.fraction for p in partial}
    narrow = min(p.near for p in partial) < NARROWEST
    if mode == "pocs" and narrow:
        raise InputError(
            f"--partial-fourier pocs: fewer than {NARROWEST} lines on the short side of the k-space centre"
            " say too little of the phase"
        )
    aliased = method == "zero-filled" and not mask[np.broadcast_to(_extent(partial), mask.shape)].all()
    if mode == "none" or (mode == "auto" and (narrow or aliased or method not in SOLVERS)):
        return image, Edge("method", fraction)
    return pocs(image, partial), Edge("pocs", fraction)


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
    mirrored = acquired
    for p in partial:
        axis = DIRECTIONS.index(p.direction)
        mirrored = np.take(mirrored, _partners(p.size), axis)
    missing = torch.from_numpy(mirrored & ~acquired).to(device)
    return missing[0] if missing.shape[0] == 1 else missing


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
    kspace = fft(image, axes)
    for axis in axes:
        size = image.shape[axis]
        half = max(resolution * size, NARROWEST) + 1
        distance = (torch.arange(size, device=image.device) - size // 2).abs() / half
        window = torch.where(distance < 1, 0.5 + 0.5 * torch.cos(torch.pi * distance), 0)
        kspace = kspace * window.reshape([-1] + [1] * (-axis - 1))
    return ifft(kspace, axes)
