"""Siemens twix files (.dat), Cartesian, to `KSpace`.

A readout's header becomes ISMRMRD's as `siemens_to_ismrmrd` has it, and the images are then read as those of
an ISMRMRD file are: noise scans, calibration lines, averages, reflected readouts, slices and their places.
The directions alone are the converter's turned round: Siemens' samples are the conjugates of those whose
inverse transform has its axes along the quaternion's, as a scan of the ACR phantom shows, in which the air
bubble and the resolution insert tell anterior and left; pehses' twixtools turn them too. So do, of the
converter's files, PTB-MR's mrpro (issue 828) and aTrotier's ismrmrd_to_nifti, which was held against NIfTI of
the scanner; `readers.ismrmrd` says so and leaves them, for no file tells what wrote it.

Files of the software lines VD, VE and XA are read here and not by pymapvbvd, with which a test compares: it
takes a file that breaks off for a shorter scan. Those of VB are read with it (`twix_vb`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from ismrmrd import constants
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.recon.readers import twix_vb
from mri_qpan.recon.readers.ismrmrd import images_of
from mri_qpan.recon.readers.stream import KSpaceStream
from mri_qpan.recon.readers.twix_header import Extent, Protocol
from mri_qpan.recon.readers.twix_layout import READOUT, SINCE_VD, VB, Measurement, buffers, damaged, walk

SUFFIX = ".dat"
CONVERT = "convert it with siemens_to_ismrmrd (-f FILE.dat -o FILE.h5) and read the .h5"

NOTE = (
    "Siemens' .dat: where images lie was checked on one scan of a phantom; compare with the scanner's own"
    " images"
)
MOST_MEASUREMENTS = 64
ENTRY = struct.Struct("<IIQQ64s64s")  # ids, offset, length, patient, protocol

REFLECTED, NOISE, PHASE_CORRECTION = 24, 25, 21
REFERENCE, REFERENCE_AND_IMAGE = 22, 23
MULTIBAND = (38, 39)
FLAGS = {
    NOISE: constants.ACQ_IS_NOISE_MEASUREMENT,
    REFLECTED: constants.ACQ_IS_REVERSE,
    PHASE_CORRECTION: constants.ACQ_IS_PHASECORR_DATA,
    1: constants.ACQ_IS_NAVIGATION_DATA,
    2: constants.ACQ_IS_HPFEEDBACK_DATA,
    10: constants.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA,
    14: constants.ACQ_IS_NAVIGATION_DATA,
    15: constants.ACQ_IS_NAVIGATION_DATA,
    51: constants.ACQ_IS_DUMMYSCAN_DATA,
}
"""Bits of Siemens' mask, and ISMRMRD's flags."""

INDEX = {
    "kspace_encode_step_1": "Lin",
    "kspace_encode_step_2": "Par",
    "average": "Ave",
    "slice": "Sli",
    "contrast": "Eco",
    "phase": "Phs",
    "repetition": "Rep",
    "set": "Set",
    "segment": "Seg",
}
NOISE_DWELLS = {"AdjCoilSens": 5.0, "AdjQuietCoilSens": 4.0}  # microseconds, as siemens_to_ismrmrd has them


class TwixFile:
    """An open twix file; see `AcquisitionSource`.

    The last measurement is read, with the noise scan of an earlier one where it has none itself.

    Raises
    ------
    InputError
        If the file is no twix file of these software lines, is damaged or truncated, or cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        if path.stat().st_size < READOUT.itemsize:
            raise InputError(f"{path}: too short for a Siemens twix file")
        self._bytes = np.memmap(path, np.uint8, "r")
        vb = twix_vb.is_vb(self._bytes)
        self._layout = VB if vb else SINCE_VD
        measurements = (
            [twix_vb.read_measurement(path, self._bytes, CONVERT)] if vb else list(self._measurements())
        )
        read = measurements[-1]
        self.names = [measurement.name for measurement in measurements]
        self.name = read.name
        readouts, places = read.readouts, read.places
        dwell = self._dwell(read)
        earlier = [m for m in measurements[:-1] if _is(m.readouts, NOISE).any()]
        if not _is(readouts, NOISE).any() and earlier:
            noise = _is(earlier[-1].readouts, NOISE)
            noise &= np.isin(earlier[-1].readouts["channels"], readouts["channels"])
            readouts = np.concatenate([earlier[-1].readouts[noise], readouts])
            places = np.concatenate([earlier[-1].places[noise], places])
            dwell = np.concatenate([self._dwell(earlier[-1])[noise], dwell])
        self._places, self._readouts = places, readouts
        self.heads = _heads(readouts, dwell)
        self.xml = self._header(read)
        self.waveforms = 0  # those of a twix file are not read
        self.note = twix_vb.NOTE if vb else NOTE

    def samples(self, rows: NDArray[np.intp], field: str = "data") -> list[NDArray[np.float32]]:
        """Return the samples of acquisitions."""
        found = []
        for row in rows:
            channels, length = int(self._readouts["channels"][row]), int(self._readouts["samples"][row])
            layout = self._layout
            start, step = int(self._places[row]) + layout.header, layout.channel_header + 8 * length
            block = self._bytes[start : start + channels * step].reshape(channels, step)
            if layout is VB:
                twix_vb.check_channels(self.path, block)
            found.append(np.ascontiguousarray(block[:, layout.channel_header :]).view("<f4").ravel())
        return found

    def close(self) -> None:
        """Let go of the file."""
        self._bytes = np.zeros(0, np.uint8)  # type: ignore[assignment]

    def _measurements(self) -> Iterator[Measurement]:
        first, count = struct.unpack_from("<II", self._bytes.data)
        if first >= 10000 or not 1 <= count <= MOST_MEASUREMENTS:
            raise InputError(f"{self.path}: not a Siemens twix file that can be read here: {CONVERT}")
        for number in range(count):
            start = 8 + number * ENTRY.size
            if start + ENTRY.size > self._bytes.size:
                raise damaged(self.path, f"the entry of measurement {number + 1} lies beyond its end")
            _, _, offset, length, _, name = ENTRY.unpack_from(self._bytes.data, start)
            end = min(offset + length, self._bytes.size)
            if offset + 8 > end:
                raise damaged(self.path, f"measurement {number + 1} of {count} lies beyond its end")
            size, parts = struct.unpack_from("<II", self._bytes.data, offset)
            parts_of_it = buffers(self.path, self._bytes, offset + 8, min(offset + size, end), parts)
            places = walk(self.path, self._bytes, offset + size, end, SINCE_VD)
            readouts = np.zeros(len(places), READOUT)
            for row, place in enumerate(places):
                readouts[row] = np.frombuffer(self._bytes, READOUT, 1, place)[0]
            title = name.split(b"\0")[0].decode("latin-1")
            yield Measurement(title, Protocol(parts_of_it, self.path), readouts, np.array(places, np.int64))

    def _header(self, read: Measurement) -> str:
        mask = read.readouts
        imaging = ~np.any([_is(mask, bit) for bit in FLAGS if bit != REFLECTED], axis=0) & ~(
            _is(mask, REFERENCE) & ~_is(mask, REFERENCE_AND_IMAGE)
        )
        if np.any([_is(mask, bit) for bit in MULTIBAND]):
            raise InputError(
                f"{self.path}: simultaneous multi-slice is not read: its slices are not separated"
            )
        if not imaging.any():
            raise InputError(f"{self.path}: {read.name!r} has no imaging readouts among {len(mask)}")
        seen = read.readouts[imaging]
        lines = Extent(int(seen["Lin"].max()), int(seen["centre_line"][0]))
        partitions = Extent(int(seen["Par"].max()), int(seen["centre_partition"][0]))
        if _is(seen, REFLECTED).any() and _is(mask, PHASE_CORRECTION).any():
            raise InputError(
                f"{self.path}: echo-planar readouts are not read: their ghosts are not corrected"
            )
        return read.protocol.header(read.name, int(seen["samples"].max()), lines, partitions)

    def _dwell(self, measurement: Measurement) -> NDArray[np.float64]:
        """Return the time of a sample of every readout in microseconds."""
        samples = np.maximum(measurement.readouts["samples"], 1)
        if self._layout is VB:
            noise = 1e6 / samples / twix_vb.NOISE_BANDWIDTH
        else:
            noise = np.floor(76800.0 / samples) / 10
        noise[:] = NOISE_DWELLS.get(measurement.name, noise)
        return np.where(_is(measurement.readouts, NOISE), noise, measurement.protocol.dwell_us)


