"""From measured k-space to what a reconstruction needs: white noise, no readout oversampling, coil maps."""

import math
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mri_qpan import noncartesian
from mri_qpan.errors import InputError
from mri_qpan.fourier import fft_numpy, ifft_numpy
from mri_qpan.recon import coils, compression, espirit
from mri_qpan.recon.kspace import KSpace
from mri_qpan.recon.memo import Memo, fingerprint

Complex = NDArray[np.complex64]
CALIBRATION = 16  # samples on each side of the k-space centre that calibrate along a trajectory
_densities: Memo[NDArray[np.float32]] = Memo(2**26, lambda weights: weights.nbytes)
_maps: Memo[tuple[Complex, list[str]]] = Memo(2**28, lambda found: found[0].nbytes)
Entry = TypeVar("Entry", bound=np.generic)
SINGULAR = 1e-5  # of the mean noise power: a combination of channels with less noise is a fault
FOLDED = 0.02  # share of the object with a second eigenvalue near 1 that calls for a second set of maps


@dataclass(frozen=True)
class Prepared:
    """One image's samples, ready for `Encoding`.

    Attributes
    ----------
    data
        Samples, (coil, z, y, x), of unit-correlated channels, in the input's intensity units.
    mask
        True where a sample was acquired, (z, y, x); along a trajectory, the places of the image's grid
        nearest to a sample.
    mps
        Coil maps, (coil, z, y, x), or (set, coil, z, y, x) for several sets.
    recon_shape
        Matrix (z, y, x) to crop the image to.
    notes
        What was assumed or done, in words, the reader's notes first.
    coord, weights
        Coordinates (sample, 2 or 3) of samples along a trajectory and their density compensation (sample,);
        `data` is (coil, 1, 1, sample) then, or (coil, z, 1, sample) of a stack. None on a grid.
    """

    data: Complex
    mask: NDArray[np.bool_]
    mps: Complex
    recon_shape: tuple[int, int, int]
    notes: list[str]
    coord: NDArray[np.float32] | None = None
    weights: NDArray[np.float32] | None = None


def prepare(
    kspace: KSpace,
    *,
    mps: Complex | None = None,
    sets: int | None = 1,
    compress: compression.Number = None,
    floor: float = 0.0,
    zero_phase: Complex | None = None,
) -> Prepared:
    """Whiten, crop the readout oversampling and find the coil maps.

    Parameters
    ----------
    kspace
        One image's k-space.
    mps
        Coil maps to use, (coil, z, y, x) or (set, coil, z, y, x) on the grid of `kspace.data` or of the
        result; None: estimate them.
    sets
        Sets of maps to estimate. None: 2 where the object is larger than the field of view, else 1.
    compress
        See `condition`.
    floor
        Of singular values of a 3-D slab's calibration region (see `coils.slab_maps`).
    zero_phase
        Combination of the channels of `kspace` that is to have phase 0 in a 3-D slab's maps, (coil, 1, 1, x);
        None: see `coils.slab_maps`.

    Raises
    ------
    InputError
        If there are no samples, or given maps do not fit them.
    """
    given = None if mps is None else checked(mps, kspace)
    kspace, mixer = condition(kspace, compress)
    width = kspace.data.shape[3] if kspace.coord is None else kspace.recon_shape[2]
    weights, mask = None, kspace.mask
    if kspace.coord is not None:
        weights = density(kspace.coord, kspace.recon_shape[-kspace.coord.shape[1] :])
        mask = _nearest(kspace.coord, kspace.recon_shape)
    if given is not None and given.shape[-1] < width:
        raise InputError(
            f"coil maps {given.shape[-1]} wide do not fit readouts that keep their {width} samples "
            "(asymmetric echoes): give maps on the encoded matrix"
        )
    if given is not None:
        found = _centre(given, width)
        found = found if mixer is None else compression.mix_maps(mixer, found)
        several = found.reshape(-1, *found.shape[-4:])
        found = np.stack([coils.normalise(one) for one in several]).reshape(found.shape)
        notes = ["coil maps as given, normalised to unit sum of squares"]
    elif kspace.coord is not None and weights is not None:
        stack = kspace.coord.shape[1] == 2 and kspace.recon_shape[0] > 1
        found, notes = _estimate(_gridded(kspace, kspace.coord, weights), 1, planes=stack, folds=False)
    else:
        if zero_phase is not None and mixer is not None:
            zero_phase = compression.mix(mixer, zero_phase)
        found, notes = _estimate(kspace, sets, floor, zero_phase)
    notes = [*kspace.notes, *notes]
    return Prepared(kspace.data, mask, found, kspace.recon_shape, notes, kspace.coord, weights)


