"""MRD 2 streams (mrd-python), as programs pass them on through pipes: acquisitions in, images out.

Acquisitions become those of ISMRMRD 1, whose counters and flags MRD 2 kept; all else here works on those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO
from xml.etree.ElementTree import Element, SubElement, tostring

import ismrmrd
import numpy as np

from mri_qpan.errors import InputError, MriQpanError
from mri_qpan.recon.job import Job
from mri_qpan.recon.serving.painter import Painter
from mri_qpan.recon.serving.session import Session

if TYPE_CHECKING:
    import mrd

WHERE = "MRD 2 stream"
NAMESPACE = "http://www.ismrm.org/ISMRMRD"
LOOPS = ("average", "slice", "contrast", "phase", "repetition", "set")
LIMITS = ("kspace_encoding_step_1", "kspace_encoding_step_2", *LOOPS)
COUNTERS = ("kspace_encode_step_1", "kspace_encode_step_2", *LOOPS, "segment")
SCALARS = ("scan_counter", "discard_pre", "discard_post", "center_sample", "encoding_space_ref")
VECTORS = ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position")
USERS = ("user_int", "user_float")
MS = 10**6  # nanoseconds
SYSTEM = {
    "system_vendor": "systemVendor",
    "system_model": "systemModel",
    "system_field_strength_t": "systemFieldStrength_T",
    "relative_receiver_noise_bandwidth": "relativeReceiverNoiseBandwidth",
    "receiver_channels": "receiverChannels",
}


def reconstruct_stream(
    source: BinaryIO, sink: BinaryIO, job: Job, most: int, tell: Callable[[str], None]
) -> tuple[int, int, int]:
    """Read an MRD 2 stream and write one with its images, each as soon as its last line is there.

    The header and images that were in the stream go through as they are.

    Parameters
    ----------
    source, sink
        The streams.
    job
        How to reconstruct.
    most
        Bytes of samples that may wait for their image to be complete.
    tell
        Called with warnings, notes and what failed.

    Returns
    -------
    int, int, int
        Images reconstructed, those that failed, and those passed on.

    Raises
    ------
    InputError
        If mrd-python is missing, or the stream is damaged; what was written by then is a whole stream.
    """
    try:
        import mrd
    except ImportError as error:
        raise InputError('mrd-python is missing, which reads MRD 2: pip install "mri-qpan[mrd2]"') from error
    try:
        reader = mrd.BinaryMrdReader(source)
        header = reader.read_header()
    except Exception as error:  # its parser fails in many ways
        raise InputError(f"{WHERE}: not MRD 2 of this mrd-python's version: {_said(error)}") from error
    if header is None:
        raise InputError(f"{WHERE}: there is no header: nothing tells the matrix")
    _take_what_arrived(reader)
    with mrd.BinaryMrdWriter(sink) as writer:
        worker = _Worker(job, header_xml(header), most, tell, partial(_send_on, writer))
        writer.write_header(header)
        writer.write_data(worker.items(reader.read_data()))
    if worker.damage is not None:
        raise worker.damage
    return worker.images, worker.failures, worker.passed


def _take_what_arrived(reader: Any) -> None:
    """Let mrd-python's reader go on with what has arrived; its own waits until 64 KiB have, or the end."""
    stream: Any = getattr(reader, "_stream", None)
    inner = ("_stream", "_buffer", "_offset", "_last_read_count", "_fill_buffer")
    if not all(hasattr(stream, name) for name in inner) or not hasattr(stream._stream, "readinto1"):
        return  # another version of it, which is only slower

    def fill(least: int = 0) -> None:
        count = stream._last_read_count - stream._offset
        stream._buffer[:count] = stream._buffer[stream._offset : stream._last_read_count]
        stream._offset = 0
        while count < max(1, least) and (
            more := stream._stream.readinto1(memoryview(stream._buffer)[count:])
        ):
            count += more
        stream._last_read_count = count
        stream._at_end = not count
        if count < least:
            raise EOFError("Unexpected EOF")

    stream._fill_buffer = fill


