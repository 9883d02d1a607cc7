"""Images to DICOM: one MR Image Storage file a plane, as archives and viewers take them."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import ReconError
from mri_qpan.recon.geometry import Array, affine_lps, stack, volumes, voxel_size
from mri_qpan.recon.kspace import Image, ImageSeries, Index, Quantity
from mri_qpan.recon.readers.mrd_header import Element, parse_xml, text_of
from mri_qpan.recon.upright import turns_of, upright
from mri_qpan.recon.writers.moments import trigger_times
from mri_qpan.recon.writers.png import counted, varying
from mri_qpan.recon.writers.window import window_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

WHITEST = 32767  # some viewers take 16 bits as signed
PART = 1 << 20  # bytes of each part of an input that tells it from others
NAMESPACE = uuid.UUID("6b1f0c1e-4a39-4a39-9f5e-6f3f1f0f7d52")
PRIVATE_GROUP = 0x2025
NUMBERED = re.compile(r"(.+)_(\d{4}|[1-9]\d{4,})\.dcm", re.DOTALL)
PROCESSING_EQUIPMENT = ("109102", "DCM", "Processing Equipment")

TEXTS = {
    "PatientName": ("subjectInformation/patientName", 64),
    "PatientID": ("subjectInformation/patientID", 64),
    "StudyID": ("studyInformation/studyID", 16),
    "AccessionNumber": ("studyInformation/accessionNumber", 16),
    "ReferringPhysicianName": ("studyInformation/referringPhysicianName", 64),
    "StudyDescription": ("studyInformation/studyDescription", 64),
    "ProtocolName": ("measurementInformation/protocolName", 64),
    "Manufacturer": ("acquisitionSystemInformation/systemVendor", 64),
    "ManufacturerModelName": ("acquisitionSystemInformation/systemModel", 64),
    "InstitutionName": ("acquisitionSystemInformation/institutionName", 64),
    "StationName": ("acquisitionSystemInformation/stationName", 16),
    "DeviceSerialNumber": ("acquisitionSystemInformation/deviceSerialNumber", 64),
}
"""DICOM keyword: path in the ISMRMRD header, longest value that DICOM allows."""

PERSONS = ("PatientName", "ReferringPhysicianName")

DATES = {
    "PatientBirthDate": "subjectInformation/patientBirthdate",
    "StudyDate": "studyInformation/studyDate",
    "SeriesDate": "measurementInformation/seriesDate",
}
TIMES = {"StudyTime": "studyInformation/studyTime", "SeriesTime": "measurementInformation/seriesTime"}
EARLIEST = 1000  # year; those before stand for none, as 0001-01-01 of anonymisers
NUMBERS = {
    "PatientWeight": ("subjectInformation/patientWeight_kg", 1.0),
    "MagneticFieldStrength": ("acquisitionSystemInformation/systemFieldStrength_T", 1.0),
    "ImagingFrequency": ("experimentalConditions/H1resonanceFrequency_Hz", 1e-6),
}
PARAMETERS = {"RepetitionTime": "TR", "EchoTime": "TE", "InversionTime": "TI", "FlipAngle": "flipAngle_deg"}
EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "StudyID",
    "AccessionNumber",
    "StudyDate",
    "StudyTime",
)
"""What a file must have, if only empty."""


def write_dicom(path: Path, series: ImageSeries) -> None:
    """Write the magnitudes of a series as DICOM, `<path without suffix>_<number>.dcm`, one a plane.

    Planes are turned as a radiologist looks at them (`upright`): few viewers turn what they are given.

    16-bit pixels on one scale for the whole series, and one window for it. RescaleSlope is 1: the input's
    units are often so small that a window in them would be narrower than DICOM allows. They stand in the
    RealWorldValueMappingSequence. Of maps that are pure numbers (SNR, g-factor) RescaleSlope gives the
    numbers, so that a viewer's region of interest reads them. Images of a cine say when after the trigger
    they were measured, where their time stamps do (`trigger_times`). Repetitions, phases and sets are
    temporal positions, numbered in this order; ImageComments have their counters.

    Patient, study, equipment and sequence come from the ISMRMRD header, and with it the study's UID where it
    has one: otherwise series of one input share one made from the input's path and header. Every file has a
    new SOPInstanceUID and every call a new SeriesInstanceUID.

    Parameters
    ----------
    path
        Names the files.
    series
        What to write.
    """
    from pydicom.uid import generate_uid

    header = parse_xml(series.xml, str(path)) if series.xml is not None else Element("none")
    low, high = window_of(series)
    least, most = low, high
    if series.quantity is None or not series.quantity.angle:
        least, most = 0.0, max((float(np.abs(image.data).max()) for image in series.images), default=0.0)
    slope = (most - least) / WHITEST or 1.0
    common = _common(header, series)
    common.SeriesInstanceUID = generate_uid(prefix=None)
    pure = series.quantity is not None and series.quantity.pure
    unit = 1.0 if pure else slope
    common.RescaleIntercept, common.RescaleSlope = _decimal(least / unit), _decimal(slope / unit)
    common.RescaleType = "US"
    common.WindowCenter = _decimal((low + high) / 2 / unit)
    common.WindowWidth = _decimal(max(1.0, (high - low) / unit))
    common.RealWorldValueMappingSequence = [_real_world(least, slope, series.quantity)]
    triggered = trigger_times(series.images, header)
    turns = turns_of(series.images)
    encoded = {i.index: "ROW" if t.swapped else "COL" for i, t in zip(series.images, turns, strict=True)}
    turned = [upright(i, t) for i, t in zip(series.images, turns, strict=True)]
    moments = sorted({_moment(i) for i in turned})
    parameters = _parameters(header, [i.index for i in turned])
    names = varying([i.index for i in turned])
    comment = str(common.ImageComments)
    for number, (image, plane, affine, even) in enumerate(_planes(turned), start=1):
        dataset = _file(common)
        _describe(dataset, parameters, image, number)
        dataset.TemporalPositionIdentifier = moments.index(_moment(image)) + 1
        dataset.NumberOfTemporalPositions = len(moments)
        dataset.ImageComments = "; ".join([comment, *counted(image.index, names)])
        if image.index in triggered:
            dataset.TriggerTime = _decimal(triggered[image.index])
        dataset.ScanOptions = "CG" if image.index in triggered else ""  # cardiac gating
        _place(dataset, image, affine, plane, even)
        dataset.InPlanePhaseEncodingDirection = encoded[image.index]
        pixels = series.pixels(image)[plane if image.data.shape[0] > 1 else 0]
        _set_pixels(dataset, np.round((pixels - least) / slope).astype(np.uint16))
        dataset.save_as(path.with_name(f"{path.stem}_{number:04d}.dcm"), enforce_file_format=True)


def leftovers(folder: Path, written: Iterable[str]) -> dict[Path, tuple[int, int]]:
    """Find the planes of series of before that newer ones, with fewer planes, do not replace.

    Parameters
    ----------
    folder
        Where they lie.
    written
        Names of the files that come into it, of any format.

    Returns
    -------
    Files made by `write_dicom`, each with its `version`: one that a run beside this one has written since has
    another.
    """
    new = set(written)
    stems = {match[1] for name in new if (match := NUMBERED.fullmatch(name))}
    found = {}
    for path in sorted(folder.iterdir()) if stems else ():
        match = NUMBERED.fullmatch(path.name)
        if match and match[1] in stems and path.name not in new and _is_ours(path):
            with suppress(FileNotFoundError):  # as where a run beside this one has removed it
                found[path] = version(path)
    return found


def version(path: Path) -> tuple[int, int]:
    """Return what changes when a file is replaced by another of its name."""
    stat = path.lstat()
    return stat.st_ino, stat.st_mtime_ns


def _is_ours(path: Path) -> bool:
    from pydicom import dcmread

    try:
        return "mri-qpan" in dcmread(path, stop_before_pixels=True).private_creators(PRIVATE_GROUP)
    except Exception:  # what does not read as DICOM, for one of many reasons, is somebody else's
        return False


def _moment(image: Image) -> tuple[int, int, int]:
    """Return what tells images of one place and contrast apart."""
    return image.index.repetition, image.index.phase, image.index.set


def _planes(images: list[Image]) -> Iterator[tuple[Image, int, Array, bool]]:
    """Yield every plane: its image, its number along the volume, and the volume's affine.

    The last is False where slices make no evenly spaced volume: each has an affine of its own.
    """
    for volume in volumes(images):
        try:
            ordered, affine = stack(volume)
        except ReconError:  # planes of their own, as localisers are
            for image in volume:
                own, even = affine_lps(image.geometry, image.data.shape), image.data.shape[0] > 1
                yield from ((image, z, own, even) for z in _depth(image))
            continue
        if len(ordered) > 1:
            yield from ((image, z, affine, True) for z, image in enumerate(ordered))
        else:
            yield from ((ordered[0], z, affine, True) for z in _depth(ordered[0]))


def _depth(image: Image) -> range:
    return range(image.data.shape[0])


def _common(header: Element, series: ImageSeries) -> Dataset:
    """Return what all files of a series share."""
    from pydicom.dataset import Dataset

    dataset, origin = Dataset(), series.provenance
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.Modality = "MR"
    for keyword in EMPTY:
        setattr(dataset, keyword, "")
    dataset.PatientSex = _sex(header)
    dataset.Manufacturer, dataset.ReferringPhysicianName = "", ""
    for keyword, (place, longest) in TEXTS.items():
        value = text_of(header, place)
        if value is not None:
            text = " ".join(value.replace("\\", "/").split())
            setattr(dataset, keyword, _person(text, longest) if keyword in PERSONS else text[:longest])
    for keyword, place in DATES.items():
        _set_moment(dataset, keyword, text_of(header, place), "%Y-%m-%d", "%Y%m%d")
    for keyword, place in TIMES.items():
        _set_moment(dataset, keyword, (text_of(header, place) or "")[:8], "%H:%M:%S", "%H%M%S")
    for keyword, (place, factor) in NUMBERS.items():
        _set_number(dataset, keyword, text_of(header, place), factor)
    identity = f"{origin['input']}\n{_content(str(origin['input']))}\n{series.xml}"
    dataset.StudyInstanceUID = _uid(header, "studyInformation/studyInstanceUID", f"study\n{identity}")
    dataset.FrameOfReferenceUID = _uid(
        header, "measurementInformation/frameOfReferenceUID", f"frame\n{identity}"
    )
    dataset.PositionReferenceIndicator = dataset.Laterality = ""
    position = text_of(header, "measurementInformation/patientPosition") or ""
    dataset.PatientPosition = position if position[:2] in ("HF", "FF") and len(position) < 5 else ""
    dataset.SeriesNumber = _series_number(series)
    dataset.SeriesDescription = f"{dataset.get('ProtocolName', '')} {origin['method']}".strip()[-64:]
    dataset.SequenceVariant = "NONE"
    deep = any(image.data.shape[0] > 1 for image in series.images)
    dataset.MRAcquisitionType = "3D" if deep else "2D"
    dataset.EchoTrainLength = None
    _set_origin(dataset, origin)
    if series.quantity is not None:
        kind = ["PHASE MAP"] if series.quantity.angle else ["OTHER", series.quantity.role.upper()]
        dataset.ImageType = ["DERIVED", "PRIMARY", *kind]
        dataset.DerivationDescription += f" {series.quantity.name}: {series.quantity.meaning}."
    return dataset


def _series_number(series: ImageSeries) -> int:
    """Return 1, or the map's number; ten more for each encoding of the measurement."""
    own = 1 if series.quantity is None else series.quantity.series
    return own + 10 * series.images[0].index.encoding


