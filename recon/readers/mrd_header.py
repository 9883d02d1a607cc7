"""The ISMRMRD header (XML), read leniently: files in the wild are not always valid against the schema."""

from dataclasses import dataclass
from xml.etree import ElementTree

from mri_qpan.errors import InputError

Element = ElementTree.Element
LARGEST_MATRIX = 65535  # ISMRMRD's counters are 16 bit: no larger matrix can be encoded


@dataclass(frozen=True)
class Space:
    """A matrix (x, y, z) and its field of view in mm, None where the header gives none."""

    matrix: tuple[int, int, int]
    fov: tuple[float, float, float] | None


@dataclass(frozen=True)
class Limit:
    """Range of an encoding counter and the value at the k-space centre."""

    minimum: int
    maximum: int
    center: int


@dataclass(frozen=True)
class EncodingHeader:
    """One `encoding` element: spaces, limits of the two phase-encoding counters, trajectory, acceleration.

    `bands` is how many slices were excited together, 1 where the header does not say.
    """

    encoded: Space
    recon: Space
    step_1: Limit | None
    step_2: Limit | None
    trajectory: str
    acceleration: tuple[float, float] | None
    calibration_mode: str | None
    bands: int


@dataclass(frozen=True)
class MrdHeader:
    """What the reader needs of the ISMRMRD header, and what was assumed while reading it (`notes`)."""

    encodings: tuple[EncodingHeader, ...]
    relative_noise_bandwidth: float | None
    vendor: str | None
    model: str | None
    field_strength: float | None
    protocol: str | None
    notes: tuple[str, ...]


def parse_header(xml: str | bytes, where: str) -> MrdHeader:
    """Parse an ISMRMRD header.

    Parameters
    ----------
    xml
        The document.
    where
        File name that error messages start with.

    Raises
    ------
    InputError
        If the XML does not parse, or has no encoding with a usable matrix.
    """
    return _Parser(where).header(xml)


def parse_xml(xml: str | bytes, where: str) -> Element:
    """Return the root of an ISMRMRD header, tags without their namespace.

    Raises
    ------
    InputError
        If the XML does not parse.
    """
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{where}: the ISMRMRD header is not valid XML ({error})") from error
    for element in root.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2]
    return root


def text_of(element: Element, path: str) -> str | None:
    """Return the text at a path below `element` without the blanks around it, None where there is none."""
    found = element.findtext(path)
    return found.strip() if found and found.strip() else None


class _Parser:
    """Walks the document and collects notes on what was not as the schema has it."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.notes: list[str] = []

    def header(self, xml: str | bytes) -> MrdHeader:
        root = parse_xml(xml, self.where)
        encodings = tuple(self._encoding(e, i) for i, e in enumerate(root.findall("encoding")))
        if not encodings:
            raise InputError(
                f"{self.where}: the ISMRMRD header has no <encoding>: it does not describe raw data"
            )
        system = "acquisitionSystemInformation/"
        return MrdHeader(
            encodings=encodings,
            relative_noise_bandwidth=self._float(root, system + "relativeReceiverNoiseBandwidth"),
            vendor=text_of(root, system + "systemVendor"),
            model=text_of(root, system + "systemModel"),
            field_strength=self._float(root, system + "systemFieldStrength_T"),
            protocol=text_of(root, "measurementInformation/protocolName"),
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _encoding(self, element: Element, number: int) -> EncodingHeader:
        encoded = self._space(element, "encodedSpace", number)
        if encoded is None:
            raise InputError(
                f"{self.where}: encoding {number} of the ISMRMRD header has no encodedSpace matrix size"
            )
        recon = self._space(element, "reconSpace", number)
        if recon is None:
            self.notes.append("the header has no reconSpace: the encoded matrix is delivered uncropped")
            recon = encoded
        trajectory = text_of(element, "trajectory")
        if trajectory is None:
            self.notes.append("the header names no trajectory: taken as Cartesian")
        factors = [
            self._float(element, f"parallelImaging/accelerationFactor/kspace_encoding_step_{i}")
            for i in (1, 2)
        ]
        return EncodingHeader(
            encoded=encoded,
            recon=recon,
            step_1=self._limit(element, "kspace_encoding_step_1"),
            step_2=self._limit(element, "kspace_encoding_step_2"),
            trajectory=(trajectory or "cartesian").lower(),
            acceleration=None if factors[0] is None else (factors[0], factors[1] or 1.0),
            calibration_mode=text_of(element, "parallelImaging/calibrationMode"),
            bands=self._integer(element, "parallelImaging/multiband/multiband_factor") or 1,
        )

    def _space(self, encoding: Element, name: str, number: int) -> Space | None:
        sizes = [self._integer(encoding, f"{name}/matrixSize/{axis}") for axis in "xyz"]
        if sizes[0] is None or sizes[1] is None:
            return None
        matrix = (sizes[0], sizes[1], 1 if sizes[2] is None else sizes[2])
        if not all(1 <= size <= LARGEST_MATRIX for size in matrix):
            shown = " x ".join(map(str, matrix))
            raise InputError(
                f"{self.where}: {name} of encoding {number} has the impossible matrix size {shown}"
            )
        lengths = [self._float(encoding, f"{name}/fieldOfView_mm/{axis}") for axis in "xyz"]
        if any(length is None or not 0 < length < 1e5 for length in lengths):
            return Space(matrix, None)
        x, y, z = (float(length or 0) for length in lengths)
        return Space(matrix, (x, y, z))

    def _limit(self, encoding: Element, counter: str) -> Limit | None:
        values = [
            self._integer(encoding, f"encodingLimits/{counter}/{key}")
            for key in ("minimum", "maximum", "center")
        ]
        if values[2] is None:
            return None
        return Limit(values[0] or 0, values[1] or 0, values[2])

    def _integer(self, element: Element, path: str) -> int | None:
        text = text_of(element, path)
        if text is None:
            return None
        try:
            return int(text)
        except ValueError:
            pass
        try:
            value = int(float(text))
            exact = value == float(text)
        except (ValueError, OverflowError):
            exact = False
        if not exact:
            raise InputError(
                f"{self.where}: {path} in the ISMRMRD header should be a whole number, it is {text!r}"
            )
        self.notes.append("the header writes whole numbers as decimals ('40.0'): read as whole numbers")
        return value

    def _float(self, element: Element, path: str) -> float | None:
        text = text_of(element, path)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not abs(value) < float("inf"):
            self.notes.append(
                f"{path.rpartition('/')[2]} in the header is not a number ({text!r:.40}): ignored"
            )
            return None
        return value
