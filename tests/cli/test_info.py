from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest
from mrd_files import header_xml, line, lines, random_kspace, write
from typer.testing import CliRunner

from mri_qpan import bart
from mri_qpan.cli.main import app

KSPACE = random_kspace(4, 24, 32)


def info(*files: Path | str) -> dict[str, str]:
    """The rows of the last file, those of one name joined."""
    result = CliRunner().invoke(app, ["info", *map(str, files)], catch_exceptions=False)
    assert result.exit_code == 0
    rows: dict[str, str] = {}
    for row in result.output.strip().split("\n\n")[-1].splitlines()[1:]:
        name, _, words = row.strip().partition("  ")
        rows[name] = "; ".join(filter(None, [rows.get(name), words.strip()]))
    return rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scan.h5"


class TestInfo:
    def test_plain_slice(self, path):
        rows = info(write(path, header_xml((32, 24, 1)), lines(KSPACE)))
        assert rows["format"] == "ISMRMRD raw data, dataset 'dataset'"
        assert rows["channels"] == "4"
        assert rows["images"] == "1"
        assert rows["encoded"] == "32 x 24 x 1 (x, y, z), 32 x 24 x 1 mm"
        assert rows["sampling"] == "100.0% of the matrix: all 24 lines"
        assert rows["noise scan"] == "none"
        assert "no noise scan" in rows["note"]
        assert "oversampling" not in rows

    def test_the_first_image_that_is_not_blank_tells(self, tmp_path):
        series = np.stack([0 * KSPACE, KSPACE])
        np.save(tmp_path / "scan.npy", series)
        rows = info(tmp_path / "scan.npy", "--dims", "slice,coil,y,x")
        assert rows["sampling"].startswith("100.0% of the matrix")
        np.save(tmp_path / "zeros.npy", 0 * series)
        assert info(tmp_path / "zeros.npy", "--dims", "slice,coil,y,x")["problem"] == "every sample is zero"

    def test_everything_at_once(self, path):
        noise = line(random_kspace(4, 64), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT], dwell=5)
        navigator = line(KSPACE[:, 0], flags=[ismrmrd.ACQ_IS_NAVIGATION_DATA])
        calib = lines(KSPACE, rows=range(8, 16), flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION])
        imaging = [
            acquisition
            for part in range(2)
            for acquisition in lines(
                KSPACE[:, :, ::-1], rows=range(0, 24, 2), slice=part, flags=[ismrmrd.ACQ_IS_REVERSE]
            )
        ]
        system = "<systemVendor>ACME</systemVendor><systemFieldStrength_T>1.5</systemFieldStrength_T>"
        xml = header_xml((32, 24, 1), (16, 24, 1), system=system)
        rows = info(write(path, xml, [noise, navigator, *calib, *imaging]))
        assert rows["scanner"] == "ACME, 1.5 T"
        assert rows["acquisitions"] == "34: 24 imaging, 8 calibration, 1 noise; left out: 1 navigator"
        assert rows["images"] == "2 (2 slices)"
        assert rows["oversampling"] == "2-fold along x"
        assert rows["reversed"] == "24 lines"
        assert rows["sampling"] == "50.0% of the matrix: 12 of 24 lines, every 2nd (first image)"
        assert rows["calibration"] == "8 lines of its own; complete block for coil maps: 8 x 32 (y, x)"
        assert rows["noise scan"] == "1 readout of 64 samples, 5 µs a sample"

    def test_partial_fourier_and_asymmetric_echo(self, path):
        rows = info(write(path, header_xml((32, 24, 1)), lines(KSPACE[:, :, 8:], rows=range(18), center=8)))
        assert rows["partial Fourier"] == "75% along y (the high end was not acquired)"
        assert rows["asymmetric echo"] == "75% along x (the low end was not acquired)"

    def test_discarded_and_averages(self, path):
        acquisitions = lines(KSPACE, pre=1, post=2) + lines(KSPACE, pre=1, post=2, average=1)
        rows = info(write(path, header_xml((32, 24, 1)), acquisitions))
        assert rows["discarded"] == "1 samples before, 2 after"
        assert rows["averages"] == "up to 2 a sample"

    def test_slab(self, path):
        volume = np.stack([KSPACE] * 8, axis=1)
        rows = info(write(path, header_xml((32, 24, 8)), lines(volume)))
        assert rows["sampling"] == "100.0% of the matrix: all 24 lines; all 8 partitions"

    def test_what_cannot_be_reconstructed_is_described(self, path):
        rows = info(write(path, header_xml((32, 24, 1), trajectory="spiral"), lines(KSPACE)))
        assert rows["trajectory"] == "spiral"
        assert rows["problem"].startswith("the trajectory is 'spiral'")

    def test_several_files(self, path):
        write(path, header_xml((32, 24, 1)), lines(KSPACE))
        assert info(path, path)["images"] == "1"

    def test_bad_files_do_not_stop_the_others(self, path):
        write(path, header_xml((32, 24, 1)), lines(KSPACE))
        nothing = str(path.with_name("nothing.h5"))
        result = CliRunner().invoke(app, ["info", nothing, str(path)])
        assert result.exit_code == 4
        assert f"{nothing}: no such file" in result.stderr
        assert "32 x 24 x 1" in result.stdout
        assert CliRunner().invoke(app, ["info", nothing]).exit_code == 3

    def test_real_file(self, shared_data):
        rows = info(shared_data / "kspace/head_8ch_256_R3_acs24.h5")
        assert (
            rows["sampling"] == "39.8% of the matrix: 102 of 256 lines, every 3rd, 24 complete at the centre"
        )

    def test_radial(self, shared_data):
        rows = info(shared_data / "kspace/radial_phantom_16ch_69spokes_traj.h5")
        assert rows["trajectory"] == "radial"
        assert rows["sampling"] == "69 readouts of 384 samples along the trajectory"


