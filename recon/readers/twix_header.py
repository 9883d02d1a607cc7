"""The protocol in a Siemens twix file, as an ISMRMRD header much like that of `siemens_to_ismrmrd`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from xml.sax.saxutils import escape

from mri_qpan.errors import InputError

NOISE_BANDWIDTH = 0.793  # of Siemens' receivers, as siemens_to_ismrmrd has it
TRAJECTORIES = {1: "cartesian", 2: "radial", 4: "spiral", 8: "propeller"}
LINE = re.compile(r"^\s*([A-Za-z_][\w.\[\]]*)\s*=\s*(.*?)\s*$", re.MULTILINE)
THREE_D = 4


@dataclass(frozen=True)
class Extent:
    """What the counters of one phase-encoding direction show: their largest, and the k-space centre's."""

    largest: int
    centre: int

    @property
    def full(self) -> int:
        """How many places a k-space has that is symmetric about the centre and holds all counters."""
        return 2 * max(self.centre, self.largest + 1 - self.centre)


class Protocol:
    """The protocol of a measurement.

    Parameters
    ----------
    buffers
        The header's parts by name, as the file has them.
    path
        The file, for messages.
    """

    def __init__(self, buffers: dict[str, bytes], path: Path) -> None:
        self._meas = buffers.get("Meas", b"").decode("latin-1")
        self._yaps = buffers.get("MeasYaps", buffers.get("Phoenix", b"")).decode("latin-1")
        self._path = path

    @cached_property
    def _values(self) -> dict[str, str]:
        return dict(LINE.findall(self._yaps))

    def number(self, name: str, otherwise: float | None = None) -> float:
        """Return a value of the protocol ("sKSpace.lBaseResolution").

        Raises
        ------
        InputError
            If it is missing or no number, and nothing stands in.
        """
        text = self._values.get(name)
        try:
            value = float("x" if text is None else int(text, 16) if text.startswith("0x") else text)
        except ValueError:
            value = float("nan")
        if abs(value) < float("inf"):
            return value
        if otherwise is None:
            raise InputError(
                f"{self._path}: the protocol in this twix file has no usable {name}: {text!r:.40}"
            )
        return otherwise

    def parameter(self, name: str) -> str | None:
        """Return what the scanner's reconstruction is told ("iNoOfFourierColumns"), None where it is not."""
        pattern = (
            rf'<Param\w{{4,8}}\."{name}">\s*{{\s*(?:<Precision>\s*\d+\s*)?"?([^"{{}}<>]{{1,80}}?)"?\s*}}'
        )
        found = re.search(pattern, self._meas)
        return found.group(1).strip() if found else None

    @property
    def three_d(self) -> bool:
        """Whether a second direction is phase encoded."""
        return self.number("sKSpace.ucDimension", 2) == THREE_D

    @property
    def dwell_us(self) -> float:
        """Time of a sample of the readouts."""
        return self.number("sRXSPEC.alDwellTime[0]", 0) / 1000

    def header(self, name: str, columns: int, lines: Extent, partitions: Extent) -> str:
        """Return the ISMRMRD header (XML).

        Parameters
        ----------
        name
            Of the protocol.
        columns
            Samples of the longest readout.
        lines, partitions
            What the counters of the imaging readouts show.
        """
        base = max(1, int(self.number("sKSpace.lBaseResolution")))
        stated = self.parameter("iNoOfFourierColumns") or ""
        nx = int(stated) if stated.isdecimal() else columns
        phase_os = self.number("sKSpace.dPhaseOversamplingForDialog", 0)
        slice_os = self.number("sKSpace.dSliceOversamplingForDialog", 0) if self.three_d else 0.0
        ny = _with_oversampling(int(self.number("sKSpace.lPhaseEncodingLines")), phase_os, lines)
        nz = 1
        if self.three_d:
            nz = _with_oversampling(int(self.number("sKSpace.lPartitions")), slice_os, partitions)
        readout, phase, thickness = (
            self.number(f"sSliceArray.asSlice[0].{length}")
            for length in ("dReadoutFOV", "dPhaseFOV", "dThickness")
        )
        trajectory = TRAJECTORIES.get(int(self.number("sKSpace.ucTrajectory", 1)), "other")
        encoded = _space(
            "encodedSpace",
            (nx, ny, nz),
            (readout * nx / base, phase * (1 + phase_os), thickness * (1 + slice_os)),
        )
        recon = _space(
            "reconSpace",
            (min(nx, base), round(ny / (1 + phase_os)), max(1, round(nz / (1 + slice_os)))),
            (readout, phase, thickness),
        )
        limits = _limit("kspace_encoding_step_1", ny, lines) + _limit(
            "kspace_encoding_step_2", nz, partitions
        )
        return (
            '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
            f"<measurementInformation>{_element('patientPosition', self.parameter('tPatientPosition'))}"
            f"{_element('protocolName', name)}</measurementInformation>"
            f"<acquisitionSystemInformation>{_element('systemVendor', 'SIEMENS')}"
            f"{_element('systemModel', self.parameter('ManufacturersModelName'))}"
            f"{_element('systemFieldStrength_T', self.parameter('flMagneticFieldStrength'))}"
            f"<relativeReceiverNoiseBandwidth>{NOISE_BANDWIDTH}</relativeReceiverNoiseBandwidth>"
            "</acquisitionSystemInformation><experimentalConditions><H1resonanceFrequency_Hz>"
            f"{self.number('sTXSPEC.asNucleusInfo[0].lFrequency', 0):.0f}</H1resonanceFrequency_Hz>"
            f"</experimentalConditions><encoding>{encoded}{recon}<encodingLimits>{limits}</encodingLimits>"
            f"<trajectory>{trajectory}</trajectory></encoding>{self._sequence()}</ismrmrdHeader>"
        )

    def _sequence(self) -> str:
        """Return TR, TE (ms) and flip angle; protocols state a TI without an inversion too."""
        contrasts = min(max(1, int(self.number("lContrasts", 1))), 128)
        names = [("TR", "alTR[0]"), *(("TE", f"alTE[{n}]") for n in range(contrasts))]
        found = [(tag, self.number(name, 0) / 1000) for tag, name in names]
        found.append(("flipAngle_deg", self.number("adFlipAngleDegree[0]", 0)))
        elements = "".join(f"<{tag}>{value:g}</{tag}>" for tag, value in found if value > 0)
        return f"<sequenceParameters>{elements}</sequenceParameters>"


def _with_oversampling(stated: int, oversampling: float, extent: Extent) -> int:
    """Return the places of a direction: with or without oversampling in the protocol, the counters show."""
    with_it = round(stated * (1 + oversampling))
    return stated if abs(stated - extent.full) < abs(with_it - extent.full) else with_it


def _space(name: str, matrix: tuple[int, int, int], fov: tuple[float, float, float]) -> str:
    sizes = "".join(f"<{axis}>{n}</{axis}>" for axis, n in zip("xyz", matrix, strict=True))
    lengths = "".join(f"<{axis}>{mm:.6g}</{axis}>" for axis, mm in zip("xyz", fov, strict=True))
    return f"<{name}><matrixSize>{sizes}</matrixSize><fieldOfView_mm>{lengths}</fieldOfView_mm></{name}>"


def _limit(name: str, size: int, extent: Extent) -> str:
    return (
        f"<{name}><minimum>0</minimum><maximum>{max(size - 1, extent.largest)}</maximum>"
        f"<center>{extent.centre}</center></{name}>"
    )


def _element(name: str, text: str | None) -> str:
    return "" if not text else f"<{name}>{escape(text)}</{name}>"
