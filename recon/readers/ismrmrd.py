"""ISMRMRD raw data (MRD in HDF5) to `KSpace`, one an image.

Headers are read in bulk and checked before any sample is (`mrd_plan`); samples are then read in bulk, an
image at a time.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import ismrmrd
import numpy as np
from numpy.lib.recfunctions import require_fields
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.recon.kspace import Index, KSpace
from mri_qpan.recon.readers.absent import Absent, lines_note, samples_note, zero_ends
from mri_qpan.recon.readers.array_trajectory import short_notes
from mri_qpan.recon.readers.hdf5 import Hdf5Process
from mri_qpan.recon.readers.mrd_checks import name_of
from mri_qpan.recon.readers.mrd_kinds import Measurement, Rows, classify
from mri_qpan.recon.readers.mrd_plan import Plan, plan
from mri_qpan.recon.readers.mrd_slabs import Slabs, Spool
from mri_qpan.recon.readers.mrd_stack import find_stack, planes_of_stack
from mri_qpan.recon.readers.mrd_trajectory import TrajectoryPlan, is_along_trajectory, plan_trajectory
from mri_qpan.recon.readers.samples import check_samples
from mri_qpan.recon.readers.stream import KSpaceStream

BLOCK = 2**26  # bytes of samples read at once
WORKING = 12  # bytes that a reconstruction holds for each byte of the samples, its matrix filled
TURNED = (
    "Siemens data: files of siemens_to_ismrmrd were found to give directions for a forward Fourier transform"
    " (PTB-MR/mrpro, issue 828), which the format does not say. They are taken as they stand: images may be"
    " turned by 180 degrees in plane and slabs upside down; compare with the scanner's own"
)
WHOLE = (
    "needs more than the memory it was given: its readouts start or end at different samples, so it was not"
    " worked in parts"
)


class AcquisitionSource(Protocol):
    """Where acquisitions come from: a file, or a scanner (see `IsmrmrdFile` for what its parts mean)."""

    path: Path
    name: str
    names: list[str]
    xml: str
    heads: NDArray[np.void]
    waveforms: int

    def samples(self, rows: NDArray[np.intp], field: str = "data") -> list[NDArray[np.float32]]:
        """Return the numbers of a field of acquisitions, whose indices increase."""

    def close(self) -> None:
        """Give back what is held."""


class IsmrmrdFile:
    """An open file of ISMRMRD raw data.

    Attributes
    ----------
    path
        The file.
    name, names
        The dataset that is read, and all of its kind in the file.
    xml
        The ISMRMRD header.
    heads
        Header of every acquisition, a structured array of ISMRMRD's fields.
    waveforms
        How many waveforms lie beside the acquisitions.

    Raises
    ------
    InputError
        If the file is not ISMRMRD, or damaged.
    """

    def __init__(self, process: Hdf5Process) -> None:
        self.path = process.path
        if process.kind != "ismrmrd":
            raise InputError(f"{self.path}: an HDF5 file without ISMRMRD raw data")
        self.name: str = process.description["name"]
        self.names: list[str] = process.description["names"]
        self.xml: str = process.description["xml"]
        self.waveforms: int = process.description["waveforms"]
        self._process = process
        self.heads = self._canonical(process.arrays[0])

    def samples(self, rows: NDArray[np.intp], field: str = "data") -> list[NDArray[np.float32]]:
        """Return the numbers of a field of acquisitions, whose indices increase, read in bulk."""
        _, (lengths, numbers) = self._process.ask({"rows": rows.tolist(), "field": field}, 2)
        return np.split(numbers, np.cumsum(lengths)[:-1])

    def close(self) -> None:
        """Close the file."""
        self._process.close()

    def _canonical(self, heads: NDArray[Any]) -> NDArray[np.void]:
        """Return the headers with exactly ISMRMRD's fields, whatever their order and padding in the file."""
        expected = ismrmrd.hdf5.acquisition_header_dtype
        missing = _missing(expected, heads.dtype)
        if missing:
            raise InputError(f"{self.path}: the acquisition headers lack {missing}: not ISMRMRD 1.x")
        try:
            with np.errstate(invalid="ignore", over="ignore"):
                return require_fields(heads, expected)
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.path}: the acquisition headers are not ISMRMRD 1.x ({error})") from error


