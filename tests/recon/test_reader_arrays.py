"""Arrays in .npy and .mat files, their axes named by the user."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from mrd_files import few, random_kspace

from mri_qpan.errors import InputError
from mri_qpan.recon.kspace import Index
from mri_qpan.recon.readers import arrays, open_kspace
from mri_qpan.recon.readers.arrays import NAMES


@given(names=st.permutations(NAMES), leave=st.integers(0, 7))
@few()
def test_any_order_of_axes(tmp_path_factory: pytest.TempPathFactory, names: list[str], leave: int) -> None:
    path = tmp_path_factory.mktemp("arrays") / "k.npy"
    chosen = [n for n in names if n in ("x", "y")] + [n for n in names if n not in ("x", "y")][:leave]
    chosen = sorted(chosen, key=names.index)
    sizes = dict(zip(NAMES, (2, 1, 2, 1, 3, 1, 2, 2, 4, 5), strict=True))
    kspace = random_kspace(*(sizes[n] for n in chosen))
    np.save(path, kspace)
    images = list(open_kspace(path, ",".join(chosen)))
    assert [i.index for i in images] == sorted(i.index for i in images)
    for image in images:
        at = tuple(getattr(image.index, n) if n in vars(Index()) else slice(None) for n in chosen)
        left = [n for n in chosen if n not in vars(Index())]
        part = kspace[at].transpose([left.index(n) for n in ("average", "coil", "z", "y", "x") if n in left])
        np.testing.assert_array_equal(np.squeeze(image.data), np.squeeze(part))


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_matlab(tmp_path: Path, version: str) -> None:
    kspace = random_kspace(6, 8, 2)  # as size(kspace) shows it
    path = tmp_path / "k.mat"
    if version == "5":
        scipy.io.savemat(path, {"kspace": kspace, "other": random_kspace(3, 4, 5)})
    else:
        with h5py.File(path, "w") as file:
            parts = np.empty(kspace.T.shape, [("real", "f4"), ("imag", "f4")])
            parts["real"], parts["imag"] = kspace.T.real, kspace.T.imag
            file["kspace"] = parts
    (image,) = open_kspace(path, "y,x,coil")
    np.testing.assert_array_equal(image.data[:, 0], kspace.transpose(2, 0, 1))


def test_the_only_variable_that_fits(tmp_path: Path) -> None:
    path = tmp_path / "k.mat"
    scipy.io.savemat(path, {"raw": random_kspace(6, 8, 2), "mask": np.ones((6, 8))})
    (image,) = open_kspace(path, "y,x,coil")
    assert image.data.shape == (2, 1, 6, 8)
    several = {"a": random_kspace(6, 8), "b": random_kspace(6, 8, seed=1)}
    scipy.io.savemat(path, several)
    with pytest.raises(InputError, match="say which is the k-space"):
        open_kspace(path, "y,x")


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_a_variable_is_named(tmp_path: Path, version: str) -> None:
    path = tmp_path / "k.mat"
    several = {name: random_kspace(6, 8, seed=n) for n, name in enumerate(["kspace", "reference"])}
    if version == "5":
        scipy.io.savemat(path, several)
    else:
        with h5py.File(path, "w") as file:
            for name, array in several.items():
                file[name] = array.T
    (image,) = open_kspace(path, "reference:y,x")
    np.testing.assert_array_equal(image.data[0, 0], several["reference"])
    with pytest.raises(InputError, match=r"holds no variable 'other', but kspace \(6, 8\), reference"):
        open_kspace(path, "other:y,x")
    np.save(tmp_path / "k.npy", several["kspace"])
    with pytest.raises(InputError, match="no variable called 'reference'"):
        open_kspace(tmp_path / "k.npy", "reference:y,x")


@pytest.mark.parametrize("shifted", [False, True])
def test_an_echo_far_from_the_centre_is_said(tmp_path: Path, shifted: bool) -> None:
    kspace = random_kspace(2, 16, 20)
    kspace[:, 8, 10] = 50
    np.save(tmp_path / "k.npy", np.fft.ifftshift(kspace, axes=(1, 2)) if shifted else kspace)
    (image,) = open_kspace(tmp_path / "k.npy", "coil,y,x")
    said = [note for note in image.notes if "strongest sample lies at [0, 0, 0]" in note]
    assert len(said) == shifted


def test_a_matlab_file_that_crashes_the_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "crash.py"
    crash.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(arrays, "MAT5_WORKER", crash)
    scipy.io.savemat(tmp_path / "k.mat", {"kspace": random_kspace(6, 8)})
    with pytest.raises(InputError, match="crashed"):
        open_kspace(tmp_path / "k.mat", "y,x")


def test_averages_of_an_array(tmp_path: Path) -> None:
    kspace = random_kspace(2, 6, 8)
    kspace[1, 0] = 0
    np.save(tmp_path / "k.npy", kspace)
    (image,) = open_kspace(tmp_path / "k.npy", "average,y,x")
    np.testing.assert_allclose(image.data[0, 0, 1:], kspace[:, 1:].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(image.data[0, 0, 0], kspace[0, 0])


@pytest.mark.parametrize(
    ("dims", "words"),
    [
        (None, "say what its axes are"),
        ("coil,y", "x and y among them"),
        ("y,x,y", "each once"),
        ("t,y,x", "names of repetition"),
        ("y,x", "has not the 2 axes"),
    ],
)
def test_names_that_do_not_fit(tmp_path: Path, dims: str | None, words: str) -> None:
    np.save(tmp_path / "k.npy", random_kspace(2, 6, 8))
    with pytest.raises(InputError, match=words):
        open_kspace(tmp_path / "k.npy", dims)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    np.save(tmp_path / "real.npy", np.ones((6, 8)))
    with pytest.raises(InputError, match="k-space is complex"):
        open_kspace(tmp_path / "real.npy", "y,x")
    for name in ("a.npy", "a.mat"):
        (tmp_path / name).write_bytes(b"nothing of the kind" * 20)
        with pytest.raises(InputError, match="damaged"):
            open_kspace(tmp_path / name, "y,x")
        with pytest.raises(InputError, match="no such file"):
            open_kspace(tmp_path / f"no{name}", "y,x")
    kspace = random_kspace(6, 8)
    kspace[2, 3] = np.inf
    np.save(tmp_path / "inf.npy", kspace)
    with pytest.raises(InputError, match="NaN, infinite"):
        list(open_kspace(tmp_path / "inf.npy", "y,x"))
    with pytest.raises(InputError, match="tells its own"):
        open_kspace(tmp_path / "scan.h5", "y,x")


@pytest.mark.parametrize("form", ["complex", "pairs first", "pairs last", "7.3", "npy", "field of view"])
def test_samples_along_a_trajectory(tmp_path: Path, form: str) -> None:
    rng = np.random.default_rng(0)
    k = rng.uniform(-0.5, 0.5, (30, 4)) + 1j * rng.uniform(-0.5, 0.5, (30, 4))
    data = random_kspace(30, 4, 3)
    path, dims = tmp_path / "k.mat", "data:sample,readout,coil@k:16x12"
    coordinates = {
        "pairs first": np.stack([k.real, k.imag]),
        "pairs last": np.stack([k.real, k.imag], -1),
        "field of view": k.real * 16 + 12j * k.imag,
    }.get(form, k)
    if form == "7.3":
        with h5py.File(path, "w") as file:
            file["data"], file["k"] = data.T, coordinates.T
    elif form == "npy":
        path, dims = tmp_path / "data.npy", f"sample,readout,coil@{tmp_path / 'k.npy'}:16x12"
        np.save(path, data)
        np.save(tmp_path / "k.npy", k)
    else:
        scipy.io.savemat(path, {"data": data, "k": coordinates})
    (image,) = open_kspace(path, dims)
    assert image.recon_shape == (1, 12, 16)
    assert image.coord is not None
    np.testing.assert_allclose(image.coord[:, 0], 12 * k.imag.ravel(), atol=1e-5)
    np.testing.assert_allclose(image.coord[:, 1], 16 * k.real.ravel(), atol=1e-5)
    np.testing.assert_array_equal(image.data[:, 0, 0], data.transpose(2, 0, 1).reshape(3, -1))


def test_a_trajectory_for_every_slice_and_a_matrix_that_cuts(tmp_path: Path) -> None:
    k = np.linspace(-6, 6, 49).astype(np.complex64)
    data = random_kspace(2, 49)
    np.save(tmp_path / "k.npy", k)
    np.save(tmp_path / "data.npy", data)
    first, second = open_kspace(tmp_path / "data.npy", f"slice,sample@{tmp_path / 'k.npy'}:12")
    np.testing.assert_array_equal(first.data.ravel(), data[0])
    assert second.index == Index(slice=1)


@pytest.mark.parametrize(("matrix", "reach"), [(2, 1.0), (6, 3.0), (12, np.pi), (24, 3.5), (32, 0.5)])
def test_small_matrices_reach_little(tmp_path: Path, matrix: int, reach: float) -> None:
    np.save(tmp_path / "k.npy", reach * np.exp(2j * np.arange(49)) * np.linspace(0, 1, 49))
    np.save(tmp_path / "data.npy", random_kspace(49))
    (image,) = open_kspace(tmp_path / "data.npy", f"sample@{tmp_path / 'k.npy'}:{matrix}")
    assert image.coord is not None
    wanted = reach * matrix if reach == 0.5 else reach
    assert float(np.linalg.norm(image.coord[-1])) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("dims", "words"),
    [
        ("data:sample,coil@k", "a trajectory is NAME:MATRIX"),
        ("data:sample,coil@k:1x16", "a trajectory is NAME:MATRIX"),
        ("data:sample,coil@k:99999", "a trajectory is NAME:MATRIX"),
        ("data:sample,coil@k:4x4x4", "a trajectory is NAME:MATRIX"),
        ("data:x,y@k:16", "sample among them"),
        ("data:sample,coil@missing:16", "holds"),
        ("data:sample,coil@wrong:16", "is float64 of shape"),
        ("data:sample,coil@data:16", "wanted complex 40"),
        ("data:sample,coil@zero:16", "zero everywhere"),
        ("data:sample,coil@nan:16", "not finite"),
        ("data:sample,coil@far:16", "rescale it"),
        ("data:sample,coil@radians:32", "radians a pixel"),
        ("data:sample,coil@normalised:32", "from -1 to 1"),
        ("data:sample,coil@k:1024", "too few"),
        ("wrong:sample,coil@k:16", "k-space is complex"),
    ],
)
def test_trajectories_that_do_not_fit(tmp_path: Path, dims: str, words: str) -> None:
    k = np.linspace(-0.5, 0.5, 40)[:, None] * np.exp(1j)
    others = {"wrong": np.ones((40, 3)), "zero": 0 * k, "nan": k * np.nan, "far": 100 * k}
    others |= {"radians": 2 * np.pi * k, "normalised": 2 * k}
    scipy.io.savemat(tmp_path / "k.mat", {"data": random_kspace(40, 2), "k": k} | others)
    with pytest.raises(InputError, match=words):
        open_kspace(tmp_path / "k.mat", dims)
