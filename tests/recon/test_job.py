import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pydicom
import pytest
import torch
from mrd_files import header_xml, lines, random_kspace, write
from torch import Tensor

from mri_qpan.encoding import Normal
from mri_qpan.errors import InputError, OptionError, ReconError
from mri_qpan.fourier import ifft_numpy
from mri_qpan.methods import Method, get_method
from mri_qpan.recon.job import Job, StoppedError, output_stem, reconstruct_file
from mri_qpan.recon.kspace import Index, KSpace
from mri_qpan.recon.maps import load_maps, maps_of
from mri_qpan.recon.pipeline import reconstruct
from mri_qpan.recon.prepare import prepare
from mri_qpan.recon.study import Undersampling
from mri_qpan.recon.writers import Format, find_formats
from mri_qpan.recon.writers.ismrmrd_raw import write_raw
from mri_qpan.sampling_masks import make_mask, save_mask

Maker = Callable[..., KSpace]
CPU = torch.device("cpu")
ZERO_FILLED = Job(get_method("zero-filled"), CPU)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, small_kspace: Maker) -> Path:
    """Two repetitions of two slices."""
    path = tmp_path_factory.mktemp("raw") / "scan.h5"
    write_raw(path, [small_kspace(Index(repetition=r, slice=s), coils=1) for r in range(2) for s in range(2)])
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_report_on_a_name_that_is_not_utf8(raw: Path, tmp_path: Path) -> None:
    scan = tmp_path / os.fsdecode(b"M\xfcller.h5")
    shutil.copy(raw, scan)
    job = replace(ZERO_FILLED, report=True, formats=find_formats(["npy"]))
    reconstruct_file(scan, tmp_path, job)
    (page,) = tmp_path.glob("*.html")
    assert "ller.h5" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("empty", [0, 2])
def test_a_blank_image_loses_no_other(small_kspace: Maker, tmp_path: Path, empty: int) -> None:
    series = [small_kspace(Index(slice=s), coils=1) for s in range(3)]
    series[empty] = replace(series[empty], data=0 * series[empty].data)
    write_raw(tmp_path / "scan.h5", series)
    job = replace(ZERO_FILLED, formats=find_formats(["ismrmrd", "dicom", "nifti", "png", "npy"]), report=True)
    record = reconstruct_file(tmp_path / "scan.h5", tmp_path, job)
    (stem,) = {Path(name).stem for name in record["outputs"] if name.endswith(".npy")}
    images = np.load(tmp_path / f"{stem}.npy")
    assert [bool(image.any()) for image in images.reshape(3, -1)] == [s != empty for s in range(3)]
    full = small_kspace(Index(slice=1), coils=1)
    np.testing.assert_allclose(images[1].squeeze(), ifft_numpy(full.data, (-2, -1))[0, 0], atol=1e-5)
    assert record["warnings"] == [f"slice {empty}: every sample is zero, and so is its image"]
    assert record["mask_ratio"] == 1
    assert record["residual"] < 1e-5
    assert isinstance(record["mask_hash"], str)
    planes = [pydicom.dcmread(path) for path in sorted(tmp_path.glob("*.dcm"))]
    assert [bool(plane.pixel_array.any()) for plane in planes] == [s != empty for s in range(3)]
    with pytest.raises(ReconError, match="refused as --strict asks"):
        reconstruct_file(tmp_path / "scan.h5", tmp_path, replace(job, strict=True))


def test_a_file_of_zeros_is_bad_input(small_kspace: Maker, tmp_path: Path) -> None:
    blank = small_kspace(Index(), coils=1)
    np.save(tmp_path / "zeros.npy", np.zeros_like(blank.data[:, 0]))
    job = replace(ZERO_FILLED, dims="coil,y,x")
    with pytest.raises(InputError, match="every sample is zero"):
        reconstruct_file(tmp_path / "zeros.npy", tmp_path, job)
    assert names(tmp_path) == ["zeros.npy"]