def _missing(expected: np.dtype[Any], found: np.dtype[Any]) -> str:
    """Return the first field of `expected` that `found` lacks, or ''."""
    for name in expected.names or ():
        if name not in (found.names or ()):
            return name
        inner = _missing(expected[name], found[name])
        if inner:
            return f"{name}.{inner}"
    return ""


def read(process: Hdf5Process, memory: int | None = None) -> KSpaceStream:
    """Read the images of an ISMRMRD file.

    Headers are checked here, samples when an image is taken from the stream.

    Parameters
    ----------
    process
        An open HDF5 file with one ISMRMRD dataset of any name.
    memory
        Bytes within which an image is to be reconstructed: a 3-D one with readouts of one extent that needs
        more comes as `Slabs`. None: never.

    Returns
    -------
    Stream of `KSpace`, one a slice (or 3-D slab), contrast, phase, repetition and set.

    Raises
    ------
    InputError
        If the file is not ISMRMRD, is damaged or contradicts itself.
    """
    file = IsmrmrdFile(process)
    indices, images = images_of(file, memory)
    if (_classify(file).header.vendor or "").upper().startswith("SIEMENS"):
        images = (replace(kspace, notes=(*kspace.notes, TURNED)) for kspace in images)
    return KSpaceStream(indices, images, file.xml)


def images_of(source: AcquisitionSource, memory: int | None = None) -> tuple[list[Index], Iterator[KSpace]]:
    """Return the images that a source's acquisitions make; else as `read`."""
    measurement = _classify(source)
    if is_along_trajectory(measurement):
        along = plan_trajectory(measurement)
        return list(along.images), _images_along(source, along)
    planned = plan(measurement)
    return list(planned.images), _images(source, planned, memory)


def header(path: str | Path) -> str:
    """Return the ISMRMRD header (XML) of a file; raises `InputError` as `read` does."""
    return inspect(path).xml


def inspect(path: str | Path) -> Measurement:
    """Read everything but the samples; raises `InputError` if that is impossible."""
    file = IsmrmrdFile(Hdf5Process(Path(path)))
    file.close()
    return _classify(file)


def _classify(file: AcquisitionSource) -> Measurement:
    return classify(file.path, file.names, file.name, file.xml, file.heads, file.waveforms)


def _images(file: AcquisitionSource, planned: Plan, memory: int | None) -> Iterator[KSpace]:
    try:
        noise = _noise_covariance(file, planned.measurement)
        for index, rows in planned.images.items():
            large = memory is not None and _exceeds(memory, planned, index)
            span = _common_span(planned, index) if large else None
            if memory is not None and span is not None:
                yield _slabs(file, planned, index, noise, memory, span)
                continue
            image = _image(file, planned, index, rows, noise)
            yield replace(image, notes=(*image.notes, WHOLE)) if large else image
    finally:
        file.close()


def _image(
    file: AcquisitionSource, planned: Plan, index: Index, rows: Rows, noise: NDArray[np.complex128] | None
) -> KSpace:
    data, counts, found = _average(file, planned, index, rows)
    calib = calib_mask = None
    calib_rows = planned.calibration_rows(index)
    if calib_rows.size:
        calib, calib_counts, _ = _average(file, planned, index, calib_rows)
        calib_mask = calib_counts > 0
    if noise is not None and counts.any():
        noise = noise * planned.noise_scale(index) / np.median(counts[counts > 0])
    return KSpace(
        data=data,
        mask=counts > 0,
        recon_shape=planned.recon_shape(index),
        geometry=planned.geometry(index),
        index=index,
        stamp=planned.stamp(index),
        calib=calib,
        calib_mask=calib_mask,
        noise_covariance=None if noise is None else noise.astype(np.complex64),
        notes=(*planned.notes(index), *found),
    )


def _exceeds(memory: int, planned: Plan, index: Index) -> bool:
    """Whether an image is 3-D and needs more than so many bytes."""
    grid = planned.grids[index.encoding]
    channels = int(planned.measurement.heads["active_channels"][planned.images[index][0]])
    return grid.shape[0] > 1 and 8 * channels * math.prod(grid.shape) * WORKING > memory


def _common_span(planned: Plan, index: Index) -> tuple[int, int] | None:
    """Return where the readouts of an image and its calibration start and stop, if all do alike."""
    grid = planned.grids[index.encoding]
    rows = np.concatenate([planned.images[index], planned.calibration_rows(index)])
    start, stop = int(grid.start[rows[0]]), int(grid.stop[rows[0]])
    alike = (grid.start[rows] == start) & (grid.stop[rows] == stop)
    return (start, stop) if alike.all() else None


