"""Images as they are looked at: heads up, the right side on the left, as scanners turn what they deliver.

Rows of a reconstructed image run along the readout, whatever that is. Of the eight ways to turn or mirror a
plane, the one nearest to radiology's is taken: of axial planes the patient's front is up and the right side
on the left, of coronal ones the head is up and the right side on the left, of sagittal ones the head is up
and the front on the left. Every voxel keeps its place in the patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mri_qpan.recon.geometry import DIRECTION_TOLERANCE, Shape, voxel_size
from mri_qpan.recon.kspace import Geometry, Image, as_vector

LEFT, BACK, FOOT = np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([0, 0, -1.0])
VIEWS = ((BACK, FOOT), (LEFT, FOOT), (LEFT, BACK))
"""LPS directions to the right and down: of sagittal, coronal and axial planes, by their normal's axis."""

TIE = 1e-3

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Turn:
    """How a plane (y, x) is turned: its axes swapped first, then mirrored.

    Attributes
    ----------
    swapped
        Readouts run down, and not to the right.
    mirrored
        Of the axes (y, x) that come of it, which run the other way.
    """

    swapped: bool
    mirrored: tuple[bool, bool]

    def apply(self, planes: NDArray[T]) -> NDArray[T]:
        """Turn planes, (..., y, x)."""
        turned = planes.swapaxes(-1, -2) if self.swapped else planes
        return np.flip(turned, tuple(axis - 2 for axis in (0, 1) if self.mirrored[axis]))


def turn_of(geometry: Geometry) -> Turn:
    """Return the turn that shows a plane as radiology does; of equally good ones the least."""
    read, phase = np.array(geometry.read_dir), np.array(geometry.phase_dir)
    normal = np.abs(np.cross(read, phase))
    right, down = VIEWS[int((normal > normal.max() - TIE).argmax())]
    best, found = -np.inf, Turn(False, (False, False))
    for swapped, up, left in product((False, True), repeat=3):
        y, x = (read, phase) if swapped else (phase, read)
        likeness = (-1 if up else 1) * (y @ down) + (-1 if left else 1) * (x @ right)
        if likeness > best + TIE:
            best, found = likeness, Turn(swapped, (up, left))
    return found


def turns_of(images: Sequence[Image]) -> list[Turn]:
    """Return the turns of a series' images, one for all of nearly the same directions: the first one's."""
    found: list[tuple[NDArray[np.float64], Turn]] = []
    turns = []
    for geometry in (image.geometry for image in images):
        axes = np.array([geometry.read_dir, geometry.phase_dir])
        same = (turn for other, turn in found if np.abs(axes - other).max() <= DIRECTION_TOLERANCE)
        turn = next(same, None)
        if turn is None:
            turn = turn_of(geometry)
            found.append((axes, turn))
        turns.append(turn)
    return turns


def upright(image: Image, turn: Turn | None = None) -> Image:
    """Return an image turned, by its own `turn_of` or its series', each voxel where it was in the patient."""
    turn = turn_of(image.geometry) if turn is None else turn
    return Image(turn.apply(image.data), _turned(image, turn), image.index, image.stamp)


def _turned(image: Image, turn: Turn) -> Geometry:
    geometry = image.geometry
    shape: Shape = image.data.shape
    dx, dy, _ = voxel_size(geometry, shape)
    axes = [(np.array(geometry.phase_dir), dy, shape[1]), (np.array(geometry.read_dir), dx, shape[2])]
    lengths = [geometry.fov[1], geometry.fov[0]]
    if turn.swapped:
        axes.reverse()
        lengths.reverse()
    position = np.array(geometry.position)
    directions = []
    for (direction, size, n), mirrored in zip(axes, turn.mirrored, strict=True):
        if mirrored and n % 2 == 0:  # index n // 2 of the mirrored axis is another voxel
            position = position - size * direction
        directions.append(-direction if mirrored else direction)
    return replace(
        geometry,
        fov=(lengths[1], lengths[0], geometry.fov[2]),
        position=as_vector(position),
        read_dir=as_vector(directions[1]),
        phase_dir=as_vector(directions[0]),
    )