def test_a_name_too_long_for_outputs_is_bad_input(raw: Path, tmp_path: Path) -> None:
    scan = tmp_path / f"{'a' * 250}.h5"
    shutil.copy(raw, scan)
    with pytest.raises(InputError, match=r"called after it \(file name too long\): rename"):
        reconstruct_file(scan, tmp_path, ZERO_FILLED)
    assert names(tmp_path) == [scan.name]


def test_outputs_and_record(raw: Path, tmp_path: Path) -> None:
    seen = []
    record = reconstruct_file(raw, tmp_path, ZERO_FILLED, progress=lambda *state: seen.append(state))
    stem = "scan_zero-filled"
    assert (
        names(tmp_path)
        == sorted(f"{stem}.{s}" for s in ("h5", "nii.gz", "png", "json"))
        == sorted(record["outputs"])
    )
    assert seen == [(i, 4) for i in range(5)]
    assert json.loads((tmp_path / f"{stem}.json").read_text()) == record
    assert record["input"] == str(raw)
    assert record["method"] == "zero-filled"
    assert record["model_sha256"] is None
    assert record["mask_ratio"] == 1
    assert len(record["mask_hash"]) == 12
    assert record["residual"] < 1e-4
    assert set(record["seconds"]) == {"read", "maps", "recon", "write"}
    assert record["peak_memory_mib"]["host"] > 1
    assert [(i["repetition"], i["slice"]) for i in record["images"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert record["images"][0]["matrix_zyx"] == [1, 48, 40]


def test_a_study_may_have_the_mask_of_a_file(raw: Path, tmp_path: Path) -> None:
    """Published masks are files, with the zero frequency at the corner in MATLAB's."""
    figures = []
    for spec in ("lines:0.5:3", str(tmp_path / "m.npy"), str(tmp_path / "m.mat")):
        if spec.startswith("/"):
            save_mask(spec, make_mask("lines", (48, 40), 0.5, seed=3))
        job = Job(get_method("cg-sense"), CPU, Undersampling.parse(spec))
        (tmp_path / "out").mkdir(exist_ok=True)
        record = reconstruct_file(raw, tmp_path / "out", job)
        assert record["undersample"] == spec
        figures.append((record["mask_hash"], record["metrics"]))
    assert figures[0] == figures[1] == figures[2]
    save_mask(tmp_path / "m.npy", np.ones((40, 48), bool))
    with pytest.raises(InputError, match="a mask of 40 x 48 for a matrix of 48 x 40"):
        reconstruct_file(raw, tmp_path, replace(job, undersampling=Undersampling.parse(f"{tmp_path}/m.npy")))
    with pytest.raises(OptionError, match="no such file"):
        Undersampling.parse(f"{tmp_path}/none.npy")


def test_a_study_saves_its_figures(raw: Path, tmp_path: Path) -> None:
    job = Job(get_method("cg-sense"), CPU, Undersampling.parse("lines:0.5"))
    record = reconstruct_file(raw, tmp_path, job)
    assert record["undersample"] == "lines:0.5"
    assert record["mask_ratio"] == 0.5
    per_image = [image["metrics"]["cg-sense"]["psnr"] for image in record["images"]]
    assert record["metrics"]["cg-sense"]["psnr"] == pytest.approx(np.mean(per_image))
    assert set(record["metrics"]["zero-filled"]) == {"psnr", "ssim", "nmse", "hfen"}


def test_outputs_of_an_earlier_run_are_replaced(raw: Path, tmp_path: Path) -> None:
    reconstruct_file(raw, tmp_path, ZERO_FILLED)
    (tmp_path / "scan_zero-filled.png").write_text("old")
    record = reconstruct_file(raw, tmp_path, ZERO_FILLED)
    assert (tmp_path / "scan_zero-filled.png").read_bytes().startswith(b"\x89PNG")
    assert not any("earlier run" in note for note in record["notes"])


def test_those_that_are_not_made_again_are_told_of(raw: Path, tmp_path: Path) -> None:
    job = replace(ZERO_FILLED, formats=find_formats(["npy", "png"]), report=True)
    reconstruct_file(raw, tmp_path, job)
    record = reconstruct_file(raw, tmp_path, replace(job, formats=find_formats(["png"]), report=False))
    (note,) = (note for note in record["notes"] if "earlier run" in note)
    assert note.endswith("scan_zero-filled.html, scan_zero-filled.npy")
    assert (tmp_path / "scan_zero-filled.npy").exists()


@pytest.mark.parametrize(
    "name", ["scan_zero-filled.png", "scan_zero-filled.json", "scan_zero-filled_phase.png"]
)
def test_what_is_no_output_is_not_replaced(raw: Path, tmp_path: Path, name: str) -> None:
    """Raw data may have such a name, and another input of the same command too."""
    (tmp_path / name).write_text("precious")
    with pytest.raises(InputError, match=r"would be replaced.*move it away"):
        reconstruct_file(raw, tmp_path, replace(ZERO_FILLED, phase=True))
    assert (tmp_path / name).read_text() == "precious"
    assert names(tmp_path) == [name]


def test_planes_of_a_longer_series_before_go(tmp_path: Path, small_kspace: Maker) -> None:
    """Nobody else's files of a like name, nor those of a series that is not made again."""
    raw, folder, stem = tmp_path / "scan.h5", tmp_path / "out", "scan_zero-filled"
    folder.mkdir()

    def made(planes: int, phase: bool) -> list[str]:
        raw.unlink(missing_ok=True)
        write_raw(raw, [small_kspace(Index(slice=s), coils=1) for s in range(planes)])
        job = replace(ZERO_FILLED, formats=find_formats(["dicom"]), phase=phase)
        reconstruct_file(raw, folder, job)
        return [name for name in names(folder) if name.endswith(".dcm")]

    both = made(4, phase=True)
    assert len(both) == 8
    phases = [name for name in both if "phase" in name]
    others = [
        f"{stem}_0007.dcm",
        f"{stem}_1.dcm",
        f"{stem}_00008.dcm",
        "other_0003.dcm",
        f"{stem}_0003.dcm.bak",
    ]
    (folder / others[0]).write_text("someone's notes")
    for name in others[1:]:
        (folder / name).write_bytes((folder / both[0]).read_bytes())
    left = made(2, phase=False)
    assert left == sorted([f"{stem}_0001.dcm", f"{stem}_0002.dcm", *phases, *others[:4]])
    assert (folder / others[4]).exists()


def test_planes_that_another_run_has_just_written_stay(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(ZERO_FILLED, formats=find_formats(["dicom"]))
    reconstruct_file(raw, tmp_path, job)
    late = tmp_path / "scan_zero-filled_0005.dcm"
    late.write_bytes((tmp_path / "scan_zero-filled_0001.dcm").read_bytes())
    before = os.replace

    def meanwhile(source: Path, target: Path) -> None:
        before(source, target)
        if target.suffix == ".dcm":
            (tmp_path / "new").write_bytes(target.read_bytes())
            before(tmp_path / "new", late)

    monkeypatch.setattr(os, "replace", meanwhile)
    reconstruct_file(raw, tmp_path, job)
    assert late.exists()


def failing_at(number: int, error: BaseException) -> Method:
    calls = []

    def run(adjoint: Tensor, normal: Normal) -> Tensor:
        calls.append(1)
        if len(calls) == number:
            raise error
        return adjoint

    return Method("fake", run)


@pytest.mark.parametrize("error", [ReconError("no luck"), KeyboardInterrupt(), RuntimeError("a bug")])
def test_a_failure_leaves_nothing(raw: Path, tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        reconstruct_file(raw, tmp_path, Job(failing_at(3, error), CPU))
    assert names(tmp_path) == []
    if isinstance(error, ReconError):
        assert str(caught.value) == f"{raw}: slice 0: no luck"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failure_to_write_leaves_nothing(raw: Path, tmp_path: Path, error: BaseException) -> None:
    def fail(path: Path, series: object) -> None:
        path.write_text("half")
        raise error

    job = replace(ZERO_FILLED, formats=find_formats(["ismrmrd"]) | {"half": Format(".half", fail)})
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ReconError) as caught:
        reconstruct_file(raw, tmp_path, job)
    assert names(tmp_path) == []
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value)


def test_a_format_that_cannot_hold_the_series_is_left_out(raw: Path, tmp_path: Path) -> None:
    def refuse(path: Path, series: object) -> None:
        path.write_text("half")
        raise ReconError("too many images")

    job = replace(ZERO_FILLED, formats=find_formats(["png"]) | {"one": Format(".one", refuse)})
    record = reconstruct_file(raw, tmp_path, job)
    assert names(tmp_path) == ["scan_zero-filled.json", "scan_zero-filled.png"]
    assert "no one file: too many images" in record["notes"]


def test_a_stop_finishes_the_image_in_hand(raw: Path, tmp_path: Path) -> None:
    stop, finished = Event(), []

    def run(adjoint: Tensor, normal: Normal) -> Tensor:
        stop.set()
        return adjoint

    job = Job(Method("fake", run), CPU)
    with pytest.raises(StoppedError, match="after image 1 of 4"):
        reconstruct_file(raw, tmp_path, job, stop=stop, progress=lambda done, total: finished.append(done))
    assert finished == [0, 1]
    assert names(tmp_path) == []


def test_a_stop_at_the_last_image_still_writes(raw: Path, tmp_path: Path) -> None:
    stop = Event()
    job = Job(get_method("zero-filled"), CPU)
    reconstruct_file(
        raw, tmp_path, job, stop=stop, progress=lambda done, total: stop.set() if done == total else None
    )
    assert len(names(tmp_path)) == 4


def test_slices_that_are_no_volume_still_give_the_other_files(tmp_path: Path, small_kspace: Maker) -> None:
    path = tmp_path / "uneven.h5"
    write_raw(path, [small_kspace(Index(slice=s), coils=1) for s in (0, 1, 4)])
    out = tmp_path / "out"
    out.mkdir()
    record = reconstruct_file(path, out, ZERO_FILLED)
    assert names(out) == [f"uneven_zero-filled.{s}" for s in ("h5", "json", "png")]
    assert any("no nifti file" in note and "evenly spaced" in note for note in record["notes"])


def test_every_encoding_has_files_of_its_own(tmp_path: Path) -> None:
    first, second = random_kspace(1, 6, 8), random_kspace(1, 10, 12, seed=1)
    xmls = header_xml((8, 6, 1)), header_xml((12, 10, 1))
    both = xmls[0].replace(
        "</encoding>",
        "</encoding><encoding>" + xmls[1].split("<encoding>")[1].split("</encoding>")[0] + "</encoding>",
    )
    path = write(tmp_path / "scan.h5", both, lines(first) + lines(second, encoding=1))
    job = replace(ZERO_FILLED, formats=find_formats(["npy", "dicom"]))
    record = reconstruct_file(path, tmp_path, job)
    for encoding, samples in enumerate((first, second)):
        image = np.load(tmp_path / f"scan_zero-filled_encoding{encoding}.npy")[0]
        np.testing.assert_allclose(image, ifft_numpy(samples, (-2, -1)), atol=1e-5)
        assert f"scan_zero-filled_encoding{encoding}_0001.dcm" in record["outputs"]


def test_assumptions_go_with_every_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", random_kspace(6, 8))
    job = replace(ZERO_FILLED, dims="y,x", formats=find_formats(["dicom"]))
    reconstruct_file(tmp_path / "a.npy", tmp_path, job)
    file = pydicom.dcmread(tmp_path / "a_zero-filled_0001.dcm")
    assert any(
        "taken as 1 mm" in note
        for note in json.loads(file.private_block(0x2025, "mri-qpan")[1].value)["notes"]
    )


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        reconstruct_file(tmp_path, tmp_path, ZERO_FILLED)


def test_names_of_models_cannot_leave_the_folder() -> None:
    assert output_stem(Path("/a/scan.h5"), Method("../../x y", lambda a, n: a)) == "scan_.._.._x_y"


def test_maps_from_a_file(tmp_path: Path, raw: Path) -> None:
    maps = np.ones((1, 48, 40), np.complex128)
    np.save(tmp_path / "maps.npy", maps)
    loaded = load_maps(tmp_path / "maps.npy")
    assert loaded.shape == (1, 1, 48, 40)
    assert loaded.dtype == np.complex64
    record = reconstruct_file(raw, tmp_path, Job(get_method("zero-filled"), CPU, mps=loaded))
    assert any("maps as given" in note for note in record["notes"])
    assert any("of one slice were taken for every slice" in note for note in record["notes"])


def test_every_slice_has_its_own_maps(tmp_path: Path, small_kspace: Maker) -> None:
    slices = [small_kspace(Index(slice=s)) for s in range(2)]
    path = tmp_path / "scan.h5"
    write_raw(path, slices)
    own = [prepare(kspace).mps for kspace in slices]
    own[1] = np.roll(own[1], 1, axis=0)  # which do not fit the second slice
    np.save(tmp_path / "maps.npy", np.concatenate(own, axis=1))
    job = Job(get_method("zero-filled"), CPU, mps=load_maps(tmp_path / "maps.npy"))
    first, second = (image["residual"] for image in reconstruct_file(path, tmp_path, job)["images"])
    assert first < 0.05 < second
    with pytest.raises(InputError, match="those of 2 slices, none of them number 2"):
        maps_of(job.mps, small_kspace(Index(slice=2)))


def test_sets_of_maps_from_a_file(tmp_path: Path, small_kspace: Maker) -> None:
    kspace = small_kspace()
    maps = prepare(kspace, sets=2).mps
    np.save(tmp_path / "maps.npy", 3 * maps)
    given = prepare(kspace, mps=load_maps(tmp_path / "maps.npy")).mps
    np.testing.assert_allclose(given, maps, atol=1e-5)
    expected, image = (
        reconstruct(replace(kspace, calib=None), get_method("zero-filled"), mps=m, compress=c).image.data
        for m, c in ((maps, None), (maps, 4))
    )
    np.testing.assert_allclose(image, expected, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("content", [np.ones((2, 3)), np.ones((1, 4, 4)), np.full((1, 4, 4), np.nan + 0j)])
def test_other_arrays_are_no_maps(tmp_path: Path, content: np.ndarray) -> None:
    np.save(tmp_path / "maps.npy", content)
    with pytest.raises(InputError, match=r"maps\.npy"):
        load_maps(tmp_path / "maps.npy")


def test_other_files_are_no_maps(tmp_path: Path) -> None:
    (tmp_path / "maps.npy").write_bytes(b"no")
    np.savez(tmp_path / "maps.npz", a=np.ones(3))
    np.save(tmp_path / "open.npy", np.ones((1, 4, 4), complex))
    header = (tmp_path / "open.npy").read_bytes()
    (tmp_path / "open.npy").write_bytes(header.replace(b"}", b" "))  # which Python's tokenizer trips over
    for name in ("maps.npy", "maps.npz", "missing.npy", "open.npy"):
        with pytest.raises(InputError, match=name):
            load_maps(tmp_path / name)


def test_a_run_that_writes_no_image_fails(tmp_path: Path, small_kspace: Maker) -> None:
    """An animation of a single frame is none; beside another format that is a note."""
    path = tmp_path / "one.h5"
    write_raw(path, [small_kspace(Index(), coils=1)])
    for name in "ab":
        (tmp_path / name).mkdir()
    with pytest.raises(ReconError, match="no animation file"):
        reconstruct_file(path, tmp_path / "a", replace(ZERO_FILLED, formats=find_formats(["animation"])))
    assert not names(tmp_path / "a")
    record = reconstruct_file(
        path, tmp_path / "b", replace(ZERO_FILLED, formats=find_formats(["npy", "animation"]))
    )
    assert sorted(record["outputs"]) == ["one_zero-filled.json", "one_zero-filled.npy"]
    assert any("no animation file" in note for note in record["notes"])
