"""Siemens twix files of the software line VB, whose readouts pymapvbvd finds and decodes.

It takes a file that breaks off for a shorter one, and goes round in circles on some damaged ones (a readout
of no channels). So the readouts are followed here first, up to the one that ends the measurement, and what it
finds is held against that. Samples are taken from the file at its places: its own way, which draws progress
bars, took 17 times as long and three times the memory for 256 readouts of 16 channels.
"""

from __future__ import annotations

import importlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.recon.readers.twix_header import Protocol
from mri_qpan.recon.readers.twix_layout import COUNTERS, READOUT, VB, Measurement, buffers, damaged, walk

SHORTEST_HEADER = 10000  # bytes; in VD's place of it stands a small number
MOST_PARTS = 64
NOISE_BANDWIDTH = 130.0  # Hz a sample, as siemens_to_ismrmrd has it for VB
MISSING = 'twix files of the software line VB need pymapvbvd: pip install "mri-qpan[twix]", or'
NOTE = (
    "Siemens' .dat of the software line VB: no scanner's file of it was at hand when this reader was made;"
    " compare with the scanner's own images"
)

SAME = {
    "measurement": "lMeasUID",
    "scan_counter": "ulScanCounter",
    "time_stamp": "ulTimeStamp",
    "pmu_time_stamp": "ulPMUTimeStamp",
    "samples": "ushSamplesInScan",
    "channels": "ushUsedChannels",
    "cut_off": "sCutOff",
    "centre_column": "ushKSpaceCentreColumn",
    "coil_select": "ushCoilSelect",
    "offcentre": "fReadOutOffcentre",
    "since_rf": "ulTimeSinceLastRF",
    "centre_line": "ushKSpaceCentreLineNo",
    "centre_partition": "ushKSpaceCentrePartitionNo",
}
"""Fields of a header of VD, and what pymapvbvd calls them, as Siemens does."""


def is_vb(content: NDArray[np.uint8]) -> bool:
    """Return whether a file starts with a measurement's header, not with VD's list of measurements."""
    length, parts = struct.unpack_from("<II", content.data)
    return SHORTEST_HEADER <= length < content.size and 1 <= parts <= MOST_PARTS


def read_measurement(path: Path, content: NDArray[np.uint8], otherwise: str) -> Measurement:
    """Return the one measurement of a VB file.

    Parameters
    ----------
    path, content
        The file and its bytes.
    otherwise
        What else to do with the file if pymapvbvd is missing.

    Raises
    ------
    InputError
        If pymapvbvd is missing or does not read the file, or the file is damaged or truncated.
    """
    length, parts = struct.unpack_from("<II", content.data)
    protocol = Protocol(buffers(path, content, 8, length, parts), path)
    places = np.array(walk(path, content, length, content.size, VB), np.int64)
    if not places.size:
        raise damaged(path, "it has no readouts")
    try:
        library = importlib.import_module("mapvbvd.mapVBVD")
    except ImportError as error:
        raise InputError(f"{path}: {MISSING} {otherwise}") from error
    try:
        found, readouts = _decode(library, path, length)
    except Exception as error:  # whatever it trips over
        words = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise InputError(f"{path}: pymapvbvd does not read this VB file ({words}): {otherwise}") from error
    if not np.array_equal(found, places):
        raise damaged(path, f"pymapvbvd finds {len(found)} readouts, where it holds {len(places)}")
    return Measurement(protocol.parameter("tProtocolName") or path.stem, protocol, readouts, places)


def _decode(library: Any, path: Path, start: int) -> tuple[NDArray[np.int64], NDArray[np.void]]:
    """Return where pymapvbvd finds readouts, and their headers as those of VD.

    Its `mapVBVD` itself keeps of their masks only what it knows, and no simultaneous slices.
    """
    with path.open("rb") as file:
        file.seek(start)
        blob, places, _ = library.loop_mdh_read(file, "vb", 1, 0, 0, path.stat().st_size, print_prog=False)
    heads, _ = library.evalMDH(blob, "vb")
    readouts = np.zeros(len(places), READOUT)
    for field, name in SAME.items():
        readouts[field] = getattr(heads, name)
    for column, counter in enumerate(COUNTERS):
        readouts[counter] = heads.sLC[:, column]
    low, high = heads.aulEvalInfoMask.astype(np.uint64).T
    readouts["mask"] = low | high << np.uint64(32)
    readouts["position"], readouts["quaternion"] = heads.SlicePos[:, :3], heads.SlicePos[:, 3:]
    readouts["parameters"][:, : heads.aushIceProgramPara.shape[1]] = heads.aushIceProgramPara
    return places.astype(np.int64), readouts


def check_channels(path: Path, block: NDArray[np.uint8]) -> None:
    """Raise `InputError` if the channels of a readout, (channel, byte), are not all of the same readout."""
    same = block[:, [*range(4, 12), *range(28, 32)]]  # measurement, counter, numbers of samples and channels
    if (same != same[0]).any():
        raise damaged(path, "the channels of a readout belong to different ones")
