"""Siemens twix of VB: the same scan as VD has it, and what pymapvbvd and BART themselves read."""

import importlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mrd_files import few, random_kspace, refused
from twix_files import PARAMETERS, PROTOCOL, end, readout, sync, write, write_vb

from mri_qpan import bart
from mri_qpan.errors import InputError
from mri_qpan.recon.readers import open_kspace
from mri_qpan.recon.readers.twix import TwixFile

mapvbvd = pytest.importorskip("mapvbvd")

KSPACE = random_kspace(2, 12, 16)
NAMED = PARAMETERS + '<ParamString."tProtocolName"> { "gre" }\n'
LINES = [readout(KSPACE[:, y], lin=y, counter=y) for y in range(12)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "meas_MID00042_gre.dat"


def scan() -> list[bytes]:
    """Return two slices of two averages, undersampled, with all else that lines may be."""
    noise = readout(random_kspace(2, 200, seed=9), ["noise"])
    acquired = [noise]
    for s in range(2):
        kspace = random_kspace(2, 2, 12, 16, seed=s)
        place = {"sli": s, "position": (1.0, 2.0, 6.0 * s), "column": 9, "cut": (1, 2)}
        for y in (0, 2, 4, 8, 10):
            acquired += [readout(kspace[a, :, y], lin=y, ave=a, **place) for a in range(2)]
        acquired.append(readout(kspace[0, :, 6, ::-1], ["reflect"], lin=6, **place))
        acquired.append(readout(kspace[0, :, 5], ["ref"], lin=5, **place))
        acquired.append(readout(kspace[0, :, 7], ["ref", "ref_and_image"], lin=7, **place))
        acquired.append(sync())
    return [*acquired, end()]


def test_the_same_scan_as_vd_and_as_vb(path: Path) -> None:
    write(path, {"gre": scan()})
    ours, xml = list(open_kspace(path)), open_kspace(path).xml
    write_vb(path, scan(), parameters=NAMED)
    stream = open_kspace(path)
    assert stream.xml == xml
    theirs = list(stream)
    assert len(ours) == len(theirs) == 2
    for one, other in zip(ours, theirs, strict=True):
        for name in ("data", "mask", "calib", "calib_mask"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        for name in ("index", "stamp", "recon_shape"):
            assert getattr(one, name) == getattr(other, name)
        # VB has a number in the table's place that is no position.
        assert replace(one.geometry, table_position=(0, 0, 0)) == other.geometry
        assert one.noise_covariance is not None
        # Dwell times of a noise scan of 200 samples: 38.4 microseconds, and 1 s / 200 / 130.
        ratio = 38.4 / (1e6 / 200 / 130)
        np.testing.assert_allclose(other.noise_covariance, one.noise_covariance / ratio, rtol=1e-4)
        assert "software line VB" in other.notes[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("headers")


small = st.integers(0, 2**16 - 1)
fields = st.fixed_dictionaries(
    dict.fromkeys(("ave", "par", "eco", "phs", "rep", "set", "seg", "centre", "centre_par"), small)
    | {"lin": small, "sli": small, "column": small, "cut": st.tuples(small, small)}
    | {"counter": st.integers(0, 2**31 - 1), "position": st.tuples(*[st.floats(-500, 500, width=32)] * 3)}
)
flags = st.lists(st.sampled_from(["ref", "ref_and_image", "reflect", "noise"]), unique=True)


@few(20)
@given(acquired=st.lists(st.tuples(fields, flags), min_size=1, max_size=5))
def test_headers_of_any_values(acquired: list[tuple[dict[str, object], list[str]]], folder: Path) -> None:
    lines = [readout(KSPACE[:, 0], chosen, **values) for values, chosen in acquired]
    lines = [*lines, readout(KSPACE[:, 1]), end()]
    ours = TwixFile(write(folder / "vd.dat", {"gre": lines}))
    theirs = TwixFile(write_vb(folder / "vb.dat", lines))
    apart = [n for n in ours.heads.dtype.names if n not in ("sample_time_us", "patient_table_position")]
    np.testing.assert_array_equal(ours.heads[apart], theirs.heads[apart])
    rows = np.arange(len(lines) - 1)
    np.testing.assert_array_equal(ours.samples(rows), theirs.samples(rows))


def test_pymapvbvd_itself_reads_the_same(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_vb(path, [*LINES[:5], sync(), *LINES[5:], end()])
    (image,) = open_kspace(path)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")  # neither prints nor progress bars
    theirs = mapvbvd.mapVBVD(str(path), quiet=True, removeOS=False).image.unsorted()
    np.testing.assert_array_equal(image.data[:, 0], theirs.transpose(1, 2, 0))


@pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")
def test_bart_reads_the_same(path: Path) -> None:
    write_vb(path, [*LINES, end()])
    bart.run(["twixread", "-A", path.name, "k"], path.parent, threads=1)
    (image,) = open_kspace(path)
    np.testing.assert_array_equal(bart.read_cfl(path.parent / "k").reshape(2, 12, 16), image.data[:, 0])


def test_without_the_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_vb(path, [*LINES, end()])
    for name in [n for n in sys.modules if n.partition(".")[0] == "mapvbvd"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mapvbvd", None)
    words = refused(path)
    assert 'pip install "mri-qpan[twix]"' in words
    assert "siemens_to_ismrmrd" in words


def test_cut_off_anywhere(path: Path) -> None:
    whole = write_vb(path, [*LINES, end()]).read_bytes()
    last = len(whole) - len(end()) + 64  # its header is shorter in VB, and what follows it is not read
    for size in [*range(0, 10240, 997), *range(10240, last, 149)]:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=path.name):
            list(open_kspace(path))


def test_an_end_before_the_end(path: Path) -> None:
    whole = bytearray(write_vb(path, [*LINES, end()]).read_bytes())
    whole[10240 + 5 * 512 + 20] |= 1  # the lowest bit of the sixth readout's mask
    path.write_bytes(whole)
    assert "readout 6 ends it" in refused(path)


def test_readouts_of_no_channels_and_swapped_channels(path: Path) -> None:
    whole = write_vb(path, [*LINES, end()]).read_bytes()
    size = 128 + 8 * 16
    third = 10240 + 2 * 2 * size
    path.write_bytes(whole[: third + 30] + bytes(2) + whole[third + 32 :])  # pymapvbvd alone never returns
    assert "cut off after" in refused(path)
    path.write_bytes(whole[:third] + whole[third + size :])
    assert "damaged" in refused(path)
    moved = whole[third + size : third + 3 * size]  # a channel missing here, and one too many farther on
    path.write_bytes(whole[: third + size] + moved[size:] + moved[:size] + whole[third + 3 * size :])
    assert "channels of a readout" in refused(path)
    second = third + size + 28  # where the number of samples stands once more
    path.write_bytes(whole[:second] + b"\xff\xff" + whole[second + 2 :])
    assert "channels of a readout" in refused(path)


@pytest.mark.parametrize("fault", ["fewer", "raises"])
def test_what_the_library_finds_is_held_against_the_file(
    path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_vb(path, [*LINES, end()])
    library = importlib.import_module("mapvbvd.mapVBVD")
    whole = library.loop_mdh_read

    def faulty(*args: object, **options: object) -> object:
        if fault == "raises":
            raise IndexError("index 0 is\nout of bounds")
        blob, places, broken = whole(*args, **options)
        return blob[:, :-1], places[:-1], broken

    monkeypatch.setattr(library, "loop_mdh_read", faulty)
    words = refused(path)
    assert "finds 11 readouts, where it holds 12" in words or "IndexError: index 0 is out" in words
    assert "\n" not in words


def test_a_file_of_no_readouts(path: Path) -> None:
    assert "no readouts" in refused(write_vb(path, [end()]))
    noise = readout(KSPACE[:, 0], ["noise"])
    assert "no imaging readouts among 1" in refused(write_vb(path, [noise, end()]))


def test_simultaneous_slices_are_refused(path: Path) -> None:
    assert "simultaneous multi-slice" in refused(
        write_vb(path, [*LINES, readout(KSPACE[:, 0], ["sms"]), end()])
    )


def test_slabs(path: Path) -> None:
    kspace = random_kspace(2, 4, 12, 16)
    acquired = [readout(kspace[:, z, y], lin=y, par=z, centre_par=2) for z in range(4) for y in range(12)]
    protocol = PROTOCOL | {"sKSpace.ucDimension": "0x4", "sSliceArray.asSlice[0].dThickness": "32.0"}
    (image,) = open_kspace(write_vb(path, [*acquired, end()], protocol))
    np.testing.assert_array_equal(image.data, kspace)
    assert image.geometry.fov == pytest.approx((160, 120, 32))