def read(path: Path) -> KSpaceStream:
    """Read the images of a Siemens twix file.

    Parameters
    ----------
    path
        A .dat file.

    Returns
    -------
    Stream of `KSpace`, as `readers.ismrmrd.read` makes it.

    Raises
    ------
    InputError
        As `TwixFile` does, or if the measurement contradicts itself or is not Cartesian.
    """
    file = TwixFile(path)
    indices, images = images_of(file)
    return KSpaceStream(indices, (replace(k, notes=(*k.notes, file.note)) for k in images), file.xml)


def _is(readouts: NDArray[np.void], bit: int) -> NDArray[np.bool_]:
    return (readouts["mask"] >> np.uint64(bit) & np.uint64(1)) != 0


def _heads(readouts: NDArray[np.void], dwell: NDArray[np.float64]) -> NDArray[np.void]:
    """Return readouts' headers as ISMRMRD's."""
    heads = np.zeros(len(readouts), ismrmrd.hdf5.acquisition_header_dtype)
    heads["version"] = 1
    flags = np.zeros(len(readouts), np.uint64)
    for bit, flag in FLAGS.items():
        flags |= np.where(_is(readouts, bit), np.uint64(1 << (flag - 1)), np.uint64(0))
    both = _is(readouts, REFERENCE_AND_IMAGE)
    alone = _is(readouts, REFERENCE) & ~both
    for where, flag in (
        (both, constants.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING),
        (alone, constants.ACQ_IS_PARALLEL_CALIBRATION),
    ):
        flags |= np.where(where, np.uint64(1 << (flag - 1)), np.uint64(0))
    heads["flags"] = flags
    heads["measurement_uid"] = readouts["measurement"].astype(np.uint32)
    heads["scan_counter"] = readouts["scan_counter"]
    heads["acquisition_time_stamp"] = readouts["time_stamp"]
    heads["physiology_time_stamp"][:, 0] = readouts["pmu_time_stamp"]
    heads["number_of_samples"] = readouts["samples"]
    heads["active_channels"] = heads["available_channels"] = readouts["channels"]
    heads["discard_pre"], heads["discard_post"] = readouts["cut_off"].T
    heads["center_sample"] = readouts["centre_column"]
    heads["sample_time_us"] = dwell
    heads["position"] = readouts["position"]
    heads["patient_table_position"] = readouts["table"]
    with np.errstate(over="ignore"):  # a damaged quaternion; what is not finite is no direction
        heads["phase_dir"], heads["read_dir"], heads["slice_dir"] = _directions(readouts["quaternion"])
    for name, counter in INDEX.items():
        heads["idx"][name] = readouts[counter]
    heads["user_int"] = readouts["parameters"][:, :8]
    return heads


def _directions(quaternion: NDArray[Any]) -> NDArray[np.float64]:
    """Return phase, read and slice direction, (3, row, 3), of quaternions (w, x, y, z).

    They are the columns of the rotations, turned round (see above).
    """
    w, x, y, z = quaternion.astype(np.float64).T
    with np.errstate(over="ignore", invalid="ignore"):
        columns = [
            [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)],
            [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)],
            [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)],
        ]
    return -np.array(columns).transpose(0, 2, 1)