def density(coord: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the density compensation of a trajectory (sample, ndim); the last ones are remembered."""
    return _densities.get((fingerprint(coord), shape), lambda: noncartesian.density(coord, shape))


def _nearest(coord: NDArray[np.float32], shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Return which places of a grid (z, y, x) are nearest to a sample; of a stack in every plane alike."""
    size = np.array(shape[-coord.shape[1] :])
    places = np.rint(coord).astype(int) + size // 2
    inside = ((places >= 0) & (places < size)).all(axis=1)
    mask = np.zeros(shape, bool)
    mask[..., *places[inside].T] = True
    return mask


def _gridded(kspace: KSpace, coord: NDArray[np.float32], weights: NDArray[np.float32]) -> KSpace:
    """Return the central k-space that samples along a trajectory make on the grid: a calibration region."""
    shape, dimensions = kspace.recon_shape, coord.shape[1]
    images = noncartesian.grid(kspace.data[:, :, 0] * weights, coord, shape[-dimensions:])
    data = fft_numpy(images.reshape(len(images), *shape).astype(np.complex64), (-3, -2, -1))
    mask = np.zeros(shape, bool)
    reach = min(CALIBRATION, int(np.abs(coord).max()))
    centre = (slice(max(0, n // 2 - reach), n // 2 + reach) for n in shape[-dimensions:])
    place: tuple[Any, ...] = (..., *centre)
    mask[place] = True
    return replace(kspace, data=data * mask, mask=mask, coord=None, noise_covariance=None)


def condition(kspace: KSpace, compress: compression.Number = None) -> tuple[KSpace, Complex | None]:
    """Whiten the channels, remove the readout oversampling and compress the channels.

    The crop is exact, because it is done only where every line is sampled over its whole length. Other
    measurements (asymmetric echoes) keep their oversampling: their images are cropped at the end.

    Parameters
    ----------
    kspace
        One image's k-space.
    compress
        Number of virtual channels to mix the channels into (see `compression.compress`): geometrically where
        every line is sampled over its whole length. None, or more than there are: all are kept; "auto": see
        `compression.Number`.

    Returns
    -------
    kspace
        Of channels with equal and uncorrelated noise, with notes on what was done.
    mixer
        The matrix (virtual coil, coil) that the channels were mixed with, one for each x, (x, virtual coil,
        coil), of geometric compression, or None.

    Raises
    ------
    InputError
        If there are no samples.
    """
    if kspace.blank:
        raise InputError("every sample is zero, there is nothing to reconstruct")
    whitener, notes = _whitener(kspace.noise_covariance)
    data, mask, calib, calib_mask = kspace.data, kspace.mask, kspace.calib, kspace.calib_mask
    covariance = kspace.noise_covariance
    if whitener is not None and covariance is not None:
        covariance = (np.eye(len(covariance)) * np.trace(covariance).real / len(covariance)).astype(
            np.complex64
        )
        data = compression.mix(whitener, data)
        calib = None if calib is None else compression.mix(whitener, calib)
    acquired, width = data.shape[3], kspace.recon_shape[2]
    whole = (
        kspace.coord is None and _full_readouts(mask) and (calib_mask is None or _full_readouts(calib_mask))
    )
    if whole and width < acquired:
        notes = (*notes, f"readout oversampling removed: {acquired} to {width} samples")
        data, mask = _crop_readout(data, width), _centre(mask, width)
        calib = None if calib is None else _crop_readout(calib, width)
        calib_mask = None if calib_mask is None else _centre(calib_mask, width)
    conditioned = replace(
        kspace,
        data=data,
        mask=mask,
        calib=calib,
        calib_mask=calib_mask,
        noise_covariance=covariance,
        notes=(*kspace.notes, *notes),
    )
    if compress is None or not compression.is_asked_for(compress, len(data)):
        return conditioned, whitener
    conditioned, mixer = compression.compress(conditioned, compress, geometric=whole)
    return conditioned, mixer if whitener is None else mixer @ whitener


def whitening_matrix(covariance: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Return the inverse Cholesky factor of a noise covariance (coil, coil).

    It is scaled to keep the mean noise power of the channels, so intensities stay what they were.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the covariance is not positive definite.
    """
    wide = covariance.astype(np.complex128)
    power = np.trace(wide).real / len(wide)
    if np.linalg.eigvalsh(wide)[0] < SINGULAR * power:
        raise np.linalg.LinAlgError("the noise covariance is singular")
    factor = np.linalg.cholesky(wide)
    return (np.sqrt(power) * np.linalg.inv(factor)).astype(np.complex64)


def _whitener(
    covariance: NDArray[np.complex64] | None,
) -> tuple[NDArray[np.complex64] | None, tuple[str, ...]]:
    """Return the whitening matrix and a note on it, None where there is nothing to whiten or no way to."""
    if covariance is None:
        return None, ()
    power = np.trace(covariance).real / len(covariance)
    # Relative to the noise: scanners' units are often so small that any absolute tolerance holds for all.
    if np.allclose(covariance, covariance[0, 0] * np.eye(len(covariance)), rtol=0, atol=1e-5 * power):
        return None, ()
    try:
        matrix = whitening_matrix(covariance)
    except np.linalg.LinAlgError:
        matrix = None
    if matrix is None or not np.isfinite(matrix).all():
        return None, ("the noise scan is too short or has a dead channel: channels not whitened",)
    return matrix, ("channels whitened with the noise scan",)


def _full_readouts(mask: NDArray[np.bool_]) -> bool:
    """Whether every acquired line is sampled over its whole length."""
    return bool(np.array_equal(mask.any(axis=2), mask.all(axis=2)))


def _crop_readout(samples: Complex, width: int) -> Complex:
    return fft_numpy(_centre(ifft_numpy(samples, (-1,)), width), (-1,))


def _centre(array: NDArray[Entry], width: int) -> NDArray[Entry]:
    """Return the central `width` entries of the last axis."""
    start = array.shape[-1] // 2 - width // 2
    return array[..., start : start + width]


def checked(mps: Complex, kspace: KSpace) -> Complex:
    """Return maps as ([set,] coil, z, y, x) complex64; raises `InputError` if they do not fit the samples."""
    maps = np.asarray(mps)
    wanted = kspace.data.shape if kspace.coord is None else (len(kspace.data), *kspace.recon_shape)
    if maps.ndim == 3 and wanted[1] == 1:
        maps = maps[:, None]
    if kspace.coord is not None and maps.ndim == 5:
        raise InputError("samples along a trajectory take one set of coil maps, these are several")
    if maps.shape[-4:-1] != wanted[:3] or maps.shape[-1] not in (wanted[3], kspace.recon_shape[2]):
        raise InputError(
            f"coil maps of shape {maps.shape} do not fit k-space of shape {wanted} (coil, z, y, x): "
            "give maps for every channel on the encoded matrix"
        )
    if not np.isfinite(maps).all() or not np.any(maps):
        raise InputError("the coil maps hold NaN or infinite values, or only zeros")
    return maps.astype(np.complex64)


def _estimate(
    kspace: KSpace,
    sets: int | None,
    floor: float = 0.0,
    zero_phase: Complex | None = None,
    *,
    planes: bool = False,
    folds: bool = True,
) -> tuple[Complex, list[str]]:
    """Return the coil maps and notes on how they were found; with `planes` in the planes (y, x) of a slab.

    `folds` is whether an object larger than the field of view would fold over: not along a trajectory.
    """
    depth, height, width = kspace.mask.shape
    shape = depth, height, width
    if kspace.data.shape[0] == 1:
        return np.ones((1, *shape), np.complex64), []
    calib, mask = kspace.calib, kspace.calib_mask
    if calib is None or mask is None:
        calib, mask = kspace.data, kspace.mask
    block = coils.calibration_region(mask)
    # Kernels of a slab reach over z and y: it may be a few columns of x, a part of a larger one.
    reach = () if block is None else block[1:] if depth == 1 or planes else block[1:2]
    if block is None or min(s.stop - s.start for s in reach) < coils.NARROWEST_CALIBRATION:
        maps = coils.low_resolution_maps(calib, mask)
        return _in_sets(maps, sets), [
            "no calibration region (fully sampled k-space centre): coil maps from the low resolution of what "
            "was acquired, so aliasing may remain"
        ]
    covariance = kspace.noise_covariance
    noise = 0.0 if covariance is None else float(np.sqrt(np.trace(covariance).real / len(covariance)))
    region = np.ascontiguousarray(calib[:, *block])
    # One reference scan serves the frames of a series: its maps are found once.
    rest = shape, planes, folds, sets, noise, floor
    key = (fingerprint(region), str(block), *rest, None if zero_phase is None else fingerprint(zero_phase))
    maps, notes = _maps.get(key, lambda: _calibrated(region, block, *rest, zero_phase))
    return maps, list(notes)


def _in_sets(maps: Complex, sets: int | None) -> Complex:
    """Return one set of maps as the first of several, the others zero."""
    empty = [np.zeros_like(maps)] * ((sets or 1) - 1)
    return np.stack([maps, *empty]) if empty else maps


def _calibrated(
    region: Complex,
    block: coils.Block,
    shape: tuple[int, int, int],
    planes: bool,
    folds: bool,
    sets: int | None,
    noise: float,
    floor: float,
    zero_phase: Complex | None,
) -> tuple[Complex, list[str]]:
    """Return the maps that a calibration region gives, and notes.

    Parameters
    ----------
    region, block
        (coil, z, y, x), and its place in k-space.
    shape, planes, folds, sets, noise, floor, zero_phase
        See `coils.slab_maps`, `_estimate` and `prepare`.
    """
    sizes = " x ".join(map(str, region.shape[2:] if shape[0] == 1 else region.shape[1:]))
    where = f"a calibration region of {sizes} ({'z, ' * (shape[0] > 1)}y, x)"
    notes = [f"coil maps by ESPIRiT from {where}"]
    if shape[0] == 1:
        share = espirit.folded_share(region[:, 0], noise=noise) if folds else 0.0
        if share > FOLDED and sets in (1, None):
            consequence = "maps cannot tell the two layers apart" if sets == 1 else "maps for each layer"
            notes.append(
                f"the object is larger than the field of view ({share:.0%} of it folds over): one set of "
                f"coil {consequence}"
            )
        several = sets or (2 if share > FOLDED else 1)
        found = espirit.espirit(region[:, 0], shape[1:], sets=several, noise=noise)
        maps: Complex | None = found[..., None, :, :]
    else:
        given: dict[str, Any] = {"sets": sets or 1, "noise": noise, "floor": floor}
        reference = None if zero_phase is None else zero_phase[:, 0, 0]
        if planes:
            maps = coils.slab_maps(region, shape, block[0].start, along=0, **given, faint=False)
        # Of a slab in parts the whole decides, see `slabs`.
        elif math.isfinite(floor) and (
            reference is not None or coils.slab_is_covered(coils.strongest_plane(region), shape[:2])
        ):
            return coils.slab_maps(region, shape, block[2].start, reference=reference, **given), notes
        else:
            maps = None
    if maps is not None and coils.covered(maps, region) >= coils.COVERED:
        if planes:
            return coils.slab_maps(region, shape, block[0].start, along=0, **given), notes
        espirit.add_faint(maps.reshape(-1, len(region), *shape[1:]), region[:, 0], noise)
        return maps, notes
    return _in_sets(coils.smooth_maps(region, block, shape), sets), [
        f"coil maps from the low resolution of {where}: ESPIRiT finds none in parts of the object, for want "
        "of lines or of signal"
    ]