def _send_on(writer: Any) -> None:
    """Have mrd-python's writer send all it holds; its own waits until 64 KiB have come together."""
    stream: Any = getattr(writer, "_stream", None)
    if hasattr(stream, "flush"):
        stream.flush()


class _Worker:
    """Turns the items of one stream into those of another; `sent` is called when one has been taken."""

    def __init__(
        self, job: Job, xml: str, most: int, tell: Callable[[str], None], sent: Callable[[], None]
    ) -> None:
        self._session, self._painter, self._tell = Session(xml, WHERE, most), Painter(job, xml, WHERE), tell
        self._sent = sent
        self.images = self.failures = self.passed = 0
        self.damage: InputError | None = None

    def items(self, items: Iterator[Any]) -> Iterator[Any]:
        """Yield images; damage ends the stream, and is told of afterwards."""
        import mrd

        try:
            for item in items:
                if isinstance(item, mrd.StreamItem.Acquisition):
                    taken = acquisition(item.value)
                    for lines in self._session.make_room(taken):
                        yield from self._paint(lines)
                    for lines in self._session.add(taken):
                        yield from self._paint(lines)
                elif type(item).__name__.startswith("StreamItem.Image"):
                    self.passed += 1
                    yield item
                    self._sent()
            for lines in self._session.rest():
                yield from self._paint(lines)
        except InputError as error:
            self.damage = error
        except OSError:
            raise
        except Exception as error:
            self.damage = InputError(f"{WHERE}: damaged: {_said(error)}")

    def _paint(self, lines: Any) -> Iterator[Any]:
        made: list[Any] = []
        try:
            made += map(image_item, self._painter.paint(lines, self._tell))
        except Exception as error:  # one that nobody expected, too: the other images are still due
            self.failures += 1
            kind = "" if isinstance(error, MriQpanError) else f"{type(error).__name__}: "
            self._tell(f"error: {kind}{error}")
        for item in made:
            self.images += 1
            yield item
            self._sent()


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def header_xml(header: mrd.Header) -> str:
    """Return the ISMRMRD 1 header with what a reconstruction needs of an MRD 2 one."""
    root = Element("ismrmrdHeader", xmlns=NAMESPACE)
    system = header.acquisition_system_information
    if system is not None:
        within = SubElement(root, "acquisitionSystemInformation")
        for name, tag in SYSTEM.items():
            _add(within, tag, getattr(system, name))
    conditions = SubElement(root, "experimentalConditions")
    _add(conditions, "H1resonanceFrequency_Hz", header.experimental_conditions.h1resonance_frequency_hz)
    for encoding in header.encoding:
        _encoding(SubElement(root, "encoding"), encoding)
    return tostring(root, encoding="unicode")


def _encoding(within: Element, encoding: mrd.EncodingType) -> None:
    for tag, space in (("encodedSpace", encoding.encoded_space), ("reconSpace", encoding.recon_space)):
        parts = SubElement(within, tag)
        for name, values in (("matrixSize", space.matrix_size), ("fieldOfView_mm", space.field_of_view_mm)):
            sizes = SubElement(parts, name)
            for axis in "xyz":
                _add(sizes, axis, getattr(values, axis))
    limits = SubElement(within, "encodingLimits")
    for name in LIMITS:
        limit = getattr(encoding.encoding_limits, name)
        if limit is not None:
            ends = SubElement(limits, name)
            for end in ("minimum", "maximum", "center"):
                _add(ends, end, getattr(limit, end))
    _add(within, "trajectory", encoding.trajectory.name.lower())
    parallel = encoding.parallel_imaging
    if parallel is not None:
        imaging = SubElement(within, "parallelImaging")
        factors = SubElement(imaging, "accelerationFactor")
        for step in ("kspace_encoding_step_1", "kspace_encoding_step_2"):
            _add(factors, step, getattr(parallel.acceleration_factor, step))
        if parallel.calibration_mode is not None:
            _add(imaging, "calibrationMode", parallel.calibration_mode.name.lower())
        if parallel.multiband is not None:
            multiband = SubElement(imaging, "multiband")
            _add(multiband, "multiband_factor", parallel.multiband.multiband_factor)


