"""Coil sensitivity maps from files, and which of them are an image's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mri_qpan.bart import DIMENSIONS, read_cfl
from mri_qpan.errors import InputError
from mri_qpan.recon.kspace import KSpace
from mri_qpan.recon.readers.bart import SUFFIXES as CFL
from mri_qpan.recon.readers.bart import check_named_as_bart_does

Complex = NDArray[np.complex64]


def load_maps(path: Path) -> Complex:
    """Read coil sensitivities from a .npy file or BART's .cfl.

    Parameters
    ----------
    path
        A complex array (coil, y, x), (coil, z, y, x) or (set, coil, z, y, x); of 2-D slices z counts the
        slices. BART's has its maps along dimension 4 and its slices along 2 or 13, as `bart ecalib` makes it.

    Returns
    -------
    ndarray
        (coil, z, y, x), or (set, coil, z, y, x) of several sets, complex64.

    Raises
    ------
    InputError
        If the file cannot be read or holds another kind of array.
    """
    check_named_as_bart_does(path)
    try:
        maps = _from_bart(path) if path.suffix in CFL else np.load(path, allow_pickle=False)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged header is read as Python: syntax, tokens, types
        raise InputError(f"{path}: cannot read coil maps: not a .npy file of numbers") from error
    if not isinstance(maps, np.ndarray) or maps.ndim not in (3, 4, 5) or not np.iscomplexobj(maps):
        raise InputError(
            f"{path}: coil maps are a complex array (coil, y, x), (coil, z, y, x) or (set, coil, z, y, x)"
        )
    if not np.isfinite(maps).all():
        raise InputError(f"{path}: the coil maps hold values that are not finite")
    maps = maps[:, None] if maps.ndim == 3 else maps
    return (maps[0] if maps.ndim == 5 and len(maps) == 1 else maps).astype(np.complex64)


def _from_bart(path: Path) -> Complex:
    """Return BART's maps, (set, coil, z, y, x), z counting the slices of 2-D ones."""
    array = read_cfl(path.with_suffix(""))
    sizes = [*reversed(array.shape), *[1] * (DIMENSIONS - array.ndim)]
    nx, ny, nz, coils, sets = sizes[:5]
    slices = sizes[13]
    if coils * nx * ny * nz * sets * slices != array.size or (nz > 1 and slices > 1):
        raise InputError(f"{path}: coil maps use BART's dimensions 0 to 4, or 0, 1, 3, 4 and 13; not {sizes}")
    if slices == 1:
        return array.reshape(sets, coils, nz, ny, nx)
    return array.reshape(slices, sets, coils, ny, nx).transpose(1, 2, 0, 3, 4)


def maps_of(mps: Complex, kspace: KSpace) -> tuple[Complex, str | None]:
    """Return an image's maps among those of a file, and what was assumed.

    Parameters
    ----------
    mps
        As `load_maps` returns.
    kspace
        The image's samples; a 2-D slice has the maps at its counter.

    Raises
    ------
    InputError
        If there are maps for several slices, and none for this one.
    """
    number, count = kspace.index.slice, mps.shape[-3]
    if kspace.mask.shape[0] > 1:
        return mps, None
    if count == 1:
        return mps, "the coil maps of one slice were taken for every slice" if number else None
    if number >= count:
        raise InputError(f"the coil maps are those of {count} slices, none of them number {number}")
    return np.ascontiguousarray(mps[..., number : number + 1, :, :]), None
