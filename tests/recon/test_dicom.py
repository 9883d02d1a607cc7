"""DICOM files, held against pydicom, dcmtk, dicom3tools and Orthanc."""

import json
import os
import shutil
import subprocess
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from archives import Orthanc
from hypothesis import given, settings
from hypothesis import strategies as st

from mri_qpan.recon.geometry import affine_lps
from mri_qpan.recon.kspace import PHASE, Geometry, Image, ImageSeries, Index, Quantity, Stamp
from mri_qpan.recon.noise import GFACTOR, UNCERTAINTY
from mri_qpan.recon.writers import write_dicom
from mri_qpan.recon.writers.window import window_of

PROVENANCE: dict[str, object] = {
    "method": "qpan+-3bit",
    "model_sha256": "21c0e4c33f0c" + "0" * 52,
    "version": "1.2",
    "input": "/data/a.h5",
    "mask_ratio": 0.25,
    "mask_hash": "0123456789ab",
}
XML = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<subjectInformation><patientName>Doe^Jane</patientName><patientWeight_kg>61.5</patientWeight_kg>
<patientID>P-7</patientID><patientBirthdate>1980-02-29</patientBirthdate><patientGender>F</patientGender>
</subjectInformation>
<studyInformation><studyDate>2026-01-31</studyDate><studyTime>09:15:00.5</studyTime><studyID>12</studyID>
<studyDescription>Knee \\ left</studyDescription>
<studyInstanceUID>1.2.3.4.5</studyInstanceUID></studyInformation>
<measurementInformation><patientPosition>HFS</patientPosition><protocolName>t1 tse</protocolName>
<frameOfReferenceUID>not a uid</frameOfReferenceUID></measurementInformation>
<acquisitionSystemInformation><systemVendor>Vendor</systemVendor><systemModel>Model</systemModel>
<systemFieldStrength_T>2.89362</systemFieldStrength_T><institutionName>Klinik für Radiologie</institutionName>
</acquisitionSystemInformation>
<experimentalConditions><H1resonanceFrequency_Hz>123253101</H1resonanceFrequency_Hz></experimentalConditions>
<sequenceParameters><TR>500</TR><TE>12.5</TE><TE>30</TE><flipAngle_deg>15</flipAngle_deg></sequenceParameters>
</ismrmrdHeader>"""


def series(contrasts: int = 2, slices: int = 3, xml: str | None = XML, scale: float = 1e-5) -> ImageSeries:
    rng = np.random.default_rng(0)
    images = [
        Image(
            (scale * (rng.normal(size=(1, 8, 12)) + 1j * rng.normal(size=(1, 8, 12)))).astype(np.complex64),
            Geometry((24.0, 16.0, 3.0), (1.0, 2.0, 4.0 * s)),
            Index(contrast=c, slice=s),
        )
        for c in range(contrasts)
        for s in range(slices)
    ]
    return ImageSeries(images, xml, PROVENANCE)


def written(folder: Path, images: ImageSeries) -> list[pydicom.Dataset]:
    write_dicom(folder / "a.dcm", images)
    return [pydicom.dcmread(path) for path in sorted(folder.glob("a_*.dcm"))]


def test_header_comes_from_the_measurement(tmp_path: Path) -> None:
    files = written(tmp_path, series())
    assert len(files) == 6
    first, last = files[0], files[-1]
    assert (str(first.PatientName), first.PatientID, first.PatientSex) == ("Doe^Jane", "P-7", "F")
    assert (first.PatientBirthDate, first.StudyDate, first.StudyTime) == ("19800229", "20260131", "091500")
    assert first.StudyDescription == "Knee / left"  # a backslash separates values in DICOM
    assert (first.Manufacturer, first.ManufacturerModelName) == ("Vendor", "Model")
    assert first.InstitutionName == "Klinik für Radiologie"
    assert first.MagneticFieldStrength == pytest.approx(2.89362)
    assert first.ImagingFrequency == pytest.approx(123.253101)
    assert (first.RepetitionTime, first.FlipAngle, first.PatientPosition) == (500, 15, "HFS")
    assert (first.EchoTime, last.EchoTime) == (12.5, 30)
    assert (first.EchoNumbers, last.EchoNumbers) == (1, 2)
    assert [f.InstanceNumber for f in files] == [1, 2, 3, 4, 5, 6]
    assert (first.SliceThickness, first.SpacingBetweenSlices) == (3, 4)
    assert list(first.PixelSpacing) == [2, 2]


def test_slices_at_odd_distances_claim_no_spacing(tmp_path: Path) -> None:
    uneven = series(contrasts=1, slices=3)
    images = [
        replace(image, geometry=replace(image.geometry, position=(0.0, 0.0, place)))
        for image, place in zip(uneven.images, (12.0, 28.0, 36.0), strict=True)
    ]
    files = written(tmp_path, replace(uneven, images=images))
    assert ["SpacingBetweenSlices" in file for file in files] == [False] * 3
    assert [float(file.SliceThickness) for file in files] == [3] * 3


def test_an_echo_time_that_the_header_lacks_stays_empty(tmp_path: Path) -> None:
    files = written(tmp_path, series(contrasts=3, slices=1))
    assert [f.EchoTime for f in files] == [12.5, 30, None]
    assert [f.RepetitionTime for f in files] == [500, 500, 500]
    one = series(slices=1, xml=XML.replace("<TE>30</TE>", ""))
    assert [f.EchoTime for f in written(tmp_path, one)[:2]] == [12.5, None]


def test_encodings_are_series_of_their_own(tmp_path: Path) -> None:
    images = series()
    second = [replace(image, index=replace(image.index, encoding=1)) for image in images.images]
    numbers = {f.SeriesNumber for f in written(tmp_path, replace(images, images=second))}
    assert numbers == {11}
    assert {f.SeriesNumber for f in written(tmp_path, images)} == {1}


def test_identifiers(tmp_path: Path) -> None:
    first = written(tmp_path, series())
    (tmp_path / "again").mkdir()
    again = written(tmp_path / "again", series())
    assert {f.StudyInstanceUID for f in first + again} == {"1.2.3.4.5"}
    assert len({f.FrameOfReferenceUID for f in first + again}) == 1
    assert len({f.SeriesInstanceUID for f in first}) == 1
    assert first[0].SeriesInstanceUID != again[0].SeriesInstanceUID
    assert len({f.SOPInstanceUID for f in first + again}) == 12
    assert all(f.file_meta.MediaStorageSOPInstanceUID == f.SOPInstanceUID for f in first)
    (tmp_path / "none").mkdir()
    bare = written(tmp_path / "none", series(xml=None))
    assert pydicom.uid.UID(bare[0].StudyInstanceUID).is_valid
    assert bare[0].StudyInstanceUID != "1.2.3.4.5"


def test_another_input_of_the_same_name_is_another_study(tmp_path: Path) -> None:
    raw = tmp_path / os.fsdecode(b"M\xfcller.h5")  # no UTF-8
    found = []
    for number, content in enumerate((b"one", b"one", b"two")):
        raw.write_bytes(content)
        images = series(xml=None)
        images = replace(images, provenance=images.provenance | {"input": str(raw)})
        (tmp_path / str(number)).mkdir()
        found.append(written(tmp_path / str(number), images)[0])
    studies, frames = (
        [getattr(f, name) for f in found] for name in ("StudyInstanceUID", "FrameOfReferenceUID")
    )
    for same, again, other in (studies, frames):
        assert same == again != other


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
def test_pixels_window_and_units(tmp_path: Path, scale: float) -> None:
    images = series(scale=scale)
    files = written(tmp_path, images)
    largest = max(float(np.abs(i.data).max()) for i in images.images)
    for file, image in zip(files, images.images, strict=True):
        (mapping,) = file.RealWorldValueMappingSequence
        values = file.pixel_array * mapping.RealWorldValueSlope
        np.testing.assert_allclose(values, np.abs(image.data[0]), atol=largest / 32767)
        black, white = (file.WindowCenter + side * file.WindowWidth / 2 for side in (-1, 1))
        shown = (black * mapping.RealWorldValueSlope, white * mapping.RealWorldValueSlope)
        assert shown == pytest.approx(window_of(images), abs=1e-3 * largest)
        assert file.WindowCenter == files[0].WindowCenter
        assert (file.RescaleSlope, file.RescaleIntercept) == (1, 0)
    assert max(int(f.pixel_array.max()) for f in files) == 32767


def test_black_images(tmp_path: Path) -> None:
    image = Image(np.zeros((1, 4, 4), np.complex64), Geometry((4.0, 4.0, 1.0)))
    (file,) = written(tmp_path, ImageSeries([image], None, PROVENANCE))
    assert not file.pixel_array.any()


def test_provenance(tmp_path: Path) -> None:
    file = written(tmp_path, series())[0]
    assert "qpan+-3bit (sha256 21c0e4c33f0c)" in file.DerivationDescription
    assert "25.0%" in file.DerivationDescription
    assert list(file.ImageType[:2]) == ["DERIVED", "PRIMARY"]
    assert file.ContributingEquipmentSequence[0].Manufacturer == "mri-qpan"
    assert json.loads(file.private_block(0x2025, "mri-qpan")[1].value) == PROVENANCE


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    centre=st.tuples(*[st.floats(-200, 200)] * 3),
)
@settings(deadline=None, max_examples=25)
def test_every_voxel_has_the_place_that_nifti_gives_it(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int, int],
    angles: tuple[float, float, float],
    centre: tuple[float, float, float],
) -> None:
    from scipy.spatial.transform import Rotation

    axes = [tuple(float(v) for v in column) for column in Rotation.from_rotvec(angles).as_matrix().T]
    geometry = Geometry((30.0, 20.0, 9.0), centre, *axes)  # type: ignore[arg-type]
    numbered = np.arange(1, np.prod(shape) + 1).reshape(shape)
    image = Image(numbered.astype(np.complex64), geometry)
    files = written(tmp_path_factory.mktemp("dicom"), ImageSeries([image], None, PROVENANCE))
    assert len(files) == shape[0]
    affine = affine_lps(geometry, shape)
    for z, file in enumerate(files):
        row, column = np.reshape(np.array(file.ImageOrientationPatient, float), (2, 3))
        down, across = (float(v) for v in file.PixelSpacing)
        numbers = np.rint(file.pixel_array / 32767 * numbered.size)
        for y, x in np.ndindex(file.pixel_array.shape):
            place = np.array(file.ImagePositionPatient, float) + x * across * row + y * down * column
            ((plane, line, sample),) = np.argwhere(numbered == numbers[y, x])
            assert plane == z
            np.testing.assert_allclose(place, (affine @ [sample, line, plane, 1])[:3], atol=1e-3)


def test_slices_that_are_no_volume_keep_their_own_places(tmp_path: Path) -> None:
    planes = [
        Image(np.ones((1, 4, 4), np.complex64), Geometry((4.0, 4.0, 1.0), (0.0, 0.0, z)), Index(slice=s))
        for s, z in enumerate((0.0, 1.0, 7.0))
    ]
    files = written(tmp_path, ImageSeries(planes, None, PROVENANCE))
    assert [float(f.ImagePositionPatient[2]) for f in files] == [0, 1, 7]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a=b=c=d", "a=b=c"),
        ("a^b^c^d^e^f^g=A^B", "a^b^c^d^e=A^B"),
        (f"{'n' * 70}={'m' * 70}", f"{'n' * 64}={'m' * 64}"),
    ],
)
def test_a_name_of_more_parts_than_dicom_has_is_cut(tmp_path: Path, name: str, wanted: str) -> None:
    named = series(contrasts=1, slices=1, xml=XML.replace("Doe^Jane", name))
    assert written(tmp_path, named)[0].PatientName == wanted


@pytest.mark.filterwarnings("error")
def test_a_date_that_stands_for_none_stays_empty(tmp_path: Path) -> None:
    (file,) = written(tmp_path, series(contrasts=1, slices=1, xml=XML.replace("2026-01-31", "0001-01-01")))
    assert file.StudyDate == ""
    assert file.PatientBirthDate == "19800229"


def test_phases_and_sets_are_told_apart(tmp_path: Path) -> None:
    made = series(contrasts=1, slices=2)
    images = [
        replace(image, index=replace(image.index, repetition=r, phase=p, set=s))
        for r in range(2)
        for p in range(3)
        for s in range(2)
        for image in made.images
    ]
    files = written(tmp_path, replace(made, images=images))
    assert [f.TemporalPositionIdentifier for f in files] == [n // 2 + 1 for n in range(24)]
    assert {f.NumberOfTemporalPositions for f in files} == {12}
    assert [f.AcquisitionNumber for f in files] == [1] * 12 + [2] * 12
    assert files[-1].ImageComments.endswith("not for diagnosis; repetition 2; phase 3; set 2")
    (tmp_path / "one").mkdir()
    (single,) = written(tmp_path / "one", series(contrasts=1, slices=1))
    assert (single.TemporalPositionIdentifier, single.NumberOfTemporalPositions) == (1, 1)
    assert single.ImageComments.endswith("not for diagnosis")


def test_an_inversion_time_makes_an_inversion_recovery(tmp_path: Path) -> None:
    timed = XML.replace("</sequenceParameters>", "<TI>300</TI><TI>0</TI></sequenceParameters>")
    files = written(tmp_path, series(contrasts=2, slices=1, xml=timed))
    assert [f.get("InversionTime") for f in files] == [300, None]
    assert [f.ScanningSequence for f in files] == [["RM", "IR"], "RM"]


def test_values_are_those_of_the_counter_that_takes_as_many(tmp_path: Path) -> None:
    many = "<TI>100</TI><TI>200</TI><TI>300</TI><flipAngle_deg>30</flipAngle_deg></sequenceParameters>"
    timed = XML.replace("</sequenceParameters>", many)
    (image,) = series(contrasts=1, slices=1).images
    for counter in ("set", "phase", "repetition"):
        images = [replace(image, index=Index(**{counter: n})) for n in range(3)]
        (tmp_path / counter).mkdir()
        files = written(tmp_path / counter, ImageSeries(images, timed, PROVENANCE))
        assert [f.InversionTime for f in files] == [100, 200, 300]
        assert [f.EchoTime for f in files] == [12.5] * 3
        assert [f.get("FlipAngle") for f in files] == [None] * 3  # of two angles for three images
    images = [replace(image, index=Index(set=n, phase=m)) for n in range(3) for m in range(3)]
    (tmp_path / "both").mkdir()
    files = written(tmp_path / "both", ImageSeries(images, timed, PROVENANCE))
    assert [f.get("InversionTime") for f in files] == [None] * 9


@pytest.mark.skipif(shutil.which("dcmdump") is None, reason="dcmtk is not installed")
def test_dcmtk_reads_it(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", series())
    for path in tmp_path.glob("*.dcm"):
        result = subprocess.run(["dcmdump", "-q", "+P", "PatientName", path], capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (0, "")
        assert "Doe^Jane" in result.stdout


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("quantity", [None, GFACTOR, UNCERTAINTY, PHASE])
@pytest.mark.parametrize("xml", [XML, None])
def test_the_standards_rules_are_kept(tmp_path: Path, xml: str | None, quantity: Quantity | None) -> None:
    write_dicom(tmp_path / "a.dcm", replace(series(contrasts=1, slices=2, xml=xml), quantity=quantity))
    assert_standard(tmp_path)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_the_standards_rules_of_cine_and_inversion_are_kept(tmp_path: Path) -> None:
    xml = XML.replace(">Vendor<", ">SIEMENS<").replace("<TR>", "<TI>300</TI><TR>")
    made = series(contrasts=1, slices=1, xml=xml.replace("2026-01-31", "0001-01-01"))
    frames = [
        replace(made.images[0], index=Index(phase=p), stamp=Stamp(physiology_time_stamp=(9 * p, 0, 0)))
        for p in range(2)
    ]
    write_dicom(tmp_path / "a.dcm", replace(made, images=frames))
    assert_standard(tmp_path)


def assert_standard(folder: Path) -> None:
    for path in folder.glob("*.dcm"):
        result = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
        assert "MRImage" in result.stderr
        assert "Error" not in result.stderr, result.stderr


def test_orthanc_takes_and_files_it(orthanc: Orthanc, tmp_path: Path) -> None:
    images = series()
    write_dicom(tmp_path / "a.dcm", images)
    for path in sorted(tmp_path.glob("*.dcm")):
        request = urllib.request.Request(f"{orthanc.web}/instances", path.read_bytes(), method="POST")
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert json.load(answer)["Status"] == "Success"

    (patient,) = orthanc.ask("/patients?expand")
    assert patient["MainDicomTags"]["PatientName"] == "Doe^Jane"
    (stored,) = orthanc.ask("/series?expand")
    assert len(stored["Instances"]) == 6
    with urllib.request.urlopen(
        f"{orthanc.web}/instances/{stored['Instances'][0]}/preview", timeout=20
    ) as answer:
        assert answer.read(4) == b"\x89PNG"


@pytest.mark.parametrize(
    ("vendor", "stamps", "known"),
    [
        ("SIEMENS", [8, 20, 31], True),
        ("SIEMENS", [0, 0, 0], False),
        ("SIEMENS", [8, 20, 12], False),
        ("Vendor", [8, 20, 31], False),
    ],
)
def test_a_cine_says_when_after_the_trigger(
    tmp_path: Path, vendor: str, stamps: list[int], known: bool
) -> None:
    made = series(contrasts=1, slices=1, xml=XML.replace(">Vendor<", f">{vendor}<"))
    frames = [
        replace(made.images[0], index=Index(phase=p), stamp=Stamp(physiology_time_stamp=(stamp, 0, 0)))
        for p, stamp in enumerate(stamps)
    ]
    write_dicom(tmp_path / "cine", replace(made, images=frames))
    found = [pydicom.dcmread(path).get("TriggerTime") for path in sorted(tmp_path.glob("*.dcm"))]
    assert found == ([2.5 * stamp for stamp in stamps] if known else [None] * 3)
    options = {pydicom.dcmread(path).ScanOptions for path in tmp_path.glob("*.dcm")}
    assert options == ({"CG"} if known else {""})
    single = replace(made, images=frames[1:2])
    write_dicom(tmp_path / "single", single)
    assert "TriggerTime" not in pydicom.dcmread(tmp_path / "single_0001.dcm")
