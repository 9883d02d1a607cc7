"""Raw k-space to an ISMRMRD acquisition file: what a scanner's converter writes, for phantoms and tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ismrmrd import constants, xsd
from ismrmrd.hdf5 import acquisition_dtype, acquisition_header_dtype
from numpy.typing import NDArray

from mri_qpan.phantom import noise as draw_noise
from mri_qpan.recon.files import from_memory, staged
from mri_qpan.recon.kspace import COUNTERS, Index, KSpace

LARMOR_HZ = 127_728_000
"""Protons at 3 T; the schema asks for a frequency."""

IMAGE_DWELL_US = 5.0
NOISE_DWELL_US = 10.0


@dataclass(frozen=True)
class NoiseScan:
    """Readouts without signal.

    Attributes
    ----------
    samples
        (readout, coil, sample) complex64, as received at `dwell_us`.
    dwell_us
        Time of one sample in µs.
    relative_bandwidth
        What the receiver's filter leaves of the noise power (`relativeReceiverNoiseBandwidth`).
    """

    samples: NDArray[np.complex64]
    dwell_us: float = NOISE_DWELL_US
    relative_bandwidth: float = 1.0


@dataclass(frozen=True)
class _Readout:
    """One acquisition: the image and average it belongs to, its place, samples (coil, sample) and flags."""

    image: KSpace
    average: int
    z: int
    y: int
    start: int
    samples: NDArray[np.complex64]
    flags: int


def draw_noise_scan(
    covariance: NDArray[np.complexfloating],
    seed: int,
    *,
    readouts: int = 16,
    samples: int = 512,
    relative_bandwidth: float = 0.793,
) -> NoiseScan:
    """Draw a noise scan for images whose samples have noise of `covariance` (coil, coil) at `IMAGE_DWELL_US`.

    Its dwell time is `NOISE_DWELL_US`; noise power goes with the bandwidth, so it is scaled by the ratio, and
    by `relative_bandwidth`.
    """
    received = covariance * (IMAGE_DWELL_US / NOISE_DWELL_US * relative_bandwidth)
    lines = draw_noise((len(covariance), readouts, samples), received, seed)
    return NoiseScan(lines.transpose(1, 0, 2), relative_bandwidth=relative_bandwidth)


def write_raw(
    path: Path, images: Sequence[KSpace], *, noise: NoiseScan | None = None, reverse: bool = False
) -> None:
    """Write k-space as ISMRMRD acquisitions, through a temporary file.

    The inverse of `recon.readers.ismrmrd.read`; what is written follows from the images. `mask` says which
    lines were acquired, and from which sample to which (an asymmetric echo is a mask that starts late).
    Lines of `calib_mask` are flagged as calibration and imaging where `mask` has them too; the others go
    first, as calibration alone. `index` gives the counters; images with the same index are averages.
    A `recon_shape` smaller than the matrix makes the rest oversampling.

    Parameters
    ----------
    path
        The file to make; an existing one is replaced.
    images
        In the order of acquisition, of one matrix, number of coils and field of view, all of encoding 0.
    noise
        Readouts that go before all others.
    reverse
        Acquire every second imaging line backwards, as EPI does.

    Raises
    ------
    ValueError
        If the images do not fit together, or a line has gaps or does not reach the echo.
    OSError
        If the file cannot be written.
    """
    _check(images, noise)
    readouts = list(_readouts(images))
    if reverse:
        readouts = [_reversed(r) if n % 2 else r for n, r in enumerate(readouts)]
    rows = [] if noise is None else [_noise_row(images[0], noise, n) for n in range(len(noise.samples))]
    rows += [_row(readout, len(rows) + n) for n, readout in enumerate(readouts)]
    with (
        staged(path.parent) as stage,
        from_memory(stage / path.name) as memory,
        h5py.File(memory, "w") as file,
    ):
        text = h5py.special_dtype(vlen=bytes)
        file.create_dataset("dataset/xml", data=np.array([_xml(images, noise).encode()], object), dtype=text)
        file.create_dataset("dataset/data", data=np.array(rows, acquisition_dtype), maxshape=(None,))


def _check(images: Sequence[KSpace], noise: NoiseScan | None) -> None:
    if not images:
        raise ValueError("there are no images to write")
    first = images[0]
    for image in images:
        if image.data.shape != first.data.shape or image.recon_shape != first.recon_shape:
            raise ValueError("all images need one number of coils, one matrix and one recon_shape")
        if image.geometry.fov != first.geometry.fov or image.index.encoding != 0:
            raise ValueError("all images need one field of view and encoding 0")
        if not image.mask.any():
            raise ValueError(f"image {image.index} has no samples")
    coils = first.data.shape[0]
    if noise is not None and noise.samples.shape[1] != coils:
        raise ValueError(f"the noise scan has {noise.samples.shape[1]} coils, the images {coils}")


def _readouts(images: Sequence[KSpace]) -> Iterator[_Readout]:
    """Yield the acquisitions in order: of each image the calibration lines alone, then the imaging lines."""
    averages, totals = Counter[Index](), Counter(image.index for image in images)
    for number, image in enumerate(images):
        average = averages[image.index]
        averages[image.index] += 1
        if image.calib is not None and image.calib_mask is not None:
            alone = image.calib_mask & ~image.mask.any(axis=2, keepdims=True)
            flags = _bits(constants.ACQ_IS_PARALLEL_CALIBRATION)
            yield from (replace(r, flags=flags) for r in _lines(image, average, image.calib, alone))
        lines = list(_lines(image, average, image.data, image.mask))
        if average == 0:
            lines[0] = _flagged(lines[0], constants.ACQ_FIRST_IN_SLICE)
        if averages[image.index] == totals[image.index]:
            lines[-1] = _flagged(lines[-1], constants.ACQ_LAST_IN_SLICE)
        if all(other.index.repetition != image.index.repetition for other in images[number + 1 :]):
            lines[-1] = _flagged(lines[-1], constants.ACQ_LAST_IN_REPETITION)
        if number == len(images) - 1:
            lines[-1] = _flagged(lines[-1], constants.ACQ_LAST_IN_MEASUREMENT)
        yield from lines


def _lines(
    image: KSpace, average: int, data: NDArray[np.complex64], mask: NDArray[np.bool_]
) -> Iterator[_Readout]:
    """Yield the lines of `data` that `mask` (z, y, x) has samples of."""
    both = _bits(constants.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
    for z, y in np.argwhere(mask.any(axis=2)):
        found = np.flatnonzero(mask[z, y])
        start, stop = int(found[0]), int(found[-1]) + 1
        if found.size != stop - start or not start <= mask.shape[2] // 2 < stop:
            raise ValueError(f"line y = {y}, z = {z} has gaps or does not reach the echo")
        calibrates = image.calib_mask is not None and bool(image.calib_mask[z, y].any())
        samples = data[:, z, y, start:stop]
        yield _Readout(image, average, int(z), int(y), start, samples, both if calibrates else 0)


def _reversed(readout: _Readout) -> _Readout:
    return _flagged(replace(readout, samples=readout.samples[:, ::-1]), constants.ACQ_IS_REVERSE)


def _flagged(readout: _Readout, flag: int) -> _Readout:
    return replace(readout, flags=readout.flags | _bits(flag))


def _bits(flag: int) -> int:
    """Return ISMRMRD's flag number, which counts from 1, as a bit."""
    return 1 << (flag - 1)