def _add(within: Element, tag: str, value: object) -> None:
    if value is not None:
        SubElement(within, tag).text = str(value)


def acquisition(found: mrd.Acquisition) -> Any:
    """Return an MRD 2 acquisition as `ismrmrd.Acquisition`; raises `InputError` if its parts do not fit."""
    data = np.asarray(found.data, np.complex64)
    if data.ndim != 2:
        raise InputError(f"{WHERE}: samples of an acquisition are (coil, sample), not {data.shape}")
    path = np.asarray(found.trajectory, np.float32)
    if path.size and (path.ndim != 2 or data.shape[1] not in path.shape):
        raise InputError(f"{WHERE}: a trajectory of shape {path.shape} for samples of shape {data.shape}")
    # MRD 2 has (dimension, sample); its converter from ISMRMRD leaves them as they were there.
    along = None if not path.size else path if path.shape[0] == data.shape[1] else path.T
    made = ismrmrd.Acquisition.from_array(data, None if along is None else np.ascontiguousarray(along))
    head = found.head
    made.flags = int(head.flags)
    made.measurement_uid = head.measurement_uid
    for name in COUNTERS:
        setattr(made.idx, name, getattr(head.idx, name) or 0)
    for name in SCALARS:
        setattr(made, name, getattr(head, name) or 0)
    for name in VECTORS:
        getattr(made, name)[:] = [float(value) for value in getattr(head, name)]
    for name in USERS:
        values = getattr(head, name)[: len(getattr(made, name))]
        getattr(made, name)[: len(values)] = values
    made.acquisition_time_stamp = _in_units(head, "acquisition_time_stamp", MS)
    physiology = _physiology(head)[: len(made.physiology_time_stamp)]
    made.physiology_time_stamp[: len(physiology)] = physiology
    made.sample_time_us = _in_units(head, "sample_time", 10**3, "_us")
    return made


def _in_units(head: Any, name: str, nanoseconds: int, suffix: str = "") -> Any:
    """Return a time in ISMRMRD's unit: MRD 2.2 counts nanoseconds, 2.1 does not."""
    precise = getattr(head, f"{name}_ns", None)
    if precise is None:
        return getattr(head, f"{name}{suffix}", None) or 0
    return precise / nanoseconds if suffix else precise // nanoseconds


def _physiology(head: Any) -> list[int]:
    """Return what `_in_units` does of the time stamps after triggers."""
    precise = getattr(head, "physiology_time_stamp_ns", None)
    return list(head.physiology_time_stamp) if precise is None else [stamp // MS for stamp in precise]


def image_item(message: Any) -> Any:
    """Return an image of `painter.Painter` as an item of an MRD 2 stream."""
    import mrd

    head = mrd.ImageHeader(image_type=mrd.ImageType.MAGNITUDE)
    head.flags = mrd.ImageFlags(int(message.flags))
    head.measurement_uid = message.measurement_uid
    for ours, theirs in (
        ("field_of_view", "field_of_view"),
        ("position", "position"),
        ("read_dir", "col_dir"),
        ("phase_dir", "line_dir"),
        ("slice_dir", "slice_dir"),
        ("patient_table_position", "patient_table_position"),
    ):
        getattr(head, theirs)[:] = list(getattr(message, ours))
    for name in LOOPS:
        setattr(head, name, int(getattr(message, name)))
    head.image_index, head.image_series_index = int(message.image_index), int(message.image_series_index)
    for name in USERS:
        setattr(head, name, list(getattr(message, name)))
    stamp, physiology = int(message.acquisition_time_stamp), list(message.physiology_time_stamp)
    if hasattr(head, "acquisition_time_stamp_ns"):
        head.acquisition_time_stamp_ns = stamp * MS
        head.physiology_time_stamp_ns = [moment * MS for moment in physiology]
    else:
        head.acquisition_time_stamp, head.physiology_time_stamp = stamp, physiology
    meta = {
        name: [mrd.ImageMetaValue.String(str(value)) for value in _values(values)]
        for name, values in message.meta.items()
    }
    return mrd.StreamItem.ImageInt16(mrd.Image(head=head, data=message.data.astype(np.int16), meta=meta))


def _values(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]
