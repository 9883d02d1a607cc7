import sys

import numpy as np
import pytest

from mri_qpan.cli.main import run
from mri_qpan.sampling_masks import KINDS, load_mask, make_mask, mask_hash


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `mri-qpan mask …` as the console script does: exit code, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mri-qpan", "mask", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            run()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return call


@pytest.mark.parametrize("kind", KINDS)
def test_makes_a_mask(command, tmp_path, kind):
    code, out, err = command(f"{kind}:25%:3", "--shape", "128x120", "-o", tmp_path / "mask.npy")
    expected = make_mask(kind, (128, 120), 0.25, seed=3)
    np.testing.assert_array_equal(load_mask(tmp_path / "mask.npy"), expected)
    assert code == 0
    assert f"{kind}, seed 3: 128x120, " in out
    assert mask_hash(expected) in out
    assert err == ""


def test_a_volume_with_calibration(command, tmp_path):
    assert command("poisson:4x", "--shape", "20x32x8", "--calib", 6, "-o", tmp_path / "mask.cfl")[0] == 0
    np.testing.assert_array_equal(
        load_mask(tmp_path / "mask.cfl"), make_mask("poisson", (20, 32, 8), 0.25, calib=6)
    )


def test_describes_and_converts(command, tmp_path):
    command("radial:0.2", "--shape", "64x64", "-o", tmp_path / "mask.mat")
    code, out, _ = command(tmp_path / "mask.mat", "-o", tmp_path / "mask.png")
    assert code == 0
    assert "mask.mat: 64x64, " in out
    assert f"written to {tmp_path / 'mask.png'}" in out
    np.testing.assert_array_equal(load_mask(tmp_path / "mask.png"), make_mask("radial", (64, 64), 0.2))


def test_notes_a_zero_frequency_in_the_corner(command, tmp_path):
    np.save(tmp_path / "corner.npy", np.fft.ifftshift(make_mask("equispaced", (100, 8), 0.3, calib=9)))
    assert "is it at a corner" in command(tmp_path / "corner.npy")[1]


def test_help_names_every_kind(command):
    _, out, _ = command("--help")
    assert all(kind in out for kind in KINDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lines:0.25"], "--shape 256x256"),
        ([""], "no mask"),
        (["lines:0.25", "--shape", "256"], "shape is (y, x) or (z, y, x)"),
        (["lines:0.25", "--shape", "axb"], "--shape is YxX"),
        (["lines:25", "--shape", "64x64"], "did you mean 25% or 25x"),
        (["stars:25%", "--shape", "64x64"], "unknown kind of mask 'stars'"),
        (["lines:10%", "--shape", "128x64", "--calib", "32"], "calibration region alone"),
        (["nowhere.mat"], "nowhere.mat: no such file"),
        (["nowhere.mat", "--shape", "64x64"], "nowhere.mat is a file"),
        (["lines:25%", "--shape", "64x64", "-o", "mask.txt"], "name ends in"),
    ],
)
def test_errors_are_one_line(command, arguments, message):
    code, out, err = command(*arguments)
    assert code == (3 if "no such file" in message else 2)
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_a_kind_of_another_package(command, tmp_path, monkeypatch):
    (tmp_path / "lab_kind.py").write_text(
        "import numpy\ndef whole(*_):\n    return numpy.ones((4, 6), bool)\n"
    )
    info = tmp_path / "lab_kind-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-kind\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mri_qpan.masks]\nwhole = lab_kind:whole\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, _ = command("whole:1", "--shape", "4x6")
    assert (code, "whole, seed 0: 4x6, 100.00%" in out) == (0, True)
    code, _, error = command("whole:1", "--shape", "4x8")
    assert (code, "not bool of (4, 8)" in error) == (2, True)
