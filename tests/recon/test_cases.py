from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_qpan.errors import InputError, OptionError
from mri_qpan.fourier import fft_numpy, ifft_numpy
from mri_qpan.recon.cases import cases, names_of
from mri_qpan.recon.kspace import Index, KSpace
from mri_qpan.recon.prepare import prepare
from mri_qpan.recon.writers.ismrmrd_raw import write_raw
from mri_qpan.sampling_masks import make_mask

SPECS = ["lines:0.5", "random2d:0.4:3"]


@pytest.fixture
def grey() -> np.ndarray:
    return (255 * np.random.default_rng(0).random((48, 40))).astype(np.uint8)


def test_inputs_are_told_apart_by_as_much_of_their_paths_as_it_takes(tmp_path):
    names = ("a/x/scan.h5", "b/x/scan.h5", "b/x/other.h5", "b/x/scan.npy", "pngs")
    files = [tmp_path / name for name in names]
    (tmp_path / "pngs").mkdir()
    assert names_of(files[:1]) == ["scan"]
    assert names_of(files) == ["scan", "scan.h5", "other", "scan.npy", "pngs"]
    assert names_of(files[:2]) == ["a/x/scan", "b/x/scan"]
    with pytest.raises(OptionError, match="twice"):
        names_of([files[0], tmp_path / "a" / "x" / ".." / "x" / "scan.h5"])


def test_measured_slices_under_every_mask(tmp_path: Path, small_kspace: Callable[..., KSpace]) -> None:
    slices = [small_kspace(Index(slice=s)) for s in range(2)]
    write_raw(tmp_path / "scan.h5", slices)
    found = list(cases(tmp_path / "scan.h5", SPECS, count=1))
    assert [(case.name, case.mask_spec) for case in found] == [
        (name, spec) for name in ("scan/0", "scan/1") for spec in SPECS
    ]
    assert {case.group for case in found} == {"scan"}
    assert len({case.key for case in found}) == 4
    for case in found:
        assert (case.kspace[:, ~case.mask] == 0).all()
        assert case.kspace.shape == case.mps.shape == (4, *case.mask.shape)
        assert case.reference.dtype == np.float32
    np.testing.assert_array_equal(found[1].mask, make_mask("random2d", (48, 40), 0.4, seed=3))


def test_maps_know_only_the_samples_left(tmp_path: Path, small_kspace: Callable[..., KSpace]) -> None:
    full = small_kspace()
    write_raw(tmp_path / "scan.h5", [full])
    (case,) = cases(tmp_path / "scan.h5", SPECS[:1], count=1)
    kept = replace(full, data=case.kspace[:, None], mask=case.mask[None])
    np.testing.assert_allclose(case.mps, prepare(kept).mps[:, 0], atol=1e-4)
    combined = (case.mps.conj() * ifft_numpy(full.data[:, 0], (-2, -1))).sum(0)
    np.testing.assert_allclose(case.reference, abs(combined), atol=1e-4)


def test_arrays_are_told_their_axes(tmp_path: Path, small_kspace: Callable[..., KSpace]) -> None:
    full = small_kspace()
    np.save(tmp_path / "scan.npy", full.data[:, 0])
    (case,) = cases(tmp_path / "scan.npy", SPECS[:1], count=1, dims="coil,y,x")
    np.testing.assert_allclose(case.kspace, full.data[:, 0] * case.mask)
    with pytest.raises(InputError, match="--dims"):
        list(cases(tmp_path / "scan.npy", SPECS, count=1))


def test_a_sampled_gap_is_refused(tmp_path: Path, small_kspace: Callable[..., KSpace]) -> None:
    full = small_kspace()
    mask = full.mask.copy()
    mask[:, 3] = False
    write_raw(tmp_path / "scan.h5", [replace(full, data=full.data * mask, mask=mask)])
    with pytest.raises(InputError, match="fully sampled"):
        list(cases(tmp_path / "scan.h5", SPECS, count=1))


def test_an_image_is_one_coil(tmp_path: Path, grey: np.ndarray) -> None:
    Image.fromarray(grey).save(tmp_path / "slice.png")
    (case,) = cases(tmp_path / "slice.png", SPECS[:1], count=1)
    assert (case.group, case.name) == ("slice", "slice")
    np.testing.assert_allclose(case.reference, grey / 255, atol=1e-6)
    assert (case.mps == 1).all()
    expected = fft_numpy(case.reference, (-2, -1)) * case.mask
    np.testing.assert_allclose(case.kspace[0], expected, atol=1e-5)


def test_sixteen_bits_reach_one(tmp_path: Path) -> None:
    Image.fromarray(np.full((48, 40), 65535, np.uint16)).save(tmp_path / "deep.png")
    (case,) = cases(tmp_path / "deep.png", SPECS[:1], count=1)
    assert case.reference.max() == 1


def test_a_folder_is_spread_over(tmp_path: Path, grey: np.ndarray) -> None:
    folder = tmp_path / "brains"
    folder.mkdir()
    (folder / "notes.txt").write_text("not an image")
    for n in range(6):
        Image.fromarray(grey + n).save(folder / f"{n}.png")
    found = list(cases(folder, SPECS[:1], count=3))
    assert [case.name for case in found] == ["brains/0", "brains/2", "brains/4"]
    assert {case.group for case in found} == {"brains"}
    assert len(list(cases(folder, SPECS[:1], count=99))) == 6


def test_bad_inputs_are_refused(tmp_path: Path, grey: np.ndarray) -> None:
    with pytest.raises(InputError, match="no images"):
        list(cases(tmp_path, SPECS, count=1))
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "colour.png")
    with pytest.raises(InputError, match="grey"):
        list(cases(tmp_path / "colour.png", SPECS, count=1))
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        list(cases(tmp_path / "broken.png", SPECS, count=1))
    Image.fromarray(grey).save(tmp_path / "fine.png")
    for spec in ("spots:0.3", "lines", "lines:3"):
        with pytest.raises(InputError, match="mask"):
            list(cases(tmp_path / "fine.png", [spec], count=1))
    with pytest.raises(InputError, match="missing"):
        list(cases(tmp_path / "missing.h5", SPECS, count=1))