def _slabs(
    file: AcquisitionSource,
    planned: Plan,
    index: Index,
    noise: NDArray[np.complex128] | None,
    memory: int,
    span: tuple[int, int],
) -> Slabs:
    """Transform an image's lines along the readout into a temporary file."""
    encoded = planned.grids[index.encoding].shape[2]
    complete = span == (0, encoded)
    width = planned.recon_shape(index)[2] if complete else encoded

    def spool(rows: Rows) -> Spool:
        return _spool(file, planned, index, rows, memory, width, None if complete else span, cut)

    cut = (0, 0)
    imaging = spool(planned.images[index])
    cut = zero_ends(imaging.spectrum > 0)
    found = lines_note(imaging.empty)
    if any(cut):
        found.append(samples_note(sum(cut) / imaging.spectrum.size))
        # Zeros where an asymmetric echo has no samples: one of that span.
        complete, width, span = False, encoded, (span[0] + cut[0], span[1] - cut[1])
        imaging = spool(planned.images[index])
    calib_rows = planned.calibration_rows(index)
    calibration = spool(calib_rows) if calib_rows.size else None
    if noise is not None and imaging.counts.any():
        noise = noise * planned.noise_scale(index) / np.median(imaging.counts[imaging.counts > 0])
    empty = np.zeros((0, 0, 0, 0), np.complex64)
    return Slabs(
        data=empty,
        mask=(imaging.counts > 0)[..., None],
        recon_shape=planned.recon_shape(index),
        geometry=planned.geometry(index),
        index=index,
        stamp=planned.stamp(index),
        calib=None if calibration is None else empty,
        calib_mask=None if calibration is None else (calibration.counts > 0)[..., None],
        noise_covariance=None if noise is None else noise.astype(np.complex64),
        notes=(*planned.notes(index), *found),
        width=width,
        span=None if complete else span,
        imaging=imaging,
        calibration=calibration,
    )


