from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mri_qpan.errors import InputError
from mri_qpan.fourier import fft_numpy, ifft_numpy
from mri_qpan.methods import get_method
from mri_qpan.recon.kspace import KSpace
from mri_qpan.recon.pipeline import reconstruct
from mri_qpan.recon.prepare import prepare
from mri_qpan.recon.study import Undersampling, study
from mri_qpan.sampling_masks import make_mask, mask_hash

Maker = Callable[..., KSpace]
HALF = Undersampling.parse("lines:50%:3")


def test_maps_of_the_oversampled_matrix(small_kspace: Maker) -> None:
    """As `recon` takes them: cropped with the readout; others are refused before any arithmetic."""
    kspace = small_kspace(nx=40)
    wide = replace(kspace, recon_shape=(1, 48, 20))
    maps = prepare(kspace).mps
    spec = Undersampling.parse("lines:0.5")
    found = study(wide, get_method("zero-filled"), spec, mps=maps, compress=3)
    assert found.result.image.data.shape == (1, 48, 20)
    with pytest.raises(InputError, match="do not fit"):
        study(wide, get_method("zero-filled"), spec, mps=maps[:3], compress=2)


def test_separate_calibration_lines_are_not_used(small_kspace: Maker) -> None:
    kspace = replace(small_kspace(nx=40), recon_shape=(1, 48, 20))
    short = np.zeros(kspace.mask.shape, bool)
    short[:, 16:32, 10:30] = True
    kspace = replace(kspace, calib=kspace.data * short, calib_mask=short)
    found = study(kspace, get_method("zero-filled"), Undersampling.parse("lines:0.5"))
    assert found.reference.data.shape == (1, 48, 20)


def test_reference_is_the_full_image_and_a_solver_beats_zero_filling(small_kspace: Maker) -> None:
    kspace = small_kspace()
    result = study(kspace, get_method("cg-sense"), HALF)
    full = np.abs(reconstruct(kspace, lambda adjoint, normal: adjoint).image.data)
    inside = full > 0.3 * full.max()
    np.testing.assert_allclose(np.abs(result.reference.data)[inside], full[inside], rtol=0.05)
    figures = result.metrics
    assert set(figures) == {"zero-filled", "cg-sense"}
    assert figures["cg-sense"]["psnr"] > figures["zero-filled"]["psnr"] + 3
    assert figures["cg-sense"]["nmse"] < figures["zero-filled"]["nmse"]


def test_the_mask_is_the_one_that_the_spec_names(small_kspace: Maker) -> None:
    result = study(small_kspace(coils=1), get_method("zero-filled"), HALF)
    assert result.result.figures.mask_hash == mask_hash(make_mask("lines", (48, 40), 0.5, seed=3))
    np.testing.assert_allclose(result.zero_filled.data, result.result.image.data, atol=1e-5)


def test_all_samples_kept_is_exact(small_kspace: Maker) -> None:
    result = study(small_kspace(coils=1), get_method("zero-filled"), Undersampling.parse("lines:1"))
    assert result.metrics["zero-filled"]["nmse"] < 1e-12


def test_two_dimensional_masks_lie_on_the_matrix_without_oversampling(small_kspace: Maker) -> None:
    kspace = small_kspace(coils=1)
    image = ifft_numpy(kspace.data, (-2, -1))
    data = fft_numpy(np.pad(image, ((0, 0), (0, 0), (0, 0), (20, 20))), (-2, -1))
    wide = replace(kspace, data=data, mask=np.ones((1, 48, 80), bool))
    spec = Undersampling.parse("random2d:0.4")
    plain, oversampled = (study(k, get_method("zero-filled"), spec) for k in (kspace, wide))
    np.testing.assert_allclose(oversampled.zero_filled.data, plain.zero_filled.data, atol=1e-5)
    np.testing.assert_allclose(oversampled.reference.data, plain.reference.data, atol=1e-5)


def test_whitening_reaches_both_images(small_kspace: Maker) -> None:
    covariance = np.diag([1, 2, 3, 4]).astype(np.complex64) + 0.1
    kspace = replace(small_kspace(), noise_covariance=covariance)
    result = study(kspace, get_method("zero-filled"), Undersampling.parse("lines:1"))
    assert result.metrics["zero-filled"]["nmse"] < 1e-10
    assert any("whitened" in note for note in result.result.notes)
    given = study(kspace, get_method("zero-filled"), HALF, mps=np.ones_like(kspace.data))
    assert given.result.figures.residual < 1


def test_what_cannot_be_studied_is_refused(small_kspace: Maker) -> None:
    kspace = small_kspace()
    mask = make_mask("lines", (48, 40), 0.5)[None]
    with pytest.raises(InputError, match=r"fully sampled.* 50.0%"):
        study(replace(kspace, mask=mask, data=kspace.data * mask), get_method("zero-filled"), HALF)
    with pytest.raises(InputError, match=r"lines:0\.01"):
        study(kspace, get_method("zero-filled"), Undersampling.parse("lines:0.01"))
    with pytest.raises(InputError, match="--undersample"):
        Undersampling.parse("lines")
