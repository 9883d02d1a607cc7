"""3-D images that do not fit into memory: reconstructed in parts along the readout, and joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_qpan.encoding import Reconstructor
from mri_qpan.errors import InputError
from mri_qpan.recon import coils
from mri_qpan.recon.geometry import centre
from mri_qpan.recon.kspace import Image, Quantity
from mri_qpan.recon.pipeline import Complex, Result, reconstruct
from mri_qpan.recon.prepare import condition
from mri_qpan.recon.readers.ismrmrd import WORKING
from mri_qpan.recon.readers.mrd_slabs import Slabs
from mri_qpan.sampling_masks import mask_hash

HALO = 16
"""Columns that neighbouring parts share, for methods that look across x."""


@dataclass(frozen=True)
class Part:
    """A range of x to reconstruct, and the range of it to keep."""

    start: int
    stop: int
    keep: slice


def parts_of(slabs: Slabs, memory: int) -> list[Part]:
    """Return the parts along x that need so many bytes each, the one with the most signal first.

    Raises
    ------
    InputError
        If a single column needs more.
    """
    assert slabs.imaging is not None
    width = slabs.recon_shape[2]
    column = 8 * slabs.imaging.coils * math.prod(slabs.mask.shape) * WORKING
    columns = memory // column
    if columns < 1:
        raise InputError(
            f"{memory >> 20} MiB of memory do not hold one column of this slab: it needs "
            f"{-(-column >> 20)} MiB"
        )
    halo = min(HALO, columns // 4)
    core = columns - 2 * halo
    found = [
        Part(max(0, x - halo), min(width, x + core + halo), slice(x, min(width, x + core)))
        for x in range(0, width, core)
    ]
    first = slabs.strongest() // core
    return [found[first], *found[:first], *found[first + 1 :]]


def reconstruct_slabs(
    slabs: Slabs, method: Reconstructor, memory: int, *, mps: Complex | None = None, **options: Any
) -> Result:
    """Reconstruct a 3-D image part by part; else as `pipeline.reconstruct`.

    Without views for a report. The part with the most signal sets the scale and the noise level of coil maps
    for all. The image itself is held whole.

    Parameters
    ----------
    slabs
        The samples.
    method
        Where it looks across x it sees `HALO` columns of the neighbouring parts.
    memory
        Bytes for the reconstruction of a part.
    mps, options
        As of `pipeline.reconstruct`.
    """
    parts = parts_of(slabs, memory)
    options = options | {"views": False, "floor": _floor(slabs, options.get("compress"))}
    image = np.zeros(slabs.recon_shape, np.complex64)
    maps: dict[Quantity, NDArray[np.complex64]] = {}
    results: list[Result] = []
    norms: list[float] = []
    for part in parts:
        kspace = slabs.part(part.start, part.stop)
        result = reconstruct(kspace, method, mps=_columns(mps, slabs, part), **options)
        options["scale"] = result.scale if not results else options["scale"]
        inner = slice(part.keep.start - part.start, part.keep.stop - part.start)
        image[..., part.keep] = result.image.data[..., inner]
        for quantity, shown in result.maps.items():
            whole = maps.setdefault(quantity, np.zeros(slabs.recon_shape, np.complex64))
            whole[..., part.keep] = shown.data[..., inner]
        norms.append(float(np.linalg.norm(kspace.data)))
        results.append(replace(result, image=_placed(slabs, image), maps={}))
    return _joined(slabs, image, maps, results, norms)


def _floor(slabs: Slabs, compress: int | None) -> float:
    """Return where signal starts in the calibration of the x with the most of it."""
    x = slabs.strongest()
    one, _ = condition(slabs.part(x, x + 1), compress)
    calib, mask = (one.data, one.mask) if one.calib is None else (one.calib, one.calib_mask)
    block = None if mask is None else coils.calibration_region(mask)
    if calib is None or block is None or len(calib) == 1:
        return 0.0
    plane = np.ascontiguousarray(calib[:, block[0], block[1], 0])
    return coils.strongest_floor(plane) if min(plane.shape[1:]) >= coils.KERNEL else 0.0


def _columns(mps: Complex | None, slabs: Slabs, part: Part) -> Complex | None:
    """Return the maps of a part, of maps on the encoded matrix or the delivered one."""
    if mps is None:
        return None
    across = centre(mps.shape[-1:], slabs.recon_shape[2:])[0]
    return mps[..., across][..., part.start : part.stop]


def _placed(slabs: Slabs, data: NDArray[np.complex64]) -> Image:
    return Image(data, slabs.geometry, slabs.index, slabs.stamp)


def _joined(
    slabs: Slabs,
    image: NDArray[np.complex64],
    maps: dict[Quantity, NDArray[np.complex64]],
    results: Sequence[Result],
    norms: Sequence[float],
) -> Result:
    first = results[0]
    apart = [r.figures.residual * n for r, n in zip(results, norms, strict=True)]
    figures = replace(
        first.figures,
        mask_hash=mask_hash(np.repeat(slabs.mask, slabs.recon_shape[2], axis=2)),
        residual=float(np.linalg.norm(apart) / np.linalg.norm(norms)),
        maps_seconds=sum(r.figures.maps_seconds for r in results),
        recon_seconds=sum(r.figures.recon_seconds for r in results),
    )
    note = f"worked in {len(results)} parts along the readout, to keep within the memory"
    return replace(
        first,
        image=_placed(slabs, image),
        figures=figures,
        notes=(*first.notes, note),
        warnings=tuple(dict.fromkeys(warning for r in results for warning in r.warnings)),
        maps={quantity: _placed(slabs, pixels) for quantity, pixels in maps.items()},
    )
