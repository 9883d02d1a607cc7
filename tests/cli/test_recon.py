import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import ismrmrd
import nibabel as nib
import numpy as np
import pydicom
import pytest

from mri_qpan.cli import main, recon
from mri_qpan.recon.kspace import Index, KSpace
from mri_qpan.recon.writers import FORMATS, Format
from mri_qpan.recon.writers.ismrmrd_raw import write_raw

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, small_kspace: Callable[..., KSpace]) -> Path:
    path = tmp_path_factory.mktemp("raw") / "scan.h5"
    write_raw(path, [small_kspace(Index(slice=s)) for s in range(2)])
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call `mri-qpan recon` in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mri-qpan", "recon", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main.run()
        said = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, said.out, said.err

    return call


def test_a_file_becomes_images(run: Run, raw: Path, tmp_path: Path) -> None:
    code, said, errors = run(raw, "-m", "cg-sense", "-o", "images")
    assert (code, errors) == (0, "")
    stem = "scan_cg-sense"
    written = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert written == [f"{stem}.{s}" for s in ("h5", "json", "nii.gz", "png")]
    assert "2 images of 1 x 48 x 40" in said
    assert "note: coil maps by ESPIRiT" in said
    assert f"wrote images/{stem}.nii.gz" in said
    record = json.loads((tmp_path / "images" / f"{stem}.json").read_text())
    assert record["command"] == f"mri-qpan recon {raw} -m cg-sense -o images"
    assert nib.load(tmp_path / "images" / f"{stem}.nii.gz").shape == (40, 48, 2)


def test_a_study_prints_its_table(run: Run, raw: Path) -> None:
    code, said, _ = run(raw, "-m", "cg-sense", "--undersample", "lines:50%:1")
    assert code == 0
    assert "PSNR" in said
    assert "mean of 2" in said
    figures = json.loads(Path("scan_cg-sense.json").read_text())["metrics"]
    assert f"{figures['cg-sense']['psnr']:.2f}" in said
    assert f"{figures['zero-filled']['ssim']:.4f}" in said


def test_a_missing_edge_is_told_and_filled_as_asked(run: Run, raw: Path) -> None:
    options = ("--undersample", "partial:0.75", "--report", "-f", "npy")
    code, said, _ = run(raw, "-m", "cg-sense", *options)
    assert code == 0
    assert "note: partial Fourier: 75.0% along y; the edge as POCS fills it" in said
    record = json.loads(Path("scan_cg-sense.json").read_text())
    for image in record["images"]:
        assert image["partial_fourier"] == {"filled_by": "pocs", "fraction": {"y": 0.75}, "followed": False}
    assert "<th>partial Fourier</th><td>75.0% along y" in Path("scan_cg-sense.html").read_text()
    code, said, _ = run(raw, "-m", "cg-sense", *options, "--partial-fourier", "none")
    assert "the edge as the method made it" in said
    left = json.loads(Path("scan_cg-sense.json").read_text())["metrics"]["cg-sense"]["psnr"]
    assert record["metrics"]["cg-sense"]["psnr"] > left + 2
    code, _, errors = run(raw, "--partial-fourier", "homodyne")
    assert (code, errors.count("\n")) == (2, 1)
    assert "choose auto, pocs, none" in errors


def test_maps_are_taken(run: Run, raw: Path) -> None:
    np.save("maps.npy", np.ones((4, 48, 40), np.complex64))
    code, said, _ = run(raw, "-m", "zero-filled", "--maps", "maps.npy")
    assert code == 0
    assert "coil maps as given" in said


def test_formats_are_chosen(run: Run, raw: Path, tmp_path: Path) -> None:
    code, said, _ = run(raw, "-m", "zero-filled", "-o", "o", "-f", "dicom, cfl,npy,fastmri")
    assert code == 0
    stem = "scan_zero-filled"
    written = {path.name for path in (tmp_path / "o").iterdir()}
    suffixes = ("_0001.dcm", "_0002.dcm", ".cfl", ".hdr", ".npy", ".fastmri.h5", ".json")
    assert written == {stem + suffix for suffix in suffixes}
    assert f"wrote o/{stem}_0002.dcm" in said
    again, said, _ = run(
        f"o/{stem}.cfl", "-m", "zero-filled", "-o", "again"
    )  # images as k-space: BART's dims
    assert again == 0
    assert "2 images" in said


def test_channels_are_compressed(run: Run, raw: Path) -> None:
    code, said, _ = run(raw, "-m", "zero-filled", "--coils", "2", "--undersample", "lines:0.5")
    assert code == 0
    assert "4 channels compressed geometrically" in said


def test_uncertainty_is_a_series_of_its_own(run: Run, raw: Path, tmp_path: Path) -> None:
    code, _, _ = run(raw, "-m", "zero-filled", "--uncertainty", "3", "-f", "nifti,dicom", "-o", "o")
    assert code == 0
    names = {path.name for path in (tmp_path / "o").iterdir()}
    assert {"scan_zero-filled_uncertainty.nii.gz", "scan_zero-filled_uncertainty_0002.dcm"} <= names
    maps, images = (nib.load(tmp_path / f"o/scan_zero-filled{s}.nii.gz") for s in ("_uncertainty", ""))
    np.testing.assert_array_equal(maps.affine, images.affine)
    assert 0 < maps.get_fdata().max() < images.get_fdata().max()


