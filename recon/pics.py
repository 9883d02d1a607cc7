"""A trained network in the place of `bart pics`: BART's arrays in, BART's arrays out."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import sigpy as sp
import torch
from numpy.typing import NDArray

from mri_qpan.app import QPanRecon, norm_of_maps
from mri_qpan.bart import DIMENSIONS
from mri_qpan.encoding import Encoding
from mri_qpan.errors import InputError, ReconError
from mri_qpan.models.store import Model

Complex = NDArray[np.complex64]
LOOPED = DIMENSIONS - 5
"""BART's dimensions beyond x, y, z, coils and maps: first in C order, each worked on its own."""

CENTRE = 32
"""Widest fully sampled centre of k-space that sets the scale."""

IN_PLANE = 1e-3
"""Largest kz, in units of 1 / field of view, of what is called a plane."""


@dataclass(frozen=True)
class Arrays:
    """What `bart pics` reads, in C order with all 16 dimensions: (..., maps, coil, z, y, x).

    Attributes
    ----------
    kspace
        Samples; zeros where nothing was measured. With `trajectory` (..., coil, spokes, samples, 1).
    sensitivities
        Coil maps, one or several sets in dimension `maps`; looped dimensions may be 1.
    pattern
        Weights of the samples, the same for all coils; they count squared, as in `bart pics`, and relative to
        others as far from the k-space centre (`QPanRecon`). None: 1 where any coil has a sample; along a
        trajectory their density compensation. Looped dimensions may be 1.
    trajectory
        (..., spokes, samples, 3), in samples of the field of view's grid from the k-space centre, or None.
    """

    kspace: Complex
    sensitivities: Complex
    pattern: Complex | None = None
    trajectory: Complex | None = None


def full(array: Complex) -> Complex:
    """Return an array of `bart.read_cfl` with all of BART's dimensions."""
    return array.reshape((1,) * (DIMENSIONS - array.ndim) + array.shape)


def reconstruct(arrays: Arrays, model: Model, device: torch.device) -> Complex:
    """Reconstruct every entry of the looped dimensions.

    Parameters
    ----------
    arrays
        What to reconstruct.
    model
        A trained network, loaded; classical solvers expect images of another scale.
    device
        Where it was loaded.

    Returns
    -------
    Images, (..., maps, 1, z, y, x) complex64, in the units of a least-squares solution.

    Raises
    ------
    InputError
        If the arrays do not fit each other.
    """
    _check(arrays)
    if not np.isfinite(arrays.sensitivities).all() or not arrays.sensitivities.any():
        raise InputError("the sensitivities are zero, or not finite")
    if arrays.pattern is not None and not np.isfinite(arrays.pattern).all():
        raise InputError("the pattern is not finite")
    if arrays.trajectory is not None and not np.isfinite(arrays.trajectory).all():
        raise InputError("the trajectory is not finite")
    outer = arrays.kspace.shape[:LOOPED]
    found = np.zeros(
        (*outer, arrays.sensitivities.shape[-5], 1, *arrays.sensitivities.shape[-3:]), np.complex64
    )
    for index in itertools.product(*map(range, outer)):
        mps, kspace = _entry(arrays.sensitivities, index), _entry(arrays.kspace, index)[0]
        # A^H A is to have a norm of at most 1: maps over g are the same problem for the image times g.
        g = np.float32(_norm(mps) or 1.0)
        mps = mps / g
        pattern = None if arrays.pattern is None else _unit(_entry(arrays.pattern, index)[0, 0])
        if arrays.trajectory is not None:
            along = _entry(arrays.trajectory, index)[0, 0].real
            found[index] = _along_trajectory(kspace, mps, pattern, along, model, device) / g
        else:
            found[index] = _cartesian(kspace, mps, pattern, model, device) / g
    seen = (arrays.sensitivities != 0).any(-4, keepdims=True)
    image = np.where(seen, found, 0).astype(np.complex64)
    if not np.isfinite(image).all():
        raise ReconError("the image is not finite: are the samples, the pattern or the trajectory?")
    return image


def _unit(pattern: Complex) -> NDArray[np.float32]:
    """Return a pattern's magnitude over its maximum: only ratios count, and squares are taken of them."""
    magnitude = np.abs(pattern.astype(np.complex128))
    return (magnitude / (float(magnitude.max()) or 1.0)).astype(np.float32)


def _norm(maps: Complex) -> float:
    """Return the largest singular value of a pixel's matrix (coil, set) of maps (..., set, coil, z, y, x)."""
    if maps.shape[-5] == 1:
        return norm_of_maps(np.moveaxis(maps, -4, 0))
    wide = maps.astype(np.complex128)  # squares of maps of any scale
    sets = np.moveaxis(wide, (-5, -4), (-2, -1)).reshape(-1, maps.shape[-5], maps.shape[-4])
    return float(np.sqrt(np.linalg.eigvalsh(sets @ sets.conj().swapaxes(1, 2)).max()))


