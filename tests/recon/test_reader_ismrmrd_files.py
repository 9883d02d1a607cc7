"""ISMRMRD files as they are met: of other writers, real ones, and those of Debian's generator."""

import shutil
import subprocess

import h5py
import ismrmrd
import numpy as np
import pytest
from mrd_files import (
    KSPACE,
    NX,
    NY,
    XML,
    header_xml,
    limit_xml,
    line,
    lines,
    only,
    random_kspace,
    refused,
    write,
)

from mri_qpan.errors import InputError
from mri_qpan.recon.readers import open_kspace
from mri_qpan.recon.readers.ismrmrd import header, inspect


class TestFilesInTheWild:
    def test_any_dataset_name(self, path):
        assert only(write(path, XML, lines(KSPACE), dataset="2026-11-21 scan")).mask.all()

    def test_dataset_is_preferred(self, path):
        write(path, XML, lines(2 * KSPACE), dataset="another")
        image = only(write(path, XML, lines(KSPACE)))
        np.testing.assert_array_equal(image.data[:, 0], KSPACE)
        assert any("several datasets" in note for note in image.notes)

    def test_a_dataset_of_noise_scans_is_not_the_scan(self, path):
        noise = line(random_kspace(2, 64), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
        write(path, XML, [noise], dataset="dataset_1")
        write(path, XML, lines(2 * KSPACE), dataset="dataset_10")
        write(path, XML, lines(KSPACE), dataset="dataset_2")
        np.testing.assert_array_equal(only(path).data[:, 0], KSPACE)

    def test_matrix_written_as_decimals(self, path):
        xml = header_xml((f"{NX}.0", f"{NY}.0", "1.0"))
        image = only(write(path, xml, lines(KSPACE)))
        assert image.recon_shape == (1, NY, NX)
        assert any("decimals" in note for note in image.notes)

    def test_no_encoding_limits(self, path):
        image = only(write(path, header_xml((NX, NY, 1), limits=""), lines(KSPACE)))
        np.testing.assert_array_equal(image.data[:, 0], KSPACE)
        assert any("encodingLimits" in note for note in image.notes)

    def test_limits_all_zero(self, path):
        xml = header_xml((NX, NY, 1), limits=limit_xml("kspace_encoding_step_1", 0, 0))
        assert only(write(path, xml, lines(KSPACE))).mask.all()

    def test_no_centre_sample(self, path):
        image = only(write(path, XML, lines(KSPACE, center=0)))
        np.testing.assert_array_equal(image.data[:, 0], KSPACE)
        assert any("center_sample" in note for note in image.notes)

    def test_slices_counted_as_partitions(self, path):
        image = only(write(path, header_xml((NX, NY, 20)), lines(KSPACE)))
        assert image.data.shape == (2, 1, NY, NX)
        assert any("2-D" in note for note in image.notes)

    def test_their_thickness_is_the_headers_pixel(self, path):
        xml = header_xml((NX, NY, 20), fov=(NX, NY, 60), recon_fov=(NX, NY, 60))
        image = only(write(path, xml, lines(KSPACE)))
        assert image.geometry.fov == (NX, NY, 3)
        assert any("3 mm" in note for note in image.notes)

    def test_what_is_not_used_is_said(self, path):
        left_out = lines(KSPACE, flags=[ismrmrd.ACQ_IS_PHASECORR_DATA], rows=(0, 1))
        write(
            path, XML, [*left_out, line(KSPACE[:, 0], flags=[ismrmrd.ACQ_IS_NAVIGATION_DATA]), *lines(KSPACE)]
        )
        with ismrmrd.Dataset(str(path), "dataset") as dataset:
            dataset.append_waveform(ismrmrd.Waveform.from_array(np.zeros((4, 100), np.uint32)))
        notes = " ".join(only(path).notes)
        assert "1 navigator, 2 phase correction" in notes
        assert "ghost" in notes
        assert "1 waveforms" in notes

    def test_lines_that_no_counter_tells_apart(self, path):
        image = only(write(path, XML, lines(KSPACE) + lines(3 * KSPACE, rows=(1, 2))))
        np.testing.assert_allclose(image.data[:, 0, 1:3], 2 * KSPACE[:, 1:3], rtol=1e-6)
        assert any(note.startswith("2 lines of an image repeat") for note in image.notes)
        averages = only(write(path.with_name("2.h5"), XML, lines(KSPACE) + lines(KSPACE, average=1)))
        assert not any("repeat" in note for note in averages.notes)

    @pytest.mark.parametrize("trajectory", ["cartesian", "radial"])
    def test_slices_on_top_of_each_other_are_refused(self, path, trajectory):
        bands = "<multiband><multiband_factor>{}</multiband_factor></multiband>"
        bands = f"<parallelImaging>{bands}</parallelImaging>"
        xml = header_xml((NX, NY, 1), trajectory=trajectory)
        several, one = (xml.replace("<trajectory>", bands.format(n) + "<trajectory>") for n in (3, 1))
        assert "3 slices were excited together" in refused(write(path, several, lines(KSPACE)))
        if trajectory == "cartesian":
            assert only(write(path.with_name("one.h5"), one, lines(KSPACE))).mask.all()

    def test_echo_planar_readouts_are_refused(self, path):
        assert "ghosts" in refused(write(path, header_xml((NX, NY, 1), trajectory="epi"), lines(KSPACE)))

    @pytest.mark.parametrize("removed", ["<trajectory>cartesian</trajectory>", "<encodingLimits>"])
    def test_missing_elements(self, path, removed):
        xml = XML.replace(removed, "").replace("</encodingLimits>" if "Limits" in removed else "", "")
        assert only(write(path, xml, lines(KSPACE))).mask.all()

    def test_header_in_latin_1(self, path):
        write(path, XML, lines(KSPACE))
        xml = XML.replace(
            "<acquisitionSystemInformation>",
            "<acquisitionSystemInformation><systemVendor>Zürich</systemVendor>",
        )
        with h5py.File(path, "r+") as file:
            file["dataset/xml"][0] = xml.encode("latin-1")
        assert inspect(path).header.vendor == "Zürich"

    def test_no_recon_space(self, path):
        start, stop = XML.index("<reconSpace>"), XML.index("</reconSpace>") + len("</reconSpace>")
        image = only(write(path, XML[:start] + XML[stop:], lines(KSPACE)))
        assert image.recon_shape == (1, NY, NX)

    def test_no_field_of_view(self, path):
        xml = header_xml((NX, NY, 1), fov=(0, 0, 0), recon_fov=(0, 0, 0))
        image = only(write(path, xml, lines(KSPACE)))
        assert image.geometry.fov == (NX, NY, 1)
        assert any("field of view" in note for note in image.notes)

    def test_header_and_inspect(self, path):
        write(path, XML, [line(KSPACE[:, 0], flags=[23]), *lines(KSPACE)])
        assert header(path) == XML
        measurement = inspect(path)
        assert measurement.dataset == "dataset"
        assert measurement.skipped == {"navigator": 1}
        assert measurement.imaging.sum() == NY

    def test_read_checks_before_it_is_iterated(self, path):
        write(path, header_xml((NX, 4, 1)), lines(KSPACE))
        with pytest.raises(InputError):
            open_kspace(path)


class TestRealFiles:
    @pytest.mark.parametrize(
        ("name", "coils", "shape", "ratio"),
        [
            ("head_8ch_256", 8, (1, 256, 256), 1.0),
            ("head_8ch_256_R3_acs24", 8, (1, 256, 256), 102 / 256),
            ("head_8ch_256_vd1d_28", 8, (1, 256, 256), 72 / 256),
            ("brain_8ch_wrap_320x168", 8, (1, 168, 320), 1.0),
            ("se_t1_sag_1ch_256", 1, (1, 256, 256), 1.0),
            ("knee_1ch_coronal_640x332", 1, (1, 332, 640), 1.0),
        ],
    )
    def test_reads(self, shared_data, name, coils, shape, ratio):
        image = only(shared_data / "kspace" / f"{name}.h5")
        assert image.data.shape == (coils, *shape)
        assert image.mask.mean() == pytest.approx(ratio)

    def test_undersampled_is_part_of_the_full(self, shared_data):
        full = only(shared_data / "kspace/head_8ch_256.h5")
        part = only(shared_data / "kspace/head_8ch_256_R3_acs24.h5")
        np.testing.assert_array_equal(part.data, full.data * part.mask)


GENERATOR = "ismrmrd_generate_cartesian_shepp_logan"


@pytest.mark.skipif(
    shutil.which(GENERATOR) is None, reason=f"{GENERATOR} (Debian: ismrmrd-tools) is not installed"
)
class TestGeneratedPhantom:
    def test_image_is_the_generators(self, path):
        subprocess.run(
            [GENERATOR, "-m", "32", "-c", "3", "-n", "0", "-o", path], check=True, capture_output=True
        )
        image = only(path)
        with h5py.File(path) as file:
            stored = file["dataset/coil_images"][0]
        expected = stored["real"] + 1j * stored["imag"]
        coils = np.fft.fftshift(
            np.fft.ifft2(np.fft.ifftshift(image.data[:, 0], axes=(1, 2)), norm="ortho"), axes=(1, 2)
        )
        np.testing.assert_allclose(coils, expected, atol=1e-3 * abs(expected).max())

    def test_repetitions_acceleration_calibration_and_noise(self, path):
        options = ["-m", "32", "-c", "3", "-r", "2", "-a", "2", "-w", "8", "-C"]
        subprocess.run([GENERATOR, *options, "-o", path], check=True, capture_output=True)
        images = list(open_kspace(path))
        assert len(images) == 4  # repetitions times acceleration: the sampling pattern moves
        assert all(image.mask.mean() == 0.5 for image in images)
        assert all(image.calib_mask.any(axis=2).sum() == 8 for image in images)
        assert images[0].noise_covariance.shape == (3, 3)


@pytest.mark.parametrize(
    ("vendor", "said"), [("SIEMENS", True), ("Siemens Healthineers", True), ("GE", False)]
)
def test_directions_of_siemens_files_are_doubted(path, vendor: str, said: bool) -> None:
    xml = header_xml((8, 6, 1), system=f"<systemVendor>{vendor}</systemVendor>")
    (kspace,) = open_kspace(write(path, xml, lines(random_kspace(1, 6, 8))))
    assert any("turned by 180 degrees" in note for note in kspace.notes) == said
    assert kspace.geometry.read_dir == (1, 0, 0)