class TestArrays:
    def test_bart(self, tmp_path):
        kspace = KSPACE.copy()
        kspace[:, 1:8:2] = 0
        bart.write_cfl(tmp_path / "k", kspace[:, None])
        rows = info(tmp_path / "k.cfl")
        assert rows["format"] == "BART"
        assert rows["channels"] == "4"
        assert rows["acquired"] == "32 x 24 x 1 (x, y, z)"
        assert rows["sampling"].startswith("83.3% of the matrix: 20 of 24 lines")
        assert rows["calibration"].startswith("inside the image")
        assert "1 mm" in rows["note"]

    def test_numpy(self, tmp_path):
        np.save(tmp_path / "k.npy", KSPACE)
        result = CliRunner().invoke(app, ["info", str(tmp_path / "k.npy"), "--dims", "coil,y,x"])
        assert "NumPy array" in result.output
        assert "32 x 24 x 1 (x, y, z)" in result.output

    def test_along_a_trajectory(self, tmp_path):
        np.save(tmp_path / "k.npy", KSPACE)
        dims = f"coil,readout,sample@{tmp_path / 't.npy'}:20"
        np.save(tmp_path / "t.npy", np.ones((24, 1)) * np.linspace(-8, 8, 32) + 0j)
        result = CliRunner().invoke(app, ["info", str(tmp_path / "k.npy"), "--dims", dims])
        assert "768 samples along a trajectory" in result.output

    def test_fastmri(self, path):
        with h5py.File(path, "w") as file:
            file["kspace"] = np.stack([KSPACE.transpose(0, 2, 1)] * 2)
            file["ismrmrd_header"] = header_xml(
                (32, 24, 1), (16, 16, 1), system="<systemVendor>V</systemVendor>"
            )
        rows = info(path)
        assert rows["format"] == "fastMRI's layout"
        assert rows["scanner"] == "V"
        assert rows["images"] == "2 (2 slices)"
        assert rows["to deliver"] == "16 x 16 x 1 (x, y, z), 16 x 16 x 1 mm"