def _noise_row(image: KSpace, noise: NoiseScan, number: int) -> tuple[Any, ...]:
    flags = _bits(constants.ACQ_IS_NOISE_MEASUREMENT)
    samples = noise.samples[number]
    head, trajectory, data = _row(_Readout(image, 0, 0, 0, 0, samples, flags), number)
    head["idx"] = 0
    head["sample_time_us"] = noise.dwell_us
    head["center_sample"] = samples.shape[1] // 2
    return head, trajectory, data


def _row(readout: _Readout, number: int) -> tuple[Any, ...]:
    """Return an acquisition as HDF5 has it: header, trajectory (none), samples as float pairs."""
    image, (coils, samples) = readout.image, readout.samples.shape
    head = np.zeros((), acquisition_header_dtype)
    head["version"] = 1
    head["flags"] = readout.flags
    head["scan_counter"] = number
    head["number_of_samples"] = samples
    head["available_channels"] = head["active_channels"] = coils
    head["channel_mask"][: coils // 64] = 2**64 - 1
    head["channel_mask"][coils // 64] = 2 ** (coils % 64) - 1
    # A reversed line has the centre of its neighbours, as scanners write it and the reader takes it.
    head["center_sample"] = image.data.shape[3] // 2 - readout.start
    head["sample_time_us"] = IMAGE_DWELL_US
    for name in ("position", "read_dir", "phase_dir", "slice_dir"):
        head[name] = getattr(image.geometry, name)
    head["patient_table_position"] = image.geometry.table_position
    head["idx"]["kspace_encode_step_1"] = readout.y
    head["idx"]["kspace_encode_step_2"] = readout.z
    head["idx"]["average"] = readout.average
    for name in COUNTERS:
        head["idx"][name] = getattr(image.index, name)
    for name, value in asdict(image.stamp).items():
        head[name] = value
    data = np.ascontiguousarray(readout.samples, np.complex64).view(np.float32).ravel()
    return head, np.empty(0, np.float32), data


def _xml(images: Sequence[KSpace], noise: NoiseScan | None) -> str:
    first = images[0]
    header = xsd.ismrmrdHeader(
        measurementInformation=xsd.measurementInformationType(
            patientPosition=xsd.patientPositionType.HFS, protocolName="phantom"
        ),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor="mri-qpan",
            relativeReceiverNoiseBandwidth=None if noise is None else noise.relative_bandwidth,
            receiverChannels=first.data.shape[0],
        ),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=LARMOR_HZ),
        encoding=[
            xsd.encodingType(
                encodedSpace=_space(first, first.data.shape[1:]),
                reconSpace=_space(first, first.recon_shape),
                encodingLimits=_limits(images),
                trajectory=xsd.trajectoryType.CARTESIAN,
                parallelImaging=_parallel(first),
            )
        ],
    )
    return xsd.ToXML(header)