def _set_origin(dataset: Dataset, origin: dict[str, Any]) -> None:
    """Say what made the images: in words, as contributing equipment, and whole as a private element."""
    from pydicom.dataset import Dataset

    made_by = f"mri-qpan {origin['version']}"
    dataset.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
    model = f" (sha256 {str(origin['model_sha256'])[:12]})" if origin.get("model_sha256") else ""
    dataset.DerivationDescription = (
        f"Reconstructed by {made_by}, {origin['method']}{model}, from {float(origin['mask_ratio']):.1%} of "
        "k-space. For research, not for diagnosis."
    )
    dataset.ImageComments = f"{made_by} {origin['method']}: not for diagnosis"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [_code(*PROCESSING_EQUIPMENT)]
    equipment.Manufacturer = "mri-qpan"
    equipment.ManufacturerModelName = str(origin["method"])[:64]
    equipment.SoftwareVersions = str(origin["version"])
    dataset.ContributingEquipmentSequence = [equipment]
    block = dataset.private_block(PRIVATE_GROUP, "mri-qpan", create=True)
    block.add_new(0x01, "UT", json.dumps(origin))


def _real_world(least: float, slope: float, quantity: Quantity | None) -> Dataset:
    """Return how pixels become the input's units, or a map's numbers."""
    from pydicom.dataset import Dataset

    mapping = Dataset()
    mapping.add_new(0x00409216, "US", 0)  # first and last value mapped: US or SS, so said here
    mapping.add_new(0x00409211, "US", WHITEST)
    mapping.RealWorldValueIntercept, mapping.RealWorldValueSlope = least, slope
    pure = quantity is not None and quantity.pure
    mapping.LUTExplanation = quantity.meaning if quantity is not None else "input units"
    mapping.LUTLabel = quantity.name[:16] if quantity is not None and pure else "input units"
    mapping.MeasurementUnitsCodeSequence = [_code("1", "UCUM", "no units")]
    return mapping


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    from pydicom.dataset import Dataset

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _file(common: Dataset) -> Dataset:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    dataset = Dataset()
    dataset.update(common)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(prefix=None)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    return dataset


