"""Small Siemens twix files of the layout since VD, written field by field."""

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
    header = struct.pack("<II", -(-(8 + len(buffers)) // 32) * 32, 2) + buffers
    header = header.ljust(struct.unpack_from("<I", header)[0], b"\0")
    blocks = [header + b"".join(lines) for lines in measurements.values()]
    blocks = [block.ljust(-(-len(block) // 512) * 512, b"\0") for block in blocks]
    file, offset = struct.pack("<II", 0, len(blocks)), 10240
    for name, block in zip(measurements, blocks, strict=True):
        file += struct.pack("<IIQQ64s64s", 3, 4, offset, len(block), b"x", name.encode())
        offset += len(block)
    path.write_bytes(file.ljust(10240, b"\0") + b"".join(blocks))
    return path