def _space(image: KSpace, shape: tuple[int, ...]) -> xsd.encodingSpaceType:
    """Return a matrix (z, y, x) of the image's pixels, and its field of view."""
    z, y, x = shape
    pixels = zip(image.geometry.fov, image.recon_shape[::-1], (x, y, z), strict=True)
    lengths = [length * wanted / n for length, n, wanted in pixels]
    return xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=x, y=y, z=z),
        fieldOfView_mm=xsd.fieldOfViewMm(x=lengths[0], y=lengths[1], z=lengths[2]),
    )


def _limits(images: Sequence[KSpace]) -> xsd.encodingLimitsType:
    _, z, y, x = images[0].data.shape
    sizes = {f"kspace_encoding_step_{i}": (n, n // 2) for i, n in enumerate((x, y, z))}
    sizes["average"] = (max(Counter(image.index for image in images).values()), 0)
    for counter in COUNTERS:
        sizes[counter] = (1 + max(getattr(image.index, counter) for image in images), 0)
    limits = {name: xsd.limitType(minimum=0, maximum=n - 1, center=c) for name, (n, c) in sizes.items()}
    return xsd.encodingLimitsType(**limits)


def _parallel(image: KSpace) -> xsd.parallelImagingType | None:
    """Return the acceleration of an undersampled image, and where its calibration lines are."""
    lines = image.mask.any(axis=2)
    if lines.all():
        return None
    mode = xsd.calibrationModeType.OTHER
    if image.calib_mask is not None:
        inside = (image.calib_mask.any(axis=2) & lines).any()
        mode = xsd.calibrationModeType.EMBEDDED if inside else xsd.calibrationModeType.SEPARATE
    factor = xsd.accelerationFactorType(
        kspace_encoding_step_1=round(lines.size / int(lines.sum())), kspace_encoding_step_2=1
    )
    return xsd.parallelImagingType(accelerationFactor=factor, calibrationMode=mode)