def _spool(
    file: AcquisitionSource,
    planned: Plan,
    index: Index,
    rows: Rows,
    memory: int,
    width: int,
    span: tuple[int, int] | None,
    cut: tuple[int, int],
) -> Spool:
    heads, grid, reverse = file.heads, planned.grids[index.encoding], planned.measurement.reverse
    spool = Spool(grid.z[rows], grid.y[rows], (*grid.shape[:2], width), span)
    line_bytes = 8 * int(heads["active_channels"][rows[0]]) * grid.shape[2]
    several = max(1, min(BLOCK, memory // 16) // line_bytes)
    for start in range(0, len(rows), several):
        block = []
        for row, line in _lines(file, rows[start : start + several]):
            kept = line[:, heads["discard_pre"][row] : line.shape[1] - heads["discard_post"][row]]
            kept = kept[:, ::-1] if reverse[row] else kept
            block.append(kept[:, cut[0] : kept.shape[1] - cut[1]])
        spool.write(np.stack(block))
    return spool


def _average(
    file: AcquisitionSource, planned: Plan, index: Index, rows: Rows
) -> tuple[NDArray[np.complex64], NDArray[np.uint16], list[str]]:
    """Average lines on the grid.

    Returns
    -------
    Samples (coil, z, y, x), how many went into each, (z, y, x), and notes on what was left out because it
    is zero in every channel.
    """
    heads, grid, reverse = file.heads, planned.grids[index.encoding], planned.measurement.reverse
    shape = int(heads["active_channels"][rows[0]]), *grid.shape
    try:
        data, counts = np.zeros(shape, np.complex64), planned.counts(index, rows)
    except MemoryError as error:
        shown = " x ".join(map(str, shape))
        raise InputError(f"{file.path}: {shown} samples (coil, z, y, x) do not fit into memory") from error
    absent = Absent(counts)
    for row, line in _lines(file, rows):
        kept = line[:, heads["discard_pre"][row] : line.shape[1] - heads["discard_post"][row]]
        kept = kept[:, ::-1] if reverse[row] else kept
        here = grid.z[row], grid.y[row], slice(grid.start[row], grid.stop[row])
        absent.note(here, kept)
        place = data[:, *here]
        place += kept
    notes = absent.finish()
    if counts.max() > 1:
        data /= np.maximum(counts, 1).astype(np.float32)
    return data, counts, notes


def _images_along(file: AcquisitionSource, planned: TrajectoryPlan) -> Iterator[KSpace]:
    """Read images whose samples lie along a trajectory."""
    try:
        noise = _noise_covariance(file, planned.measurement)
        for index, rows in planned.images.items():
            yield _image_along(file, planned, index, rows, noise)
    finally:
        file.close()


def _image_along(
    file: AcquisitionSource,
    planned: TrajectoryPlan,
    index: Index,
    rows: Rows,
    noise: NDArray[np.complex128] | None,
) -> KSpace:
    """Read one image whose samples lie along a trajectory; a stack is transformed along z."""
    lines = [line[:, planned.kept(row)] for row, line in _lines(file, rows)]
    paths = zip(rows, file.samples(rows, "traj"), strict=True)
    raw = [planned.coordinates(row, path)[planned.kept(row)] for row, path in paths]
    coord = planned.in_encoded_field_of_view(raw, rows)
    every = np.concatenate(coord)[:, -2:]
    notes = [*planned.notes(index), *short_notes(every, planned.encoded[-2:]), *planned.unit_notes(every)]
    space = planned
    stack = find_stack(coord, int(planned.encoded[0])) if coord[0].shape[1] == 3 else None
    if stack is not None:
        coord = [coord[row][:, 1:] for row in stack.rows[0]]
        number = f"{stack.partitions.size} of {stack.depth} partitions"
        notes.append(f"{number}, all along one trajectory: transformed along z")
        if stack.partitions.size > 1:  # a single one is a slice: nothing is resolved along z
            space, said = planned.of_stack()
            notes += said
    places = np.concatenate(coord)
    places = (places / planned.ratio[-places.shape[1] :]).astype(np.float32)
    inside = planned.inside(places)
    if not inside.any():
        raise InputError(f"{file.path}: every sample lies beyond the delivered matrix's k-space")
    if not inside.all():
        notes.append(f"{(~inside).mean():.1%} of the samples lie beyond the delivered resolution: left out")
    if stack is None:
        data = np.concatenate(lines, axis=1)[:, None, None, inside]
    else:
        data = planes_of_stack(stack, lines, inside, space.recon_shape[0])
    return KSpace(
        data=data,
        mask=np.ones(data.shape[1:], bool),
        recon_shape=space.recon_shape,
        geometry=space.geometry(index),
        index=index,
        stamp=planned.stamp(index),
        noise_covariance=None if noise is None else (planned.noise_scale(index) * noise).astype(np.complex64),
        notes=tuple(notes),
        coord=places[inside],
    )


def _noise_covariance(file: AcquisitionSource, measurement: Measurement) -> NDArray[np.complex128] | None:
    """Covariance of the samples of the noise scans, (coil, coil), or None without any."""
    rows = np.flatnonzero(measurement.noise)
    if not rows.size:
        return None
    noise = np.concatenate([line for _, line in _lines(file, rows)], axis=1).astype(np.complex128)
    return noise @ noise.conj().T / noise.shape[1]


def _lines(file: AcquisitionSource, rows: Rows) -> Iterator[tuple[int, NDArray[np.complex64]]]:
    """Yield each of the rows and its samples (coil, sample), read in blocks."""
    heads = file.heads
    payload = 8 * heads["active_channels"][rows].astype(np.int64) * heads["number_of_samples"][rows]
    blocks = np.cumsum(payload) // BLOCK
    for block in np.split(rows, np.flatnonzero(np.diff(blocks)) + 1):
        for row, numbers in zip(block, file.samples(block), strict=True):
            yield int(row), _line(file, int(row), numbers)


def _line(file: AcquisitionSource, row: int, numbers: NDArray[np.float32]) -> NDArray[np.complex64]:
    heads = file.heads
    channels, length = int(heads["active_channels"][row]), int(heads["number_of_samples"][row])
    if numbers.size != 2 * channels * length:
        raise InputError(
            f"{file.path}: {name_of(heads, row)} holds {numbers.size} numbers where its header says "
            f"{channels} channels of {length} complex samples: the file is damaged or truncated"
        )
    check_samples(numbers, file.path, name_of(heads, row))
    return numbers.view(np.complex64).reshape(channels, length)
