"""What the files hold beside the geometry, which test_geometry.py covers."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ismrmrd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageFont

from mri_qpan.errors import ReconError
from mri_qpan.recon.kspace import PHASE, Geometry, Image, ImageSeries, Index, Stamp
from mri_qpan.recon.pipeline import Figures, Result
from mri_qpan.recon.study import Study
from mri_qpan.recon.writers import write_dicom, write_ismrmrd, write_nifti, write_png, write_study_png
from mri_qpan.recon.writers.arrays import write_fastmri
from mri_qpan.recon.writers.png import fitting_labels, title, varying
from mri_qpan.recon.writers.window import display_range

PROVENANCE: dict[str, object] = {
    "method": "qpan+-3bit",
    "version": "1.2",
    "input": "/data/a.h5",
    "mask_ratio": 0.25,
    "mask_hash": "0123456789ab",
}
XML = '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"/>'
STAMP = Stamp(42, 1000, (1, 2, 3), tuple(range(8)), tuple(float(i) for i in range(8)))


def series(repetitions: int = 2, slices: int = 3) -> ImageSeries:
    rng = np.random.default_rng(0)
    images = [
        Image(
            (rng.normal(size=(1, 8, 12)) + 1j * rng.normal(size=(1, 8, 12))).astype(np.complex64),
            Geometry((24.0, 16.0, 3.0), (0.0, 0.0, 3.0 * s), table_position=(0.0, 0.0, -50.0)),
            Index(repetition=r, slice=s),
            STAMP,
        )
        for r in range(repetitions)
        for s in range(slices)
    ]
    return ImageSeries(images, XML, PROVENANCE)


@pytest.mark.parametrize("write", [write_ismrmrd, write_fastmri])
def test_a_full_disk_is_told_of(write: Callable[[Path, ImageSeries], None], tmp_path: Path) -> None:
    """By an OSError: HDF5 on the disk itself would end the process later."""
    (tmp_path / "a.h5").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "a.h5", series(repetitions=1))


def test_ismrmrd_headers_attributes_and_pixels(tmp_path: Path) -> None:
    written = series()
    write_ismrmrd(tmp_path / "a.h5", written)
    with ismrmrd.Dataset(str(tmp_path / "a.h5"), "dataset", mode="r") as dataset:
        assert dataset.read_xml_header().decode() == XML
        images = [dataset.read_image("image_1", i) for i in range(dataset.number_of_images("image_1"))]
    assert len(images) == 6
    for number, (image, source) in enumerate(zip(images, written.images, strict=True)):
        head = image.getHead()
        np.testing.assert_array_equal(image.data[0], np.abs(source.data))
        assert image.data.dtype == np.float32
        assert (head.version, head.data_type, head.image_type) == (
            1,
            ismrmrd.DATATYPE_FLOAT,
            ismrmrd.IMTYPE_MAGNITUDE,
        )
        assert (head.channels, tuple(head.matrix_size)) == (1, (12, 8, 1))
        assert tuple(head.field_of_view) == source.geometry.fov
        assert tuple(head.patient_table_position) == (0, 0, -50)
        assert (head.measurement_uid, head.acquisition_time_stamp) == (42, 1000)
        assert tuple(head.physiology_time_stamp) == (1, 2, 3)
        assert (tuple(head.user_int), tuple(head.user_float)) == (STAMP.user_int, STAMP.user_float)
        assert (head.slice, head.repetition) == (source.index.slice, source.index.repetition)
        assert (head.image_index, head.image_series_index) == (number + 1, 1)
        assert head.attribute_string_len == len(image.attribute_string)


def test_a_phase_is_the_same_in_every_format(tmp_path: Path) -> None:
    phases = replace(series(repetitions=1), quantity=PHASE)
    wanted = [np.angle(image.data[0]) for image in phases.images]
    write_ismrmrd(tmp_path / "a.h5", phases)
    with ismrmrd.Dataset(str(tmp_path / "a.h5"), "dataset", mode="r") as dataset:
        for number, angle in enumerate(wanted):
            image = dataset.read_image(f"image_{PHASE.series}", number)
            assert image.image_type == ismrmrd.IMTYPE_PHASE
            np.testing.assert_array_equal(image.data[0, 0], angle)
    write_nifti(tmp_path / "a.nii.gz", phases)
    volume = nib.load(tmp_path / "a.nii.gz").get_fdata()
    np.testing.assert_allclose(volume.transpose(2, 1, 0), wanted, rtol=1e-6)
    write_dicom(tmp_path / "a.dcm", phases)
    for number, angle in enumerate(wanted, start=1):
        file = pydicom.dcmread(tmp_path / f"a_{number:04d}.dcm")
        assert list(file.ImageType) == ["DERIVED", "PRIMARY", "PHASE MAP"]
        shown = float(file.RescaleSlope) * file.pixel_array + float(file.RescaleIntercept)
        np.testing.assert_allclose(shown, angle, atol=1.1e-4)
        mapping = file.RealWorldValueMappingSequence[0]
        real = mapping.RealWorldValueSlope * file.pixel_array + mapping.RealWorldValueIntercept
        np.testing.assert_allclose(real, angle, atol=1.1e-4)
        assert float(file.WindowWidth) == pytest.approx(2 * np.pi)
        assert float(file.WindowCenter) == 0
    write_png(tmp_path / "a.png", phases)
    assert np.asarray(Picture.open(tmp_path / "a.png")).std() > 0


def test_ismrmrd_flags_mark_the_ends_of_each_counter(tmp_path: Path) -> None:
    write_ismrmrd(tmp_path / "a.h5", series())
    with ismrmrd.Dataset(str(tmp_path / "a.h5"), "dataset", mode="r") as dataset:
        images = [dataset.read_image("image_1", i) for i in range(6)]

    def flagged(flag: int) -> list[int]:
        return [i for i, image in enumerate(images) if image.is_flag_set(flag)]

    assert flagged(ismrmrd.IMAGE_FIRST_IN_REPETITION) == [0, 3]
    assert flagged(ismrmrd.IMAGE_LAST_IN_REPETITION) == [2, 5]
    assert flagged(ismrmrd.IMAGE_FIRST_IN_SLICE) == flagged(ismrmrd.IMAGE_LAST_IN_SLICE) == list(range(6))


def test_ismrmrd_attributes_are_what_a_scanner_asks_for(tmp_path: Path) -> None:
    written = series()
    write_ismrmrd(tmp_path / "a.h5", written)
    with ismrmrd.Dataset(str(tmp_path / "a.h5"), "dataset", mode="r") as dataset:
        meta = dataset.read_image("image_1", 0).meta
    assert meta["DataRole"] == "Image"
    assert meta["ImageProcessingHistory"] == ["mri-qpan", "1.2", "qpan+-3bit"]
    assert meta["SeriesDescriptionAdditional"] == meta["SequenceDescriptionAdditional"] == "qpan+-3bit"
    assert meta["ImageRowDir"] == ["1.000000000000000000", "0.000000000000000000", "0.000000000000000000"]
    assert meta["ImageColumnDir"][1] == "1.000000000000000000"
    assert meta["Keep_image_geometry"] == "1"
    low, high = display_range(written.images)
    assert float(meta["WindowCenter"]) == pytest.approx((low + high) / 2, rel=1e-4)
    assert float(meta["WindowWidth"]) == pytest.approx(high - low, rel=1e-4)
    assert json.loads(meta["Provenance"]) == PROVENANCE


def test_nifti_puts_repetitions_last_and_says_who_made_it(tmp_path: Path) -> None:
    written = series()
    write_nifti(tmp_path / "a.nii.gz", written)
    nifti = nib.load(tmp_path / "a.nii.gz")
    pixels = np.asanyarray(nifti.dataobj)
    assert pixels.shape == (12, 8, 3, 2)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels[:, :, 1, 1], np.abs(written.images[4].data[0]).T)
    assert nifti.header.get_zooms()[:3] == pytest.approx((2, 2, 3))
    assert nifti.header["descrip"].item() == b"mri-qpan 1.2 qpan+-3bit"
    assert json.loads(nifti.header.extensions[0].get_content()) == PROVENANCE


def limit(counter: str, count: int) -> str:
    """Of a counter that goes up to `count` - 1."""
    return f"<{counter}><minimum>0</minimum><maximum>{count - 1}</maximum></{counter}>"


def encoded(
    lines: int, train: int | str | None, partitions: int = 1, averages: int = 1, times: int = 1
) -> str:
    """The part of a header that tells how many shots an image takes."""
    limits = limit("kspace_encoding_step_1", lines) + limit("kspace_encoding_step_2", partitions)
    factors = f"<kspace_encoding_step_1>{times}</kspace_encoding_step_1>"
    return (
        f"<encoding><encodingLimits>{limits}{limit('average', averages)}</encodingLimits>"
        f"<parallelImaging><accelerationFactor>{factors}</accelerationFactor></parallelImaging>"
        + (f"<echoTrainLength>{train}</echoTrainLength>" if train is not None else "")
        + "</encoding><sequenceParameters><TR>2500</TR></sequenceParameters>"
    )


@pytest.mark.parametrize(
    ("counter", "header", "seconds"),
    [
        ("repetition", encoded(64, 64), 2.5),
        ("repetition", encoded(64, 32, times=2), 2.5),
        ("repetition", encoded(1, 1), 2.5),
        ("repetition", encoded(64, 1), 0),  # spin echo: 64 TR
        ("repetition", encoded(64, 32), 0),
        ("repetition", encoded(64, None), 0),
        ("repetition", encoded(64, "many"), 0),
        ("repetition", encoded(64, 64, partitions=8), 0),
        ("repetition", encoded(64, 64, averages=2), 0),
        ("repetition", encoded(64, 64).replace("kspace_encoding_step_1>", "segment>"), 0),
        ("repetition", "<sequenceParameters><TR>2500</TR></sequenceParameters>", 0),
        ("repetition", "", 0),
        ("contrast", encoded(64, 64), 0),
    ],
)
def test_nifti_tells_no_time_that_it_does_not_know(
    tmp_path: Path, counter: str, header: str, seconds: float
) -> None:
    moving = [
        Image(i.data, i.geometry, Index(slice=i.index.slice, **{counter: i.index.repetition}))
        for i in series().images
    ]
    xml = f"<ismrmrdHeader>{header}</ismrmrdHeader>"
    write_nifti(tmp_path / "a.nii", ImageSeries(moving, xml, PROVENANCE))
    assert nib.load(tmp_path / "a.nii").header["pixdim"][4] == pytest.approx(seconds)


def test_nifti_refuses_repetitions_of_other_slices(tmp_path: Path) -> None:
    whole = series()
    with pytest.raises(ReconError, match="differ in their slices"):
        write_nifti(tmp_path / "a.nii", ImageSeries(whole.images[:5], None, PROVENANCE))


def test_one_bright_slice_at_the_edge_of_nothing_still_gives_a_window() -> None:
    empty = Image(np.zeros((1, 4, 4), np.complex64), Geometry((4.0, 4.0, 1.0)))
    assert display_range([empty]) == (0.0, 1.0)


def pixels_of(path: Path) -> NDArray[np.uint8]:
    with Picture.open(path) as picture:
        return np.asarray(picture)


def corner_image(bright: tuple[int, int]) -> Image:
    data = np.full((1, 10, 20), 1.0, np.complex64)
    data[0, bright[0] : bright[0] + 5, bright[1] : bright[1] + 10] = 4j
    return Image(data, Geometry((40.0, 40.0, 5.0)))


@pytest.mark.parametrize("corner", [(0, 0), (0, 10), (5, 0), (5, 10)])
def test_png_shows_rows_down_columns_right_in_the_field_of_views_proportions(
    tmp_path: Path, corner: tuple[int, int]
) -> None:
    write_png(tmp_path / "a.png", ImageSeries([corner_image(corner)], None, PROVENANCE))
    page = pixels_of(tmp_path / "a.png")
    lit = np.argwhere(page > 40)
    tile = page[np.flatnonzero((page > 40).sum(axis=1) > 400)][:, 8 : 8 + 512]
    assert tile.shape == (512, 512), "40 mm x 40 mm makes a square tile"
    half = {0: slice(20, 236), 5: slice(276, 492), 10: slice(276, 492)}
    assert tile[half[corner[0]], half[corner[1]]].min() > 200
    assert lit.size
    with Picture.open(tmp_path / "a.png") as picture:
        assert json.loads(picture.info["Comment"]) == PROVENANCE


def test_png_of_many_slices_stays_a_page(tmp_path: Path) -> None:
    many = ImageSeries(series().images * 20, None, PROVENANCE)
    write_png(tmp_path / "a.png", many)
    assert max(pixels_of(tmp_path / "a.png").shape) < 3000


@pytest.mark.parametrize(
    ("repetitions", "slices", "first", "remarks"),
    [
        (1, 30, "slice 1", []),
        (1, 1500, "1", ["below each: slice"]),
        (10, 30, "1/1", ["below each: slice/repetition"]),
        (60, 100, "", ["too many to label"]),
    ],
)
def test_labels_of_a_png_stand_apart(repetitions: int, slices: int, first: str, remarks: list[str]) -> None:
    images = [
        replace(series().images[0], index=Index(repetition=r, slice=s))
        for r in range(repetitions)
        for s in range(slices)
    ]
    planes = [(image, 0) for image in images]
    columns = math.ceil(math.sqrt(len(planes)))
    labels, said = fitting_labels(planes, varying([image.index for image in images]), columns)
    assert (labels[0], said) == (first, remarks)
    font = ImageFont.load_default(16)
    assert max(font.getlength(words) for words in labels) <= 2048 // columns - 8


def test_study_png_stands_four_images_in_a_row(tmp_path: Path) -> None:
    reference, image = corner_image((0, 0)), corner_image((5, 10))
    figures = {"psnr": 30.0, "ssim": 0.9, "nmse": 0.1, "hfen": 0.1}
    result = Result(image, Figures(0.25, "0", 0.1, 0.0, 0.0), ())
    study = Study("tv", reference, image, result, {"zero-filled": figures, "tv": figures})
    write_study_png(tmp_path / "a.png", ImageSeries([image], None, PROVENANCE), [study])
    page = pixels_of(tmp_path / "a.png")
    side = (page.shape[1] - 8) // 4 - 8
    tiles = [page[60 : 60 + side // 2, 8 + c * (side + 8) :][:, : side // 3] for c in range(4)]
    assert [tile.mean() > 150 for tile in tiles] == [True, False, False, True]


def test_a_page_of_several_masks_counts_them() -> None:
    pages = series()
    assert title(pages)[-1] == "mask 0123456789ab"
    assert title(replace(pages, provenance=PROVENANCE | {"mask_hash": ["a", "b"]}))[-1] == "2 masks"
