"""Stacks of stars or spirals: 3-D trajectories that are Cartesian along kz, and the same in every partition.

An inverse Fourier transform along kz makes every plane a 2-D problem of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mri_qpan.fourier import ifft_numpy

CLOSE = 0.02
"""Cycles over the encoded field of view by which places may be off the grid, or partitions differ."""


@dataclass(frozen=True)
class Stack:
    """Readouts of a stack.

    Attributes
    ----------
    partitions
        Their places along kz, in order, of a matrix of `depth`.
    rows
        Which readouts each partition has, (partition, readout), all along the same paths.
    depth
        Encoded partitions.
    """

    partitions: NDArray[np.int64]
    rows: NDArray[np.int64]
    depth: int


def find_stack(coord: Sequence[NDArray[np.float32]], depth: int) -> Stack | None:
    """Tell whether readouts make a stack.

    Parameters
    ----------
    coord
        Coordinates of each readout, (sample, 3): z, y, x in cycles over the encoded field of view.
    depth
        Encoded partitions.

    Returns
    -------
    None unless each readout stays in a partition of the matrix, the partitions follow one another around
    kz = 0, are an eighth of the matrix at least, and all have the same paths in the same order: others take a
    3-D transform.
    """
    heights = np.array([float(path[:, 0].mean()) for path in coord])
    places = np.rint(heights).astype(np.int64)
    spread = max(float(np.abs(path[:, 0] - place).max()) for path, place in zip(coord, places, strict=True))
    if spread > CLOSE:
        return None
    partitions, inverse, counts = np.unique(places + depth // 2, return_inverse=True, return_counts=True)
    contiguous = partitions[-1] - partitions[0] + 1 == partitions.size
    inside = 0 <= partitions[0] <= depth // 2 <= partitions[-1] < depth
    if not contiguous or not inside or 8 * partitions.size < depth or np.ptp(counts) > 0:
        return None
    rows = np.argsort(inverse, kind="stable").reshape(partitions.size, -1)
    first = [coord[row][:, 1:] for row in rows[0]]
    for others in rows[1:]:
        for path, row in zip(first, others, strict=True):
            other = coord[row][:, 1:]
            if other.shape != path.shape or np.abs(other - path).max() > CLOSE:
                return None
    return Stack(partitions, rows, depth)


def planes_of_stack(
    stack: Stack, lines: Sequence[NDArray[np.complex64]], keep: NDArray[np.bool_], depth: int
) -> NDArray[np.complex64]:
    """Return the samples of every plane of a stack.

    Parameters
    ----------
    stack
        From `find_stack`.
    lines
        Samples (coil, sample) of each readout.
    keep
        Which samples of a partition to keep, in the order of its readouts.
    depth
        Planes to deliver: the central ones.

    Returns
    -------
    (coil, z, 1, sample), transformed along z.
    """
    data = np.zeros((len(lines[0]), stack.depth, 1, int(keep.sum())), np.complex64)
    for place, rows in zip(stack.partitions, stack.rows, strict=True):
        data[:, place, 0] = np.concatenate([lines[row] for row in rows], axis=1)[:, keep]
    start = stack.depth // 2 - depth // 2
    return np.ascontiguousarray(ifft_numpy(data, (1,))[:, start : start + depth])
