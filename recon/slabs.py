"""3-D images that do not fit into memory: reconstructed in parts along the readout, and joined."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_qpan.encoding import Reconstructor
from mri_qpan.errors import InputError
from mri_qpan.methods import Method
from mri_qpan.recon import coils, espirit
from mri_qpan.recon.compression import Number, correlations, mix
from mri_qpan.recon.geometry import centre
from mri_qpan.recon.pipeline import Complex, Result, reconstruct
from mri_qpan.recon.prepare import condition
from mri_qpan.recon.readers.ismrmrd import WORKING
from mri_qpan.recon.readers.mrd_slabs import Slabs
from mri_qpan.recon.study import Study, Undersampling, check_full, compared, study
from mri_qpan.recon.whole import Part, Whole, acquired, placed_at

HALO = 16
"""Columns that neighbouring parts share, for methods that look across x."""


def parts_of(slabs: Slabs, memory: int) -> list[Part]:
    """Return the parts along x that need so many bytes each, the one with the most signal first.

    Raises
    ------
    InputError
        If a single column needs more.
    """
    width = slabs.width
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

    The part with the most signal sets the scale, the noise level of coil maps, and whether a missing edge of
    k-space is filled, for all, and the phase of coil maps goes on from part to part. The image itself is held
    whole. An edge missing along the readout is filled in the whole image.

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

    Raises
    ------
    InputError, ReconError
        As `pipeline.reconstruct` does.
    """
    whole = Whole(slabs, options)
    floor = _floor(slabs, options.get("compress"), None)
    zero_phase = None if mps is not None else _zero_phase(slabs, memory, None)
    for part in parts_of(slabs, memory):
        kspace = slabs.part(part.start, part.stop)
        given: dict[str, Any] = {
            "mps": _columns(mps, slabs, part),
            "zero_phase": _columns(zero_phase, slabs, part),
        }
        result = reconstruct(kspace, method, floor=floor, **given, **whole.options)
        whole.add(part, result, float(np.linalg.norm(kspace.data)))
    return whole.result(getattr(method, "name", ""))


def study_slabs(
    slabs: Slabs,
    method: Method,
    undersampling: Undersampling,
    memory: int,
    *,
    mps: Complex | None = None,
    **options: Any,
) -> Study:
    """Undersample a fully sampled 3-D image, reconstruct it part by part and compare; else as `study.study`.

    One mask serves all parts, and the metrics are those of the whole image.

    Raises
    ------
    InputError
        If the image is not fully sampled, or the mask differs along the readout.
    """
    check_full(slabs.mask if slabs.span is None else acquired(slabs))
    kept = undersampling.mask((*slabs.mask.shape[:2], slabs.width))
    if (kept != kept[..., :1]).any():
        raise InputError(
            f"--undersample {undersampling.spec}: a mask that differs along the readout ties all of the image"
            " together, so it cannot be worked in parts: give it more --memory, or another kind of mask"
        )
    lines = kept[..., :1].copy()
    whole = Whole(replace(slabs, mask=lines), options)
    beside = {name: np.zeros(slabs.recon_shape, np.complex64) for name in ("reference", "zero_filled")}
    floor = _floor(slabs, options.get("compress"), lines)
    zero_phase = None if mps is not None else _zero_phase(slabs, memory, lines)
    for part in parts_of(slabs, memory):
        kspace = slabs.part(part.start, part.stop)
        given: dict[str, Any] = {
            "mps": _columns(mps, slabs, part),
            "zero_phase": _columns(zero_phase, slabs, part),
        }
        here = np.repeat(lines, part.stop - part.start, axis=2)
        one = study(kspace, method, undersampling, kept=here, floor=floor, **given, **whole.options)
        whole.add(part, one.result, float(np.linalg.norm(kspace.data * here)))
        for name, image in beside.items():
            image[..., part.keep] = getattr(one, name).data[..., part.inner]
    placed = {name: placed_at(slabs, image) for name, image in beside.items()}
    return compared(method.name, result=whole.result(method.name), **placed)


def _floor(slabs: Slabs, compress: Number, kept: NDArray[np.bool_] | None) -> float:
    """Return where signal starts in the calibration (of the lines kept) of the x with the most of it.

    Infinity where that gives ESPIRiT too little: no part then takes its maps.
    """
    x = slabs.strongest()
    kspace = slabs.part(x, x + 1)
    if kept is not None:
        kspace = replace(kspace, mask=kept, calib=None, calib_mask=None)
    one, _ = condition(kspace, compress)
    calib, mask = (one.data, one.mask) if one.calib is None else (one.calib, one.calib_mask)
    block = None if mask is None else coils.calibration_region(mask)
    if calib is None or block is None or len(calib) == 1:
        return 0.0
    plane = np.ascontiguousarray(calib[:, block[0], block[1], 0])
    if not coils.slab_is_covered(plane, (slabs.mask.shape[0], slabs.mask.shape[1])):
        return math.inf
    return espirit.signal_floor(plane)


def _zero_phase(slabs: Slabs, memory: int, kept: NDArray[np.bool_] | None) -> Complex | None:
    """Return `coils.references` (of the lines kept) for all x, (coil, 1, 1, x) of the measured channels."""
    spool, mask = slabs.calibration, slabs.calib_mask
    if spool is None or mask is None or kept is not None:
        spool, mask = slabs.imaging, slabs.mask if kept is None else kept
    assert spool is not None
    block = coils.calibration_region(mask)
    if block is None or spool.coils == 1:
        return None
    strongest = slabs.strongest()
    _, whitener = condition(slabs.part(strongest, strongest + 1))
    correlation = np.empty((slabs.width, spool.coils, spool.coils), np.complex128)
    for part in parts_of(slabs, memory):
        samples = spool.read(part.keep.start, part.keep.stop)[:, block[0], block[1]]
        correlation[part.keep] = correlations(samples if whitener is None else mix(whitener, samples))
    found = coils.references(correlation)
    measured = found if whitener is None else np.linalg.solve(whitener, found)
    return measured[:, None, None].astype(np.complex64)


def _columns(maps: Complex | None, slabs: Slabs, part: Part) -> Complex | None:
    """Return a part of maps on the encoded matrix or the delivered one."""
    if maps is None:
        return None
    across = centre(maps.shape[-1:], (slabs.width,))[0]
    return maps[..., across][..., part.start : part.stop]
