"""Small Siemens twix files of the layout since VD, written field by field, and the same scan as VB has it."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PROTOCOL = {
    "sKSpace.lBaseResolution": "8",
    "sKSpace.lPhaseEncodingLines": "12",
    "sKSpace.lPartitions": "4",
    "sKSpace.ucDimension": "2",
    "sKSpace.ucTrajectory": "0x1",
    "sSliceArray.asSlice[0].dReadoutFOV": "160.0",
    "sSliceArray.asSlice[0].dPhaseFOV": "120.0",
    "sSliceArray.asSlice[0].dThickness": "5.0",
    "sRXSPEC.alDwellTime[0]": "10000",
    "alTR[0]": "250000",
    "alTE[0]": "4000",
    "lContrasts": "1",
    "adFlipAngleDegree[0]": "15.0",
}
PARAMETERS = (
    '<ParamLong."iNoOfFourierColumns">  { 16 }\n<ParamString."tPatientPosition"> { "HFS" }\n'
    '<ParamString."ManufacturersModelName"> { "Skyra & Co" }\n'
    '<ParamDouble."flMagneticFieldStrength"> { <Precision> 6 2.893620 }\n'
)
BITS = {
    "end": 0,
    "sync": 5,
    "phasecor": 21,
    "ref": 22,
    "ref_and_image": 23,
    "reflect": 24,
    "noise": 25,
    "sms": 38,
}
QUATERNION = (0.5, 0.5, 0.5, 0.5)


def readout(samples: NDArray[np.complex64], flags: Sequence[str] = (), **fields: object) -> bytes:
    """Return one readout (coil, sample) with its headers; `fields` are those of the MDH used here."""
    coils, length = samples.shape
    counters = [
        int(fields.get(n, 0)) for n in ("lin", "ave", "sli", "par", "eco", "phs", "rep", "set", "seg")
    ]
    mask = sum(1 << BITS[flag] for flag in flags)
    size = 192 + coils * (32 + 8 * length)
    head = struct.pack("<IiIII", size, 7, int(fields.get("counter", 1)), 1000, 20)
    head += struct.pack("<HHiiii", 0, 0, 0, 0, -50, 0) + struct.pack("<Q", mask)
    head += struct.pack("<HH", length, coils) + struct.pack("<14H", *counters, 0, 0, 0, 0, 0)
    head += struct.pack("<HH", *fields.get("cut", (0, 0)))
    head += struct.pack("<HHfI", int(fields.get("column", length // 2)), 0, 0.0, 0)
    head += struct.pack("<HH", int(fields.get("centre", 6)), int(fields.get("centre_par", 0)))
    head += struct.pack("<3f", *fields.get("position", (1.0, 2.0, 3.0)))
    head += struct.pack("<4f", *fields.get("quaternion", QUATERNION))
    head += struct.pack("<24H4HHHI", *[0] * 28, 0, 0, 0)
    assert len(head) == 192
    channels = [
        struct.pack("<IiIiIIHHI", 0, 7, 1, 0, 0, 0, c, 0, 0) + samples[c].astype("<c8").tobytes()
        for c in range(coils)
    ]
    return head + b"".join(channels)


def sync(size: int = 320) -> bytes:
    """Return physiology data, which stand between readouts."""
    return struct.pack("<I", size).ljust(40, b"\0") + struct.pack("<Q", 1 << BITS["sync"]).ljust(
        size - 40, b"\0"
    )


def end(coils: int = 1) -> bytes:
    """Return the readout that ends a measurement."""
    return readout(np.zeros((coils, 16), np.complex64), ["end"])


def write(
    path: Path,
    measurements: dict[str, Sequence[bytes]],
    protocol: dict[str, str] | None = None,
    parameters: str = PARAMETERS,
) -> Path:
    """Write a file of several measurements, all of one protocol."""
    header = _header(protocol, parameters, 0)
    blocks = [header + b"".join(lines) for lines in measurements.values()]
    blocks = [block.ljust(-(-len(block) // 512) * 512, b"\0") for block in blocks]
    file, offset = struct.pack("<II", 0, len(blocks)), 10240
    for name, block in zip(measurements, blocks, strict=True):
        file += struct.pack("<IIQQ64s64s", 3, 4, offset, len(block), b"x", name.encode())
        offset += len(block)
    path.write_bytes(file.ljust(10240, b"\0") + b"".join(blocks))
    return path


def write_vb(
    path: Path,
    lines: Sequence[bytes],
    protocol: dict[str, str] | None = None,
    parameters: str = PARAMETERS,
) -> Path:
    """Write a file of the software line VB, which holds one measurement; `lines` as in `write`."""
    least = 10240  # real headers are as long; shorter ones would pass for VD's list of measurements
    path.write_bytes(_header(protocol, parameters, least) + b"".join(map(_as_vb, lines)))
    return path


def _as_vb(line: bytes) -> bytes:
    """Return a readout of VD, or physiology data, as VB has it: a header of 128 bytes for every channel."""
    (mask,) = struct.unpack_from("<Q", line, 40)
    if mask >> BITS["sync"] & 1:
        return line[:20] + line[40:48] + bytes(20) + line[48:]
    length, coils = struct.unpack_from("<HH", line, 48)
    head = line[4:20] + line[40:100] + bytes(16) + line[100:128]
    size = struct.pack("<I", coils * (128 + 8 * length))
    channels = np.frombuffer(line[192:], np.uint8).reshape(coils, -1)[:, 32:]
    return b"".join(size + head + struct.pack("<HH", c, 0) + channels[c].tobytes() for c in range(coils))


def _header(protocol: dict[str, str] | None, parameters: str, least: int) -> bytes:
    values = PROTOCOL if protocol is None else protocol
    yaps = (
        "### ASCCONV BEGIN ###\n"
        + "".join(f"{k}\t = \t{v}\n" for k, v in values.items())
        + "### ASCCONV END ###"
    )
    buffers = b"".join(
        name + b"\0" + struct.pack("<I", len(text)) + text
        for name, text in ((b"Meas", parameters.encode()), (b"MeasYaps", yaps.encode()))
    )
    size = max(least, -(-(8 + len(buffers)) // 32) * 32)
    return (struct.pack("<II", size, 2) + buffers).ljust(size, b"\0")