def scaling(arrays: Arrays) -> float:
    """Return the number by which `bart pics` (0.8.00) divides samples, and its image without -S.

    The largest value of a first image, or its 90th percentile unless few pixels are much brighter than that:
    of the fully sampled centre of the first looped entry's k-space, or along a trajectory of A^H y of all.
    """
    if arrays.trajectory is None:
        kspace = _entry(arrays.kspace, (0,) * LOOPED)[0]
        block = _centre(kspace)
        # `bart pics` centres the DFT of the whole: of a block of odd size the pixels lie in between.
        turns = (
            np.exp(2j * np.pi * (n // 2) / n * np.arange(n))[part]
            for n, part in zip(kspace.shape[1:], block, strict=True)
        )
        coils = np.fft.ifftn(kspace[:, *block] * math.prod(np.ix_(*turns)), axes=(-3, -2, -1), norm="ortho")
        values = np.linalg.norm(coils, axis=0) * math.sqrt(coils[0].size / kspace[0].size)
    else:
        outer = itertools.product(*map(range, arrays.kspace.shape[:LOOPED]))
        values = np.stack([_backprojected(arrays, index) for index in outer])
    ordered = np.sort(values, axis=None)
    middle, high, top = (float(ordered[i]) for i in (ordered.size // 2, int(0.9 * ordered.size), -1))
    return (high if top - high < 2 * (high - middle) else top) or 1.0


def _centre(kspace: Complex) -> tuple[slice, slice, slice]:
    """Return the block (z, y, x) of k-space (coil, z, y, x) that `bart pics` takes for its scale.

    The largest that is fully sampled about the centre, grown by a sample in x, y and z in turn, then moved
    along x to where most energy is.
    """
    measured, whole = (kspace != 0).any(0), kspace.shape[1:]
    # It looks for the centre in the middle samples of y and z: their number may be odd.
    first = [(n - min(n, CENTRE)) // 2 for n in whole[:2]] + [0]
    inner = [min(n, CENTRE) for n in whole[:2]] + [whole[2]]
    sizes, growing = [1, 1, 1], [min(n, CENTRE) > 1 for n in whole]

    def block(shape: list[int]) -> tuple[slice, ...]:
        starts = [at + (n - m) // 2 for at, n, m in zip(first, inner, shape, strict=True)]
        return tuple(slice(start, start + m) for start, m in zip(starts, shape, strict=True))

    while any(growing):
        for axis in (2, 1, 0):
            if not growing[axis]:
                continue
            larger = [m + (i == axis) for i, m in enumerate(sizes)]
            if measured[block(larger)].all():
                sizes = larger
            growing[axis] = sizes == larger and sizes[axis] < min(whole[axis], CENTRE)
    z, y, _ = block(sizes)
    power = (np.abs(kspace[:, z, y]) ** 2).sum((0, 1, 2), dtype=np.float64)
    start = int(np.argmax(np.convolve(power, np.ones(sizes[2]), "valid")))
    return z, y, slice(start, start + sizes[2])


def _backprojected(arrays: Arrays, index: tuple[int, ...]) -> NDArray[np.float32]:
    """Return abs(A^H y) of samples along a trajectory, weighted by the pattern once more as y is."""
    assert arrays.trajectory is not None
    kspace, maps = _entry(arrays.kspace, index)[0], _entry(arrays.sensitivities, index)[0]
    if arrays.pattern is not None:
        kspace = kspace * np.abs(_entry(arrays.pattern, index)[0, 0]) ** 2
    coord = _coordinates(_entry(arrays.trajectory, index)[0, 0].real, maps.shape[1] == 1)
    spatial = maps.shape[2:] if maps.shape[1] == 1 else maps.shape[1:]
    coils = sp.nufft_adjoint(kspace.reshape(len(kspace), -1), coord, (len(kspace), *spatial))
    return np.abs((coils * maps.reshape(coils.shape).conj()).sum(0))


def _coordinates(trajectory: NDArray[np.float32], plane: bool) -> NDArray[np.float32]:
    """Return SigPy's coordinates (sample, ndim): BART's x, y, z backwards, in the same unit."""
    flat = trajectory.reshape(-1, 3)
    if plane and (farthest := float(np.abs(flat[:, 2]).max(initial=0))) > IN_PLANE:
        raise InputError(
            f"the trajectory leaves the plane (kz up to {farthest:g}), the sensitivities have a single slice"
        )
    return np.ascontiguousarray(flat[:, 1::-1] if plane else flat[:, ::-1])


def _cartesian(
    kspace: Complex,
    mps: Complex,
    pattern: NDArray[np.float32] | None,
    model: Model,
    device: torch.device,
) -> Complex:
    """Return (maps, 1, z, y, x) for k-space (coil, z, y, x)."""
    weights = (kspace != 0).any(0).astype(np.float32) if pattern is None else pattern
    weights = np.broadcast_to(weights, kspace.shape[1:])
    # The network works planes: a direction of size 1, whichever, is none.
    spatial = tuple(n for n in kspace.shape[1:] if n > 1)
    spatial = spatial if len(spatial) > 1 else kspace.shape[2:]
    if not np.isin(weights, (0, 1)).all():
        if len(mps) > 1:
            raise InputError("weights other than 0 and 1 need a single set of maps")
        samples, maps = kspace.reshape(-1, *spatial), mps[0].reshape(-1, *spatial)
        image = _run(samples, maps, weights.reshape(spatial) ** 2, None, model, device)
        return image.reshape(1, 1, *kspace.shape[1:])
    encoding = Encoding(
        torch.from_numpy(weights.astype(bool).reshape(1, *spatial)),
        torch.from_numpy(mps.reshape(1, *mps.shape[:2], *spatial)),
    ).to(device)
    adjoint = encoding.adjoint(torch.from_numpy(kspace.reshape(1, -1, *spatial)).to(device))
    with torch.inference_mode():
        image = model(adjoint, encoding.normal)[0].cpu().numpy()
    return image.reshape(len(mps), 1, *kspace.shape[1:])


def _along_trajectory(
    kspace: Complex,
    mps: Complex,
    pattern: NDArray[np.float32] | None,
    trajectory: NDArray[np.float32],
    model: Model,
    device: torch.device,
) -> Complex:
    """Return (1, 1, z, y, x) for samples (coil, spokes, samples, 1)."""
    if len(mps) > 1:
        raise InputError("samples along a trajectory need a single set of maps")
    plane = mps.shape[2] == 1
    coord = _coordinates(trajectory, plane)
    samples = kspace.reshape(len(kspace), -1)
    weights = None if pattern is None else np.broadcast_to(pattern, kspace.shape[1:]).reshape(-1) ** 2
    measured = (samples != 0).any(0)
    if not measured.any():
        return np.zeros((1, 1, *mps.shape[2:]), np.complex64)
    if weights is not None:
        weights = weights[measured]
    maps = mps[0][:, 0] if plane else mps[0]
    image = _run(samples[:, measured], maps, weights, coord[measured], model, device)
    return image.reshape(1, 1, *mps.shape[2:])


def _run(
    samples: Complex,
    maps: Complex,
    weights: NDArray[np.float32] | None,
    coord: NDArray[np.float32] | None,
    model: Model,
    device: torch.device,
) -> Complex:
    number = -1 if device.type == "cpu" else device.index or 0
    try:
        image: Complex = QPanRecon(samples, maps, weights, coord, model, number, False).run()
    except ValueError as error:
        raise InputError(str(error)) from error
    return image


def _entry(array: Complex, index: tuple[int, ...]) -> Complex:
    """Return one entry of the looped dimensions, (maps, coil, z, y, x)."""
    return array[tuple(i if n > 1 else 0 for i, n in zip(index, array.shape[:LOOPED], strict=True))]


def _check(arrays: Arrays) -> None:
    kspace, maps = arrays.kspace.shape, arrays.sensitivities.shape
    if kspace[-5] != 1:
        raise InputError(f"k-space has {kspace[-5]} entries in BART's dimension 4 (maps): it needs 1")
    if kspace[-4] != maps[-4]:
        raise InputError(f"k-space has {kspace[-4]} coils, the sensitivities {maps[-4]}")
    if arrays.trajectory is None and kspace[-3:] != maps[-3:]:
        raise InputError(
            f"k-space of {_words(kspace[-3:])} (x, y, z) does not fit sensitivities of {_words(maps[-3:])}"
        )
    if arrays.trajectory is not None:
        along = arrays.trajectory.shape
        if along[-1] != 3 or along[-3:-1] != kspace[-3:-1] or kspace[-1] != 1:
            raise InputError(
                f"a trajectory of {_words(along[-3:])} does not fit samples of {_words(kspace[-3:])}: with "
                "-t they are (3, samples, spokes) and (1, samples, spokes)"
            )
    others = {
        "sensitivities": arrays.sensitivities,
        "pattern": arrays.pattern,
        "trajectory": arrays.trajectory,
    }
    for name, array in others.items():
        if array is None:
            continue
        for own, wanted, dimension in zip(
            array.shape[:LOOPED], kspace[:LOOPED], range(15, 4, -1), strict=True
        ):
            if own not in (1, wanted):
                raise InputError(
                    f"the {name} have {own} entries in BART's dimension {dimension}, k-space has {wanted}"
                )
    if arrays.pattern is not None:
        if arrays.pattern.shape[-4] != 1:
            raise InputError("a pattern for each coil cannot be used: it must be the same for all")
        try:
            np.broadcast_to(_entry(arrays.pattern, (0,) * LOOPED)[0, 0], kspace[-3:])
        except ValueError as error:
            raise InputError(
                f"a pattern of {_words(arrays.pattern.shape[-3:])} does not fit k-space of "
                f"{_words(kspace[-3:])}"
            ) from error
    if not np.isfinite(arrays.kspace).all():
        raise InputError("k-space holds NaN or infinite values")


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in reversed(shape))