def _parameters(header: Element, indices: Sequence[Index]) -> dict[str, tuple[str, list[str | None]]]:
    """Return the sequence's parameters: by keyword the counter that chooses one of its values, and these.

    Echo times are the contrasts'. Others are too, unless there are as many as another counter has values;
    where nothing tells whose they are, they are left out.
    """
    sizes = {}
    for name in ("contrast", "set", "phase", "repetition"):
        limit = text_of(header, f"encoding/encodingLimits/{name}/maximum") or ""
        told = int(limit) if limit.isdecimal() else 0
        sizes[name] = 1 + max(told, *(getattr(index, name) for index in indices))
    found: dict[str, tuple[str, list[str | None]]] = {}
    for keyword, name in PARAMETERS.items():
        values = [element.text for element in header.findall(f"sequenceParameters/{name}")]
        if len(values) == 1 and name != "TE":  # one for all; contrasts are echoes, which differ in theirs
            values *= sizes["contrast"]
        others = [counter for counter, size in sizes.items() if size == len(values)]
        alone = all(size == 1 for counter, size in sizes.items() if counter != "contrast")
        if name == "TE" or alone or len(values) == sizes["contrast"]:
            found[keyword] = "contrast", values
        elif len(others) == 1:
            found[keyword] = others[0], values
    return found