def test_the_phase_is_a_series_of_its_own(run: Run, raw: Path, tmp_path: Path) -> None:
    code, _, _ = run(raw, "-m", "zero-filled", "--phase", "-f", "nifti,npy,dicom", "-o", "o")
    assert code == 0
    pixels = np.load(tmp_path / "o/scan_zero-filled.npy")
    phase = nib.load(tmp_path / "o/scan_zero-filled_phase.nii.gz").get_fdata()
    np.testing.assert_allclose(phase, np.angle(pixels[:, 0]).transpose(2, 1, 0), atol=1e-6)
    assert (tmp_path / "o/scan_zero-filled_phase_0001.dcm").is_file()
    assert not (tmp_path / "o/scan_zero-filled_phase.npy").exists()


def test_maps_of_noise_in_every_format(run: Run, raw: Path, tmp_path: Path) -> None:
    formats = "ismrmrd,nifti,png,dicom,cfl,npy"
    command = (raw, "-m", "cg-sense", "--undersample", "lines:0.5", "--uncertainty", "3", "-f", formats)
    code, said, _ = run(*command, "-o", "o")
    assert code == 0
    stem = tmp_path / "o" / "scan_cg-sense"
    data = {name: np.load(f"{stem}_{name}.npy") for name in ("uncertainty", "snr", "gfactor")}
    image = np.abs(np.load(f"{stem}.npy"))
    uids = set()
    for number, (name, pixels) in enumerate(data.items(), start=2):
        assert Path(f"{stem}_{name}.png").is_file()
        assert Path(f"{stem}_{name}.hdr").is_file()
        nifti = nib.load(f"{stem}_{name}.nii.gz").get_fdata()
        np.testing.assert_allclose(nifti, np.abs(pixels[:, 0]).transpose(2, 1, 0), rtol=1e-6)
        with ismrmrd.Dataset(f"{stem}_{name}.h5", "dataset", mode="r") as file:
            head = file.read_image(f"image_{number}", 1)
            assert head.image_series_index == number
            assert head.meta["DataRole"] == {"uncertainty": "STD_MAP", "snr": "SNR_MAP"}.get(name, "Gfactor")
        first = pydicom.dcmread(f"{stem}_{name}_0001.dcm")
        assert list(first.ImageType[:3]) == ["DERIVED", "PRIMARY", "OTHER"]
        assert first.ImageType[3] == {"uncertainty": "STD_MAP", "snr": "SNR_MAP"}.get(name, "GFACTOR")
        assert first.SeriesNumber == number
        uids.add(first.SeriesInstanceUID)
        if name != "uncertainty":  # a viewer reads the number itself
            shown = first.pixel_array * float(first.RescaleSlope)
            np.testing.assert_allclose(shown, pixels[0, 0].real, atol=pixels.real.max() / 32767)
    assert len(uids) == 3
    assert pydicom.dcmread(f"{stem}_gfactor_0001.dcm").SeriesDescription.endswith("cg-sense g-factor")
    seen = image > 0.5 * image.max()
    # At a strong signal the magnitude and one part of the complex value vary alike.
    ratio = data["snr"].real[seen] * data["uncertainty"].real[seen] / image[seen]
    assert np.median(ratio) == pytest.approx(1, abs=0.3)
    record = json.loads(Path(f"{stem}.json").read_text())
    assert record["images"][0]["gfactor"]["median"] == pytest.approx(
        np.median(data["gfactor"].real[0][data["gfactor"].real[0] > 0])
    )
    assert f"wrote {Path('o') / 'scan_cg-sense_gfactor.nii.gz'}" in said


def test_axes_of_an_array_are_named(run: Run, small_kspace: Callable[..., KSpace]) -> None:
    np.save("k.npy", small_kspace().data[:, 0].transpose(1, 2, 0))
    code, said, _ = run("k.npy", "-m", "zero-filled", "--dims", "y,x,coil")
    assert code == 0
    assert "1 image of 1 x 48 x 40" in said


