"""Siemens twix: files written here field by field, BART's own reader of them, a scanner's where it is."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mrd_files import random_kspace, refused
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from twix_files import PROTOCOL, end, readout, sync, write

from mri_qpan import bart
from mri_qpan.errors import InputError
from mri_qpan.fourier import ifft_numpy
from mri_qpan.recon.readers import is_ismrmrd, open_kspace
from mri_qpan.recon.readers.twix_header import Extent, _with_oversampling

KSPACE = random_kspace(2, 12, 16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "meas_MID00042_gre.dat"


def lines(kspace: NDArray[np.complex64] = KSPACE, **fields: object) -> list[bytes]:
    return [readout(kspace[:, y], lin=y, **fields) for y in range(kspace.shape[1])]


def test_a_slice(path: Path) -> None:
    write(path, {"gre": [*lines()[:5], sync(), *lines()[5:], end()]})
    stream = open_kspace(path)
    (image,) = stream
    np.testing.assert_array_equal(image.data[:, 0], KSPACE)
    assert image.mask.all()
    assert image.recon_shape == (1, 12, 8)
    assert image.geometry.fov == pytest.approx((160, 120, 5))
    assert image.geometry.position == (1, 2, 3)
    assert image.stamp.physiology_time_stamp[0] == 20
    assert "compare with the scanner's own images" in image.notes[-1]
    assert stream.xml is not None
    for words in ("<TR>250</TR>", "<TE>4</TE>", "Skyra &amp; Co", "SIEMENS", "<flipAngle_deg>15<", "HFS"):
        assert words in stream.xml
    assert not is_ismrmrd(path)


@pytest.mark.parametrize("quaternion", [(1, 0, 0, 0), (0.5, 0.5, -0.5, 0.5), (0.36, 0.48, 0.48, 0.64)])
def test_directions_are_scipys_rotation_turned_round(path: Path, quaternion: tuple[float, ...]) -> None:
    write(path, {"gre": [*lines(quaternion=quaternion), end()]})
    (image,) = open_kspace(path)
    w, x, y, z = quaternion
    phase, read, through = -Rotation.from_quat([x, y, z, w]).as_matrix().T
    np.testing.assert_allclose(image.geometry.read_dir, read, atol=1e-6)
    np.testing.assert_allclose(image.geometry.phase_dir, phase, atol=1e-6)
    np.testing.assert_allclose(image.geometry.slice_dir, through, atol=1e-6)


def test_slices_averages_and_repetitions(path: Path) -> None:
    kspace = random_kspace(3, 2, 2, 2, 12, 16)  # repetition, slice, average, coil, y, x
    acquired = [
        line
        for r, s, a in np.ndindex(3, 2, 2)
        for line in lines(kspace[r, s, a], rep=r, sli=s, ave=a, position=(0, 0, 6.0 * s))
    ]
    images = list(open_kspace(write(path, {"gre": [*acquired, end()]})))
    assert [(i.index.repetition, i.index.slice) for i in images] == [
        (r, s) for r in range(3) for s in range(2)
    ]
    for image in images:
        expected = kspace[image.index.repetition, image.index.slice].mean(axis=0)
        np.testing.assert_allclose(image.data[:, 0], expected, rtol=1e-5, atol=1e-6)
        assert image.geometry.position[2] == 6 * image.index.slice


def test_a_slab(path: Path) -> None:
    kspace = random_kspace(2, 4, 12, 16)
    acquired = [readout(kspace[:, z, y], lin=y, par=z, centre_par=2) for z in range(4) for y in range(12)]
    protocol = PROTOCOL | {"sKSpace.ucDimension": "0x4", "sSliceArray.asSlice[0].dThickness": "32.0"}
    (image,) = open_kspace(write(path, {"vibe": [*acquired, end()]}, protocol))
    np.testing.assert_array_equal(image.data, kspace)
    assert image.recon_shape == (4, 12, 8)
    assert image.geometry.fov == pytest.approx((160, 120, 32))


def test_the_noise_of_an_earlier_measurement(path: Path) -> None:
    noise = random_kspace(2, 200)
    other = readout(random_kspace(3, 200), ["noise"])
    write(path, {"AdjCoilSens": [other, readout(noise, ["noise"]), end()], "gre": [*lines(), end()]})
    (image,) = open_kspace(path)
    # Dwell times of 5 and 10 microseconds, and the receivers' equivalent bandwidth of 0.793.
    expected = noise @ noise.conj().T / 200 * 0.5 / 0.793
    np.testing.assert_allclose(image.noise_covariance, expected, rtol=1e-4)
    assert any("'gre' was read" in note for note in image.notes)


def test_calibration_and_reflected_lines(path: Path) -> None:
    acquired = [readout(KSPACE[:, y], lin=y) for y in range(0, 12, 2)]
    reference = [readout(KSPACE[:, y], ["ref"], lin=y) for y in (5, 7)]
    both = [readout(KSPACE[:, 3, ::-1], ["ref", "ref_and_image", "reflect"], lin=3)]
    (image,) = open_kspace(write(path, {"gre": [*acquired, *reference, *both, end()]}))
    assert np.flatnonzero(image.mask[0, :, 0]).tolist() == [0, 2, 3, 4, 6, 8, 10]
    np.testing.assert_array_equal(image.data[:, 0, 3], KSPACE[:, 3])
    assert image.calib_mask is not None
    assert {5, 7} <= set(np.flatnonzero(image.calib_mask[0, :, 0]).tolist())


def test_partial_fourier_keeps_the_centre(path: Path) -> None:
    acquired = [readout(KSPACE[:, y], lin=y - 3, centre=3) for y in range(3, 12)]
    (image,) = open_kspace(write(path, {"gre": [*acquired, end()]}))
    np.testing.assert_array_equal(image.data[:, 0, 3:], KSPACE[:, 3:])
    assert np.flatnonzero(image.mask[0, :, 0])[0] == 3


@pytest.mark.parametrize("stated", ["10", "12"])
def test_oversampled_phases_are_cropped(path: Path, stated: str) -> None:
    """Protocols state the lines with their oversampling or without: the counters tell."""
    protocol = PROTOCOL | {
        "sKSpace.lPhaseEncodingLines": stated,
        "sKSpace.dPhaseOversamplingForDialog": "0.2",
        "sSliceArray.asSlice[0].dPhaseFOV": "100.0",
    }
    (image,) = open_kspace(write(path, {"gre": [*lines(), end()]}, protocol))
    np.testing.assert_array_equal(image.data[:, 0], KSPACE)
    assert image.recon_shape == (1, 10, 8)
    assert image.geometry.fov == pytest.approx((160, 100, 5))


@given(
    stated=st.integers(16, 512),
    oversampling=st.floats(0.05, 1),
    included=st.booleans(),
    lost=st.integers(0, 2),
)
def test_the_counters_tell_whether_oversampling_is_included(
    stated: int, oversampling: float, included: bool, lost: int
) -> None:
    full = stated if included else round(stated * (1 + oversampling))
    found = _with_oversampling(stated, oversampling, Extent(full - 1 - lost * (full > 100), full // 2))
    other = round(stated * (1 + oversampling)) if included else stated
    assert found == full or abs(full - other) <= 4  # a few lines less are partial Fourier, or odd


@pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")
def test_bart_reads_the_same(path: Path) -> None:
    write(path, {"gre": [*lines(), end()]})
    bart.run(["twixread", "-A", path.name, "k"], path.parent, threads=1)
    (image,) = open_kspace(path)
    np.testing.assert_array_equal(bart.read_cfl(path.parent / "k").reshape(2, 12, 16), image.data[:, 0])


def test_mapvbvd_reads_the_same(path: Path) -> None:
    mapvbvd = pytest.importorskip("mapvbvd")
    slices = [random_kspace(2, 12, 16, seed=seed) for seed in range(2)]
    acquired = [line for number, kspace in enumerate(slices) for line in lines(kspace, sli=number)]
    write(path, {"gre": [*acquired[:5], sync(), *acquired[5:], end()]})
    theirs = mapvbvd.mapVBVD(str(path), quiet=True).image
    theirs.squeeze, theirs.flagRemoveOS = True, False
    for image, other in zip(open_kspace(path), np.moveaxis(theirs[""], 3, 0), strict=True):
        np.testing.assert_array_equal(image.data[:, 0], other.transpose(1, 2, 0))


def test_a_scanners_file(shared_data: Path) -> None:
    """The ACR phantom, from the examples of twixtools (MIT): air bubble anterior, the insert not mirrored."""
    path = shared_data / "kspace" / "twix_gre_2ch_acr.dat"
    if not path.is_file():
        pytest.skip("no scanner's twix file beside this checkout")
    (image,) = open_kspace(path)
    pixels = np.linalg.norm(ifft_numpy(image.data[:, 0], (-2, -1)), axis=0)[:, 80:240]
    g = image.geometry
    assert np.round(g.phase_dir).tolist() == [0, -1, 0]
    assert np.round(g.read_dir).tolist() == [1, 0, 0]
    # The flat surface of the water is at the phantom's top, which is anterior: where y ends.
    assert pixels[148:158, 50:110].mean() < 0.4 * pixels[4:14, 50:110].mean()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sKSpace.lBaseResolution": None}, r"no usable sKSpace\.lBaseResolution"),
        ({"sKSpace.lPhaseEncodingLines": "many"}, "no usable"),
        ({"sKSpace.lPhaseEncodingLines": "4000000"}, "impossible matrix"),
        ({"sSliceArray.asSlice[0].dPhaseFOV": "1e999"}, "no usable"),
        ({"sKSpace.ucTrajectory": "2"}, "radial"),
        ({"sKSpace.lPhaseEncodingLines": "6"}, "along y"),
    ],
)
def test_protocols_that_cannot_be_used(path: Path, changed: dict[str, str | None], words: str) -> None:
    protocol = {k: v for k, v in (PROTOCOL | changed).items() if v is not None}
    with pytest.raises(InputError, match=words):
        list(open_kspace(write(path, {"gre": [*lines(), end()]}, protocol)))


def test_other_files(path: Path) -> None:
    assert "no such file" in refused(path)
    path.write_bytes(b"time,value\n")
    assert "too short" in refused(path)
    path.write_bytes(b"time,value\n" * 100)
    assert "siemens_to_ismrmrd (-f FILE.dat -o FILE.h5)" in refused(path)
    path.write_bytes((60000).to_bytes(4, "little") + bytes(70000))
    assert "not a Siemens twix file" in refused(path)


def test_what_is_not_read_is_named(path: Path) -> None:
    epi = [
        readout(KSPACE[:, 0], ["phasecor"]),
        *lines()[:6],
        readout(KSPACE[:, 6], ["reflect"], lin=6),
        end(),
    ]
    assert "echo-planar" in refused(write(path, {"ep2d": epi}))
    assert "simultaneous multi-slice" in refused(
        write(path, {"gre": [*lines(), readout(KSPACE[:, 0], ["sms"]), end()]})
    )
    assert "no imaging readouts" in refused(write(path, {"adj": [readout(KSPACE[:, 0], ["noise"]), end()]}))


def test_bytes_too_many_or_too_few_do_not_end_a_measurement(path: Path) -> None:
    """Half of all samples, taken for a readout's header, would say that it is the last."""
    whole = write(path, {"gre": [*lines(), end()]}).read_bytes()
    step = 192 + 2 * (32 + 8 * 16)
    first = whole.index(lines()[0][:192])
    rng = np.random.default_rng(0)
    for place in first + 192 + np.arange(7) * step:
        for shift in range(4, 44, 4):
            path.write_bytes(whole[:place] + rng.bytes(shift) + whole[place:])
            assert "damaged" in refused(path)
            path.write_bytes(whole[:place] + whole[place + shift :])
            assert "damaged" in refused(path)


def test_cut_off_anywhere(path: Path) -> None:
    write(path, {"adj": [readout(KSPACE[:, 0], ["noise"]), end()], "gre": [*lines(), end()]})
    whole = path.read_bytes()
    complete = whole.rstrip(b"\0")
    for size in [*range(0, 10400, 97), *range(10400, len(complete) - 700, 61)]:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=path.name):
            list(open_kspace(path))