def _describe(
    dataset: Dataset, parameters: Mapping[str, tuple[str, list[str | None]]], image: Image, number: int
) -> None:
    """Fill in the counters, the moment, and the sequence's parameters of an image."""
    now = datetime.now()
    dataset.InstanceCreationDate = dataset.ContentDate = now.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.ContentTime = now.strftime("%H%M%S")
    dataset.InstanceNumber = number
    dataset.AcquisitionNumber = image.index.repetition + 1
    dataset.EchoNumbers = image.index.contrast + 1
    dataset.RepetitionTime = dataset.EchoTime = None
    for keyword, (counter, values) in parameters.items():
        place = getattr(image.index, counter)
        if place < len(values):
            _set_number(dataset, keyword, values[place], 1.0)
    inverts = bool(dataset.get("InversionTime"))
    dataset.ScanningSequence = ["RM", "IR"] if inverts else "RM"
    if not inverts and "InversionTime" in dataset:
        del dataset.InversionTime


def _place(dataset: Dataset, image: Image, affine: Array, plane: int, even: bool) -> None:
    geometry = image.geometry
    x, y, z = voxel_size(geometry, image.data.shape)
    first = affine @ [0, 0, plane, 1]
    dataset.PixelSpacing = [_decimal(y), _decimal(x)]
    dataset.SliceThickness = _decimal(z)
    if even:
        dataset.SpacingBetweenSlices = _decimal(float(abs(affine[:3, 2] @ np.array(geometry.slice_dir))))
    dataset.ImagePositionPatient = [_decimal(v) for v in first[:3]]
    dataset.ImageOrientationPatient = [_decimal(v) for v in (*geometry.read_dir, *geometry.phase_dir)]
    dataset.SliceLocation = _decimal(float(first[:3] @ np.array(geometry.slice_dir)))