WRONG = {
    "one replica": (["k.npy", "-m", "tv", "--uncertainty", "1"], "at least 2 reconstructions"),
    "axes without names": (["k.npy", "-m", "tv"], "say what its axes are, with --dims"),
    "unknown format": (["nothing.h5", "-f", "png,jpeg"], "no format called 'jpeg'"),
    "unknown partial Fourier": (["scan.h5", "--partial-fourier", "foo"], "choose auto"),
    "unknown coils": (["scan.h5", "--coils", "foo"], "give a number of virtual ones"),
    "archive of arrays": (["a.npz", "-m", "tv"], "save its k-space as .npy"),
    "missing file": (["nothing.h5", "-m", "tv"], "nothing.h5: no such file"),
    "folder": ([".", "-m", "tv"], "is a folder: give the files in it"),
    "another kind of file": (["notes.txt", "-m", "tv"], "notes.txt: not an HDF5 file"),
    "unknown method": (["scan.h5", "-m", "wavlet"], "did you mean wavelet?"),
    "missing model": (["scan.h5", "-m", "mine.safetensors"], "mine.safetensors"),
    "bad spec": (["scan.h5", "-m", "tv", "--undersample", "lines"], "KIND:RATIO[:SEED]"),
    "bad ratio": (["scan.h5", "-m", "tv", "--undersample", "lines:4"], "did you mean 4% or 4x?"),
    "unknown kind": (["scan.h5", "-m", "tv", "--undersample", "line:0.3"], "choose from"),
    "unknown device": (["scan.h5", "-m", "tv", "--device", "gpu"], "choose auto, cpu or cuda"),
    "output is a file": (["scan.h5", "-m", "tv", "-o", "notes.txt"], "cannot write to notes.txt"),
    "maps": (["scan.h5", "-m", "tv", "--maps", "notes.txt"], "notes.txt: cannot read coil maps"),
    "missing maps": (["scan.h5", "-m", "tv", "--maps", "no.npy"], "no.npy: No such file or directory"),
    "names that collide": (["scan.h5", "a/scan.h5", "-m", "tv"], "outputs of one name"),
}


IMPOSSIBLE = {"bad spec", "bad ratio", "unknown kind", "unknown method", "unknown device", "one replica"} | {
    name for name in WRONG if name in ("unknown format", "unknown partial Fourier", "unknown coils")
}
"""Of `WRONG`: whatever the input."""


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_end_in_one_line(run: Run, case: str) -> None:
    Path("notes.txt").write_text("hello")
    arguments, message = WRONG[case]
    code, said, errors = run(*arguments)
    assert code == (2 if case in IMPOSSIBLE else 3)
    assert said == ""
    assert errors.startswith("mri-qpan: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert [path.name for path in Path().iterdir()] == ["notes.txt"]


def test_wrong_usage_is_code_2(run: Run) -> None:
    for arguments in ([], ["scan.h5", "--methode", "tv"]):
        code, _, errors = run(*arguments)
        assert code == 2
        assert "Traceback" not in errors


def test_one_bad_file_does_not_stop_the_others(run: Run, raw: Path) -> None:
    Path("bad.h5").write_bytes(b"no")
    code, said, errors = run("bad.h5", raw, "missing.h5", "-m", "zero-filled")
    assert code == 4
    assert Path("scan_zero-filled.png").exists()
    assert errors.count("\n") == 2
    assert "bad.h5" in errors
    assert "missing.h5" in errors
    assert "2 images" in said


def test_an_undersampled_file_cannot_be_studied(
    run: Run, tmp_path: Path, small_kspace: Callable[..., KSpace]
) -> None:
    kspace = small_kspace()
    kspace.mask[:, 5] = False
    write_raw(tmp_path / "part.h5", [kspace])
    code, _, errors = run("part.h5", "-m", "zero-filled", "--undersample", "lines:0.5")
    assert code == 3
    assert "fully sampled" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["part.h5"]


def test_a_bug_in_a_method_is_code_1(run: Run, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("mri_qpan.recon.job._one", fail)
    code, _, errors = run(raw, "-m", "zero-filled")
    assert code == 1
    assert errors == f"mri-qpan: {raw}: ZeroDivisionError: oops\n"


def test_ctrl_c_leaves_nothing(run: Run, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(FORMATS, "png", Format(".png", interrupt))
    code, _, errors = run(raw, "-m", "zero-filled")
    assert code == 130
    assert "interrupted" in errors
    assert list(Path().iterdir()) == []


def test_sigterm_finishes_the_image_in_hand(run: Run, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mri_qpan.recon import job

    real, done = job.reconstruct, []

    def terminated(*arguments: object, **options: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        result = real(*arguments, **options)  # type: ignore[arg-type]
        done.append(result)
        return result

    monkeypatch.setattr(job, "reconstruct", terminated)
    handler = signal.getsignal(signal.SIGTERM)
    code, _, errors = run(raw, "other.h5", "-m", "zero-filled")
    assert code == recon.TERMINATED == 143
    assert len(done) == 1
    assert "stopped after image 1 of 2" in errors
    assert "stopped before other.h5" in errors
    assert list(Path().iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == handler


def test_help_has_examples(run: Run) -> None:
    code, said, _ = run("--help")
    assert code == 0
    assert "mri-qpan recon scan.h5" in said
    assert "--undersample" in said


def test_a_real_head(run: Run, shared_data: Path) -> None:
    code, said, _ = run(
        shared_data / "kspace/head_8ch_256.h5", "-m", "cg-sense", "--undersample", "lines:0.33"
    )
    assert code == 0
    figures = json.loads(Path("head_8ch_256_cg-sense.json").read_text())["metrics"]
    assert figures["cg-sense"]["psnr"] > figures["zero-filled"]["psnr"] + 1
    assert "PSNR" in said


def test_a_real_undersampled_head(run: Run, shared_data: Path) -> None:
    code, said, _ = run(shared_data / "kspace/head_8ch_256_R3_acs24.h5", "-m", "cg-sense")
    assert code == 0
    assert "39.8% of k-space" in said
