"""Files cut off, changed and lying about their size, of every format: an `InputError` or images, no more.

`pytest --hypothesis-profile=fuzz tests/recon/test_reader_fuzz.py` tries fifty times as many of them.
"""

import contextlib
import io
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from mrd_files import KSPACE, NX, NY, XML, few, header_xml, line, lines, random_kspace
from mrd_files import write as write_mrd
from twix_files import end, readout, sync, write_vb
from twix_files import write as write_twix

from mri_qpan import bart
from mri_qpan.errors import InputError
from mri_qpan.recon.readers import hdf5, open_kspace

ARRAY = "coil,y,x"
LITTLE = 2**27  # bytes; what a few kilobytes of file may make a reader allocate


def cartesian(path: Path) -> None:
    noise = line(random_kspace(2, 30), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
    write_mrd(path, XML, [noise, *lines(KSPACE)])


def radial(path: Path) -> None:
    spokes = [
        ismrmrd.Acquisition.from_array(KSPACE[:, y], np.full((NX, 2), 0.1 * y, np.float32)) for y in range(NY)
    ]
    write_mrd(path, XML.replace("cartesian", "radial"), spokes)


def stack(path: Path) -> None:
    made = []
    for number in range(4 * NY):
        coord = np.full((NX, 3), 0.5 * (number % NY), np.float32)
        coord[:, 2] = number // NY - 2
        made.append(ismrmrd.Acquisition.from_array(KSPACE[:, number % NY], coord))
    write_mrd(path, header_xml((NX, NY, 4), trajectory="other"), made)


def fastmri(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["kspace"] = KSPACE[None]
        file["ismrmrd_header"] = XML
        file["mask"] = np.ones(NX, bool)


def cfl(path: Path) -> None:
    bart.write_cfl(path.with_suffix(""), KSPACE[:, None])


def npy(path: Path) -> None:
    np.save(path, KSPACE)


def mat5(path: Path) -> None:
    scipy.io.savemat(path, {"kspace": KSPACE, "mask": np.ones((3, 4))}, do_compression=True)


def mat73(path: Path) -> None:
    parts = np.empty(KSPACE.T.shape, [("real", "f4"), ("imag", "f4")])
    parts["real"], parts["imag"] = KSPACE.T.real, KSPACE.T.imag
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", data=parts, compression="gzip")
        file["mask"] = np.ones((3, 4))


def twix(path: Path) -> None:
    write_twix(path, {"noise": [twix_noise(), end()], "gre": twix_lines()})


def twix_vb(path: Path) -> None:
    pytest.importorskip("mapvbvd")
    write_vb(path, [twix_noise(), *twix_lines()])


def twix_noise() -> bytes:
    return readout(random_kspace(2, 30), ["noise"])


def twix_lines() -> list[bytes]:
    samples = random_kspace(2, 12, 16)
    return [*(readout(samples[:, y], lin=y, counter=y) for y in range(12)), sync(), end()]


FORMATS: dict[str, tuple[Callable[[Path], None], str]] = {
    "cartesian": (cartesian, ".h5"),
    "radial": (radial, ".h5"),
    "stack": (stack, ".h5"),
    "fastmri": (fastmri, ".h5"),
    "cfl": (cfl, ".cfl"),
    "hdr": (cfl, ".hdr"),
    "npy": (npy, ".npy"),
    "mat5": (mat5, ".mat"),
    "mat73": (mat73, ".mat"),
    "twix": (twix, ".dat"),
    "twix-vb": (twix_vb, ".dat"),
}


@pytest.fixture(scope="module", params=list(FORMATS))
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A good file, to be written over, and its bytes."""
    make, suffix = FORMATS[request.param]
    path = tmp_path_factory.mktemp("whole") / f"scan{suffix}"
    make(path)
    assert list(read(path))
    return path, path.read_bytes()


def read(path: Path) -> Iterator[object]:
    return open_kspace(path, ARRAY if path.suffix in (".npy", ".mat") else None)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "PATIENCE", 20)


Damage = Callable[[bytes], bytes]


def changed(flips: list[tuple[int, int]]) -> Damage:
    def damage(whole: bytes) -> bytes:
        damaged = bytearray(whole)
        for place, value in flips:
            # Half of them where the file holds something: headers are mostly zeros.
            filled = np.flatnonzero(np.frombuffer(whole, np.uint8)) if place % 2 else np.arange(len(whole))
            damaged[filled[place % filled.size]] = value
        return bytes(damaged)

    return damage


def cut_off(share: float, tail: bytes) -> Damage:
    return lambda whole: whole[: int(share * len(whole))] + tail


def missing(share: float, length: int) -> Damage:
    return lambda whole: whole[: int(share * len(whole))] + whole[int(share * len(whole)) + length :]


def repeated(share: float, length: int) -> Damage:
    return lambda whole: whole[: int(share * len(whole)) + length] + whole[int(share * len(whole)) :]


shares, lengths = st.floats(0, 1), st.integers(1, 64)
flips = st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 255)), min_size=1, max_size=4)
damages = st.one_of(
    st.builds(changed, flips),
    st.builds(cut_off, shares, st.binary(max_size=40)),
    st.builds(missing, shares, lengths),
    st.builds(repeated, shares, lengths),
)


@few(10)
@given(damage=damages)
def test_damaged(sample: tuple[Path, bytes], damage: Damage) -> None:
    path, whole = sample
    path.write_bytes(damage(whole))
    with contextlib.suppress(InputError):
        for image in read(path):
            assert image.data.nbytes < LITTLE


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_cut_off_files_are_refused(sample: tuple[Path, bytes], share: float) -> None:
    path, whole = sample
    used = whole.rstrip(b"\0")
    path.write_bytes(used[: int(share * len(used))])
    if path.suffix == ".hdr" and share >= 0.5:
        return  # the sizes are the first thing of it
    with pytest.raises(InputError, match=path.stem):
        list(read(path))


def huge_npy(path: Path) -> None:
    header = io.BytesIO()
    shape = {"descr": "<c8", "fortran_order": False, "shape": (64, 200000, 200000)}
    np.lib.format.write_array_header_1_0(header, shape)
    path.write_bytes(header.getvalue() + bytes(64))


def huge_hdr(path: Path) -> None:
    path.write_bytes(bytes(64))
    path.with_suffix(".hdr").write_text("# Dimensions\n200000 200000 1 64 1 1 1 1 1 1 1 1 1 1 1 1\n")


def huge_mat5(path: Path) -> None:
    scipy.io.savemat(path, {"kspace": np.ones((2, 6, 8), np.complex64)})
    content = path.read_bytes()
    sizes = np.array([2, 6, 8], "<i4").tobytes()
    assert sizes in content
    path.write_bytes(content.replace(sizes, np.array([64, 200000, 20000], "<i4").tobytes()))


def huge_mat73(path: Path) -> None:
    record = np.dtype([("real", "f4"), ("imag", "f4")])
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", (64, 40000, 40000), record, chunks=(1, 100, 100))


def huge_fastmri(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", (1, 64, 40000, 40000), np.complex64, chunks=(1, 1, 100, 100))


def huge_ismrmrd(path: Path) -> None:
    with h5py.File(path, "w") as file:
        dtype = ismrmrd.hdf5.acquisition_dtype
        file.create_dataset("dataset/data", (2**34,), dtype, chunks=(64,))
        file["dataset/xml"] = XML


def huge_twix(path: Path) -> None:
    twix(path)
    content = bytearray(path.read_bytes())
    place = content.rindex((16).to_bytes(2, "little") + (2).to_bytes(2, "little"))
    content[place : place + 4] = b"\xff" * 4
    path.write_bytes(content)


def huge_vb(path: Path) -> None:
    twix_vb(path)
    content = bytearray(path.read_bytes())
    place = content.index((16).to_bytes(2, "little") + (2).to_bytes(2, "little"), 10240)
    content[place : place + 4] = b"\xff" * 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "suffix"),
    [
        (huge_npy, ".npy"),
        (huge_hdr, ".cfl"),
        (huge_mat5, ".mat"),
        (huge_mat73, ".mat"),
        (huge_fastmri, ".h5"),
        (huge_ismrmrd, ".h5"),
        (huge_twix, ".dat"),
        (huge_vb, ".dat"),
    ],
)
def test_sizes_that_the_file_cannot_hold_are_not_allocated(
    tmp_path: Path, make: Callable[[Path], None], suffix: str
) -> None:
    path = tmp_path / f"scan{suffix}"
    make(path)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="scan"):
            list(read(path))
        assert tracemalloc.get_traced_memory()[1] < LITTLE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "array",
    [
        np.ones((2, 6, 8)),
        np.ones((2, 6, 8), int),
        np.full((2, 6, 8), "k"),
        np.zeros((2, 6, 8), [("a", "f4"), ("b", "i4")]),
        np.full((2, 6, 8), None),
        np.zeros((2, 0, 8), complex),
        np.zeros((2, 6, 8), "M8[s]"),
        np.array(1j),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".mat"])
def test_arrays_of_other_types(tmp_path: Path, array: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"scan{suffix}"
    if suffix == ".npy":
        np.save(path, array, allow_pickle=True)
    else:
        with contextlib.suppress(Exception):  # not all of them are MATLAB's
            scipy.io.savemat(path, {"kspace": array})
    with pytest.raises(InputError, match="scan"):
        list(read(path))


@pytest.mark.parametrize("kspace", ["text", 3.5, np.zeros((2, 6, 8)), np.zeros(4, [("a", "f4")])])
@pytest.mark.parametrize("suffix", [".h5", ".mat"])
def test_hdf5_of_other_types(tmp_path: Path, kspace: object, suffix: str) -> None:
    path = tmp_path / f"scan{suffix}"
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
    with pytest.raises(InputError, match="scan"):
        list(read(path))
