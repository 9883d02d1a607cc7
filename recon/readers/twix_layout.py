"""What stands where in Siemens twix files: their readouts, with headers as since VD or as in VB."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.recon.readers.twix_header import Protocol

DMA_LENGTH = 2**25 - 1
COUNTERS = ("Lin", "Ave", "Sli", "Par", "Eco", "Phs", "Rep", "Set", "Seg", "Ida", "Idb", "Idc", "Idd", "Ide")
READOUT = np.dtype(
    [
        ("flags_and_length", "<u4"),
        ("measurement", "<i4"),
        ("scan_counter", "<u4"),
        ("time_stamp", "<u4"),
        ("pmu_time_stamp", "<u4"),
        ("system", "<u2", 2),
        ("table", "<i4", 3),
        ("reserved", "<i4"),
        ("mask", "<u8"),
        ("samples", "<u2"),
        ("channels", "<u2"),
        *((name, "<u2") for name in COUNTERS),
        ("cut_off", "<u2", 2),
        ("centre_column", "<u2"),
        ("coil_select", "<u2"),
        ("offcentre", "<f4"),
        ("since_rf", "<u4"),
        ("centre_line", "<u2"),
        ("centre_partition", "<u2"),
        ("position", "<f4", 3),
        ("quaternion", "<f4", 4),
        ("parameters", "<u2", 24),
        ("rest", "<u2", 8),
    ]
)
"""Siemens' header of a readout (MDH) since VD: 192 bytes, one for all channels."""

END, SYNC = 0, 5
"""Bits of a readout's mask: the measurement ends; physiology data that stand between readouts."""

LAST = 1024
"""Bytes at most, padding included, from the start of the readout that ends a measurement to that end.

They were 352 or 192 in files of four scanners; siemens_to_ismrmrd expects 160 after its header.
"""


@dataclass(frozen=True)
class Layout:
    """How a software line writes a readout.

    Attributes
    ----------
    mask
        Where in its header the mask stands, and behind it the numbers of samples and channels.
    header
        Bytes that stand once before all channels.
    channel_header
        Bytes before the samples of every channel.
    """

    mask: int
    header: int
    channel_header: int

    @property
    def least(self) -> int:
        """Bytes of a readout without samples."""
        return self.header or self.channel_header

    def size(self, samples: int, channels: int) -> int:
        """Bytes of a readout."""
        return self.header + channels * (self.channel_header + 8 * samples)


SINCE_VD = Layout(mask=40, header=192, channel_header=32)
VB = Layout(mask=20, header=0, channel_header=128)
"""VB repeats the whole header, of 128 bytes, before every channel."""


@dataclass(frozen=True)
class Measurement:
    """A measurement of a file: protocol name and values, headers of its readouts and where they stand."""

    name: str
    protocol: Protocol
    readouts: NDArray[np.void]
    places: NDArray[np.int64]


def damaged(path: Path, what: str) -> InputError:
    """Return the error of a file that breaks off or contradicts itself."""
    return InputError(f"{path}: damaged or truncated twix file: {what}")


def walk(path: Path, content: NDArray[np.uint8], place: int, end: int, layout: Layout) -> list[int]:
    """Return where a measurement's readouts stand, from `place` on.

    Raises
    ------
    InputError
        If they do not go on, one after the other, up to the one that ends the measurement.
    """
    found: list[int] = []
    while place + layout.least <= end:
        (word,) = struct.unpack_from("<I", content.data, place)
        mask, samples, channels = struct.unpack_from("<QHH", content.data, place + layout.mask)
        if mask >> END & 1:
            if end - place > LAST:  # samples taken for a header: half of them would say so
                raise damaged(path, f"readout {len(found) + 1} ends it, {end - place} bytes before its end")
            return found
        length = word & DMA_LENGTH
        if not mask >> SYNC & 1:
            found.append(place)
            length = layout.size(samples, channels)
        if length < layout.least or place + length > end:
            break
        place += length
    raise damaged(path, f"cut off after {max(0, len(found) - 1)} readouts of a measurement")


def buffers(path: Path, content: NDArray[np.uint8], start: int, end: int, parts: int) -> dict[str, bytes]:
    """Return the parts of a measurement's header by name; raises `InputError` if they do not fit into it."""
    text, found, place = content[start:end].tobytes(), {}, 0
    for _ in range(parts):
        stop = text.find(b"\0", place, place + 64)
        if stop < 0 or stop + 5 > len(text):
            raise damaged(path, "a measurement's header breaks off")
        (length,) = struct.unpack_from("<I", text, stop + 1)
        found[text[place:stop].decode("latin-1")] = text[stop + 5 : stop + 5 + length]
        place = stop + 5 + length
    return found