def _set_pixels(dataset: Dataset, pixels: NDArray[np.uint16]) -> None:
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 0
    dataset.PixelData = pixels.astype("<u2").tobytes()


def _person(name: str, longest: int) -> str:
    """Return what DICOM takes of a name: three ways to write it, of five parts each."""
    ways = ["^".join(way.split("^")[:5])[:longest] for way in name.split("=")[:3]]
    return "=".join(ways)


def _sex(header: Element) -> str:
    sex = (text_of(header, "subjectInformation/patientGender") or "").upper()
    return sex if sex in ("M", "F", "O") else ""


def _uid(header: Element, place: str, identity: str) -> str:
    """Return the header's UID if it is one, else a UID made from `identity`."""
    found = text_of(header, place) or ""
    valid = len(found) <= 64 and re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+", found)
    # A path may hold what is no UTF-8.
    name = identity.encode("utf-8", "backslashreplace").decode()
    return found if valid else f"2.25.{uuid.uuid5(NAMESPACE, name).int}"


def _content(name: str) -> str:
    """Return a digest of parts of an input, which tells it from another one that had its name before."""
    path, digest = Path(name), hashlib.sha256()
    if path.suffix == ".hdr":
        path = path.with_suffix(".cfl")
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            for start in (0, size // 2, size - PART):
                file.seek(max(0, start))
                digest.update(file.read(PART))
    except OSError:
        return ""  # no file, but a stream or a phantom
    return f"{size} {digest.hexdigest()}"


def _set_moment(dataset: Dataset, keyword: str, value: str | None, written: str, wanted: str) -> None:
    try:
        moment = datetime.strptime(value or "", written)
    except ValueError:  # a date that is none stays empty
        return
    if moment.year >= EARLIEST:
        setattr(dataset, keyword, moment.strftime(wanted))


def _set_number(dataset: Dataset, keyword: str, value: str | None, factor: float) -> None:
    try:
        number = float(value or "") * factor
    except ValueError:
        return
    if np.isfinite(number):
        setattr(dataset, keyword, _decimal(number))


def _decimal(value: float) -> Any:
    """Return a decimal string of at most 16 characters, DICOM's limit."""
    from pydicom.valuerep import DSfloat

    return DSfloat(float(value), auto_format=True)
