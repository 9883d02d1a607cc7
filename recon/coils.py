"""Coil sensitivity maps: ESPIRiT from the calibration region, or what can be had without one."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from mri_qpan.fourier import ifft_numpy
from mri_qpan.recon.compression import correlations, outwards
from mri_qpan.recon.espirit import THRESHOLD, add_faint, espirit, maps_of_plane, signal_floor

WIDEST_CALIBRATION = 32
NARROWEST_CALIBRATION = 8  # lines; fewer make too few equations for the kernels
COVERED = 0.95
"""Share of the signal that ESPIRiT's maps must cover: with too few lines, or too much noise, its eigenvalues
stay below 1 in parts of the object, which would be zero in the image."""

Complex = NDArray[np.complex64]
Block = tuple[slice, slice, slice]


def calibration_region(mask: NDArray[np.bool_], widest: int = WIDEST_CALIBRATION) -> Block | None:
    """Find the largest fully sampled block around the k-space centre.

    Parameters
    ----------
    mask
        True where a sample was acquired, (z, y, x).
    widest
        Largest width along y and x (along z, and along x of a 3-D slab, as far as sampled).

    Returns
    -------
    Slices (z, y, x) of the block, or None if the centre itself was not acquired.
    """
    centre = tuple(n // 2 for n in mask.shape)
    if not mask[centre]:
        return None
    if mask.shape[0] > 1:
        return _slab_region(mask, widest)
    rows, column = mask[0], centre[2]
    half = widest // 2
    window = slice(max(centre[1] - half, 0), centre[1] + half)
    best: tuple[int, slice, slice] | None = None
    lines = rows[window, max(column - half, 0) : column + half]
    local = (centre[1] - window.start, column - max(column - half, 0))
    for top in range(local[0], -1, -1):
        covered = lines[top : local[0] + 1].all(axis=0)
        for bottom in range(local[0], lines.shape[0]):
            covered = covered & lines[bottom]
            if not covered[local[1]]:
                break
            run = _run(covered, local[1])
            area = (bottom + 1 - top) * (run.stop - run.start)
            if best is None or area > best[0]:
                best = area, slice(top, bottom + 1), run
    assert best is not None  # the centre is sampled: at least that one sample
    shift = window.start, max(column - half, 0)
    y, x = (slice(s.start + o, s.stop + o) for s, o in zip(best[1:], shift, strict=True))
    return slice(0, 1), y, x


def maps_of_slice(samples: Complex, mask: NDArray[np.bool_], noise: float = 0.0) -> Complex:
    """Estimate one set of maps of an undersampled slice: ESPIRiT if enough of its centre is sampled.

    Parameters
    ----------
    samples
        k-space, (coil, y, x).
    mask
        True where a sample was acquired, (y, x).
    noise
        As for `espirit`.

    Returns
    -------
    Maps, (coil, y, x).
    """
    block = calibration_region(mask[None])
    if block is None or min(s.stop - s.start for s in block[1:]) < NARROWEST_CALIBRATION:
        return low_resolution_maps(samples[:, None], mask[None])[:, 0]
    region = samples[:, block[1], block[2]]
    maps = espirit(region, (mask.shape[0], mask.shape[1]), noise=noise)
    if covered(maps[:, None], region[:, None]) >= COVERED:
        add_faint(maps[None], region, noise)
        return maps
    return smooth_maps(region[:, None], block, (1, mask.shape[0], mask.shape[1]))[:, 0]


def covered(maps: Complex, region: Complex) -> float:
    """Return the share of a calibration region's signal that lies where maps are; 1 without any signal.

    Parameters
    ----------
    maps
        (coil, z, y, x), or (set, coil, z, y, x).
    region
        Samples (coil, kz, ky, kx) that they were found from.
    """
    power = (np.abs(ifft_numpy(_windowed(region), (-3, -2, -1))) ** 2).sum(0)
    sizes = zip(power.shape, maps.shape[-3:], strict=True)
    nearest = np.ix_(*((np.arange(m) - m // 2) * n // m + n // 2 for m, n in sizes))
    there = (maps[..., *nearest] != 0).reshape(-1, *power.shape).any(0)
    return float(power[there].sum() / power.sum()) if power.any() else 1.0


def smooth_maps(region: Complex, block: Block, shape: tuple[int, int, int]) -> Complex:
    """Return coil images of a calibration region over their root sum of squares, (coil, z, y, x).

    Parameters
    ----------
    region, block
        Samples (coil, kz, ky, kx), and their place in k-space.
    shape
        Matrix (z, y, x) of the maps.
    """
    # A slab's readout is sampled whole, and maps are smooth along it too.
    half = WIDEST_CALIBRATION // 2
    first, last = max(block[2].start, shape[2] // 2 - half), min(block[2].stop, shape[2] // 2 + half)
    centre = np.zeros((len(region), *shape), np.complex64)
    middle = region[..., first - block[2].start : last - block[2].start]
    centre[:, *block[:2], first:last] = _windowed(middle)
    return normalise(ifft_numpy(centre, (-3, -2, -1)))


def _windowed(region: Complex) -> Complex:
    windows = (np.hanning(n + 2)[1:-1].astype(np.float32) for n in region.shape[1:])
    return region * math.prod(np.ix_(*windows))


def slab_is_covered(plane: Complex, shape: tuple[int, int]) -> bool:
    """Return whether ESPIRiT in the planes (z, y) of a slab finds maps where the signal is.

    Of fewer patches than weights of a kernel it finds too small a space of kernels, and soon none whose
    eigenvalue reaches `espirit.CROP`.

    Parameters
    ----------
    plane
        Calibration samples (coil, kz, ky) of the x with the most signal.
    shape
        Matrix (z, y) of the maps.
    """
    if min(plane.shape[1:]) < NARROWEST_CALIBRATION:
        return False
    return covered(espirit(plane, shape)[..., None], plane[..., None]) >= COVERED


def strongest_plane(region: Complex) -> Complex:
    """Return samples (coil, kz, ky) of the x with the most signal, of a region (coil, kz, ky, kx)."""
    return _strongest(ifft_numpy(region, (-1,)))


def _strongest(planes: Complex) -> Complex:
    """Return the plane with the most signal, (coil, ky, kx), of (coil, ky, kx, plane)."""
    return np.ascontiguousarray(planes[..., int(np.argmax((np.abs(planes) ** 2).sum((0, 1, 2))))])


def low_resolution_maps(data: Complex, mask: NDArray[np.bool_]) -> Complex:
    """Return coil images of the k-space centre over their root sum of squares.

    For data without a calibration region. Aliasing in the centre stays in the maps.

    Parameters
    ----------
    data, mask
        k-space (coil, z, y, x), and where it was acquired, (z, y, x).

    Returns
    -------
    Maps, (coil, z, y, x), with sum over coils of abs(map)^2 = 1.
    """
    weight = math.prod(np.ix_(*map(_hann, mask.shape)))
    centre = data * (weight * mask)
    # A measurement without its centre still has an image of edges; `familiar.centre_missed` warns of it.
    return normalise(ifft_numpy(centre if centre.any() else data * mask, (-3, -2, -1)))


def normalise(maps: Complex) -> Complex:
    """Scale maps (coil, ...) to sum over coils of abs(map)^2 = 1, 0 where all of them vanish."""
    power = np.sqrt((np.abs(maps) ** 2).sum(axis=0))
    floor = 1e-6 * power.max(initial=0)
    return np.where(power > floor, maps / np.maximum(power, floor + 1e-30), 0).astype(np.complex64)


def slab_maps(
    calib: Complex,
    shape: tuple[int, int, int],
    start: int,
    *,
    along: int = 2,
    sets: int = 1,
    noise: float = 0.0,
    floor: float = 0.0,
    reference: Complex | None = None,
    faint: bool = True,
) -> Complex:
    """Estimate the maps of a 3-D slab: ESPIRiT in every plane along one direction.

    Parameters
    ----------
    calib
        Calibration block, (coil, kz, ky, kx).
    shape
        Matrix (z, y, x) of the maps.
    start
        Place of the block's first sample along that direction.
    along
        2: the planes are (z, y), one for each x, whose phase goes on from one to the next however far apart
        the coils are. 0: they are (y, x), one for each z, with all of a readout's samples for each one's
        kernels, of stacks along a trajectory.
    sets, noise
        As for `espirit`.
    floor
        Singular values below are noise (see `signal_floor`), besides what is in the strongest plane.
    reference
        Combination of the coils that has phase 0 in every plane, (coil, plane); None: `references` of this
        block.
    faint
        Also for faint structures, see `espirit.add_faint`.

    Returns
    -------
    Maps (coil, z, y, x), or (set, coil, z, y, x).
    """
    moved = np.moveaxis(calib, 1 + along, -1)
    height, width = (n for axis, n in enumerate(shape) if axis != along)
    padded = np.zeros((*moved.shape[:3], shape[along]), np.complex64)
    padded[..., start : start + moved.shape[3]] = moved
    planes = ifft_numpy(padded, (-1,))
    noise *= math.sqrt(moved.shape[3] / shape[along])
    floor = max(floor, signal_floor(_strongest(planes), noise))
    if reference is None:
        reference = references(correlations(planes))
    turns = torch.from_numpy(np.ascontiguousarray(reference.T))
    found = []
    for n in range(shape[along]):
        plane = np.ascontiguousarray(planes[..., n])
        found.append(maps_of_plane(plane, (height, width), sets, noise, turns[n], floor))
        if faint:
            add_faint(found[-1], plane, noise, turns[n], floor)
    maps = np.stack(found, axis=2 + along)
    return maps[0] if sets == 1 else maps


def references(correlation: NDArray[np.complex128]) -> Complex:
    """Return strong combinations of the coils, (coil, place), whose phases go on smoothly along a direction.

    The strongest ones are known up to a phase each, and jump where two coils are as strong. These start there
    where there is most signal and take a step of the power method from each place to the next: C is not
    negative, so neighbours r and C r have no phase between them.

    Parameters
    ----------
    correlation
        C, of the coils at every place, (place, coil, coil), as `compression.correlations` returns it.
    """
    power = np.trace(correlation, axis1=1, axis2=2).real
    first = int(np.argmax(power))
    # Where there is next to no signal the combination stays what it was.
    steady = (THRESHOLD**2 * power[first] or 1.0) * np.eye(correlation.shape[1])
    strongest = np.linalg.eigh(correlation[first])[1][:, -1]
    found = np.empty(correlation.shape[:2], np.complex128)
    # The phase does not depend on what LAPACK returns.
    found[first] = strongest * np.exp(-1j * np.angle(strongest[np.argmax(np.abs(strongest))]))
    for x, neighbour in outwards(first, len(found)):
        stepped = (correlation[x] + steady) @ found[neighbour]
        found[x] = stepped / np.linalg.norm(stepped)
    return np.ascontiguousarray(found.T, np.complex64)


def _slab_region(mask: NDArray[np.bool_], widest: int) -> Block | None:
    """Block of a 3-D slab: x as far as sampled, then the largest centred rectangle in (z, y)."""
    cz, cy, cx = (n // 2 for n in mask.shape)
    x = _run(mask[cz, cy], cx)
    plane: NDArray[np.bool_] = np.all(mask[:, :, x], axis=2)
    half = widest // 2
    best: tuple[int, slice, slice] | None = None
    for depth in range(1, min(half, cz) + 1):
        z = slice(cz - depth, cz + depth)
        lines: NDArray[np.bool_] = np.all(plane[z], axis=0)
        if not lines[cy]:
            break
        run = _run(lines, cy)
        y = slice(max(run.start, cy - half), min(run.stop, cy + half))
        area = (z.stop - z.start) * (y.stop - y.start)
        if best is None or area > best[0]:
            best = area, z, y
    return None if best is None else (best[1], best[2], x)


def _run(sampled: NDArray[np.bool_], at: int) -> slice:
    """Return the run of True around an index."""
    gaps = np.flatnonzero(~sampled)
    before, after = gaps[gaps < at], gaps[gaps > at]
    return slice(int(before[-1]) + 1 if before.size else 0, int(after[0]) if after.size else sampled.size)


def _hann(n: int, width: int = 24) -> NDArray[np.float32]:
    """Hann window of `width` around the centre of n samples."""
    distance = np.abs(np.arange(n) - n // 2) / max(min(width, n) / 2, 0.5)
    return np.where(distance < 1, 0.5 + 0.5 * np.cos(np.pi * np.minimum(distance, 1)), 0).astype(np.float32)
