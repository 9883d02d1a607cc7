from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mri_qpan.encoding import Normal
from mri_qpan.errors import InputError, ReconError
from mri_qpan.fourier import fft_numpy, ifft_numpy
from mri_qpan.methods import as_reconstructor, get_method
from mri_qpan.recon.geometry import centre
from mri_qpan.recon.kspace import KSpace
from mri_qpan.recon.pipeline import reconstruct, solve
from mri_qpan.recon.prepare import prepare
from mri_qpan.sampling_masks import make_mask, mask_hash

Maker = Callable[..., KSpace]


def identity(adjoint: Tensor, normal: Normal) -> Tensor:
    return adjoint


class SetsBeside(torch.nn.Module):
    """A network that asks for the sets beside its batch."""

    def forward(self, adjoint: Tensor, normal: Normal) -> Tensor:
        assert adjoint.shape[:2] == (1, 2)
        return normal(adjoint)


def undersampled(kspace: KSpace) -> KSpace:
    mask = make_mask("lines", kspace.mask.shape[1:], 0.5, calib=16)[None]
    return replace(kspace, data=kspace.data * mask, mask=mask)


def test_one_fully_sampled_coil_is_its_inverse_transform(small_kspace: Maker) -> None:
    kspace = small_kspace(coils=1)
    result = reconstruct(kspace, identity)
    np.testing.assert_allclose(result.image.data, ifft_numpy(kspace.data, (-2, -1))[0], atol=1e-5)
    assert result.image.data.dtype == np.complex64
    assert (result.image.geometry, result.image.index, result.image.stamp) == (
        kspace.geometry,
        kspace.index,
        kspace.stamp,
    )
    assert result.figures.ratio == 1
    assert result.figures.residual < 1e-5


def half(adjoint: Tensor, normal: Normal) -> Tensor:
    return 0.5 * adjoint


def test_hard_data_consistency_of_one_coil_restores_the_samples(small_kspace: Maker) -> None:
    under = undersampled(small_kspace(coils=1))
    soft = reconstruct(under, half)
    hard = reconstruct(under, half, hard_dc=True)
    assert soft.figures.residual == pytest.approx(0.5, abs=1e-4)
    assert hard.figures.residual < 1e-4
    zero_filled = ifft_numpy(under.data, (-2, -1))[0]
    np.testing.assert_allclose(hard.image.data, zero_filled, atol=1e-4 * np.abs(zero_filled).max())
    assert any("was 50.00%" in note for note in hard.notes)


def test_hard_data_consistency_of_coils_keeps_what_no_sample_says(small_kspace: Maker) -> None:
    under = undersampled(small_kspace())

    def invent(adjoint: Tensor, normal: Normal) -> Tensor:
        """Add what one coil would not see: nearly in the operator's null space."""
        rng = torch.Generator().manual_seed(0)
        noise = torch.randn(adjoint.shape, dtype=adjoint.dtype, generator=rng)
        return adjoint + 0.1 * (noise - normal(noise))

    soft, hard = reconstruct(under, invent), reconstruct(under, invent, hard_dc=True)
    assert hard.figures.residual < 0.9 * soft.figures.residual
    changed = np.linalg.norm(hard.image.data - soft.image.data)
    assert 0 < changed < 0.5 * np.linalg.norm(soft.image.data)


def test_coils_are_combined_and_figures_name_the_mask(small_kspace: Maker) -> None:
    kspace = small_kspace()
    under = undersampled(kspace)
    result = reconstruct(under, get_method("cg-sense"))
    truth = np.linalg.norm(ifft_numpy(kspace.data, (-2, -1)), axis=0)
    inside = truth > 0.3 * truth.max()
    error = np.abs(result.image.data)[inside] - truth[inside]
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(truth[inside])
    assert result.figures.mask_hash == mask_hash(under.mask[0])
    assert result.figures.ratio == pytest.approx(0.5)
    assert result.figures.residual < 0.1
    assert any("ESPIRiT" in note for note in result.notes)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e7])
def test_methods_see_one_scale_and_images_keep_theirs(small_kspace: Maker, factor: float) -> None:
    kspace = small_kspace(coils=1)
    seen = []

    def threshold(adjoint: Tensor, normal: Normal) -> Tensor:
        seen.append(float(adjoint.abs().max()))
        return adjoint * (adjoint.abs() > 0.5)

    scaled = reconstruct(replace(kspace, data=np.complex64(factor) * kspace.data), threshold)
    plain = reconstruct(kspace, threshold)
    assert 0.9 < seen[0] < 2
    np.testing.assert_allclose(scaled.image.data / factor, plain.image.data, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["wavelet", "qpan+-fp", "qpan+-3bit"])
def test_a_given_level_is_what_methods_see(small_kspace: Maker, method: str) -> None:
    under, run = undersampled(small_kspace(coils=1)), get_method(method)
    own = reconstruct(under, run)
    again = reconstruct(under, run, level=own.level).image.data
    assert own.level is not None
    assert np.linalg.norm(again - own.image.data) < 0.01 * np.linalg.norm(again)  # eight bits round apart
    dim = own.level._replace(scale=10 * own.level.scale)
    other = reconstruct(under, run, level=dim, contraction=True)
    assert other.level == dim
    # Thresholds are ten times as large for an image that is a tenth as bright.
    assert np.linalg.norm(other.image.data - again) > 0.02 * np.linalg.norm(again)


def test_a_function_sees_a_given_level_too(small_kspace: Maker) -> None:
    kspace, seen = small_kspace(coils=1), []

    def note(adjoint: Tensor, normal: Normal) -> Tensor:
        seen.append(float(adjoint.abs().max()))
        return adjoint

    own = reconstruct(kspace, as_reconstructor(note))
    assert own.level is not None
    level = own.level._replace(scale=10 * own.level.scale)
    other = reconstruct(kspace, as_reconstructor(note), level=level)
    assert seen[1] == pytest.approx(seen[0] / 10)
    np.testing.assert_allclose(other.image.data, own.image.data, atol=1e-6 * np.abs(own.image.data).max())


def test_the_normal_operator_is_that_of_the_measurement(small_kspace: Maker) -> None:
    under = undersampled(small_kspace(coils=1))
    result = reconstruct(under, lambda adjoint, normal: normal(adjoint))
    again = reconstruct(under, identity)
    np.testing.assert_allclose(result.image.data, again.image.data, atol=1e-5)


@pytest.mark.parametrize("oversampled", [(1, 48, 80), (1, 61, 40), (1, 60, 81)])
def test_oversampling_is_cropped_about_the_centre(
    small_kspace: Maker, oversampled: tuple[int, int, int]
) -> None:
    kspace = small_kspace(coils=1)
    wide = np.zeros(oversampled, np.complex64)
    wide[centre(oversampled, kspace.recon_shape)] = ifft_numpy(kspace.data, (-2, -1))[0]
    data = fft_numpy(wide, (-2, -1))[None]
    result = reconstruct(replace(kspace, data=data, mask=np.ones(oversampled, bool)), identity)
    expected = reconstruct(kspace, identity)
    np.testing.assert_allclose(result.image.data, expected.image.data, atol=1e-5)


def test_a_slab_is_transformed_along_z_too(small_kspace: Maker) -> None:
    slices = [small_kspace(coils=1).data * s for s in (1, 2, 3)]
    data = fft_numpy(np.concatenate([ifft_numpy(s, (-2, -1)) for s in slices], axis=1), (-3, -2, -1))
    shape = data.shape[1:]
    slab = replace(small_kspace(coils=1), data=data, mask=np.ones(shape, bool), recon_shape=shape)
    image = reconstruct(slab, identity).image.data
    np.testing.assert_allclose(image[2], 3 * image[0], atol=1e-4)


def test_an_object_larger_than_the_field_of_view_gets_a_map_for_each_layer(small_kspace: Maker) -> None:
    large = small_kspace(ny=96)
    half = replace(large, data=large.data[:, :, ::2], mask=large.mask[:, ::2], recon_shape=(1, 48, 40))
    result = reconstruct(half, get_method("zero-filled"))
    assert any("for each layer" in note for note in result.notes)
    assert result.image.data.shape == (1, 48, 40)
    one = solve(prepare(half), half, identity)
    assert result.figures.residual < 0.5 * one.figures.residual


def sets_in_the_batch(adjoint: Tensor, normal: Normal) -> Tensor:
    """A solver, whose spatial axes are all after the first."""
    assert adjoint.shape == (2, 48, 40)
    return normal(adjoint)


def test_sets_of_maps_end_in_one_image(small_kspace: Maker) -> None:
    kspace = small_kspace()
    prepared = prepare(kspace)
    pair = np.stack([prepared.mps, np.zeros_like(prepared.mps)])
    both = replace(prepared, mps=pair)
    one = solve(prepared, kspace, lambda adjoint, normal: normal(adjoint)).image.data
    np.testing.assert_allclose(solve(both, kspace, sets_in_the_batch).image.data, one, atol=1e-5)
    np.testing.assert_allclose(solve(both, kspace, SetsBeside()).image.data, one, atol=1e-5)


def test_nothing_is_invented_where_no_coil_sees(small_kspace: Maker) -> None:
    kspace = small_kspace()
    mps = np.ones_like(kspace.data)
    mps[..., :7] = 0
    image = reconstruct(kspace, lambda adjoint, normal: adjoint + 1, mps=mps).image.data
    assert not image[..., :7].any()
    assert image[..., 7:].all()


def test_failures_are_named(small_kspace: Maker) -> None:
    kspace = small_kspace(coils=1)
    with pytest.raises(ReconError, match="not finite"):
        reconstruct(kspace, lambda adjoint, normal: adjoint * float("nan"))

    def exhaust(adjoint: Tensor, normal: Normal) -> Tensor:
        raise torch.OutOfMemoryError

    def allocate(adjoint: Tensor, normal: Normal) -> Tensor:
        return torch.empty(2**56)

    for method in (exhaust, allocate):
        with pytest.raises(ReconError, match="out of memory on cpu: less --memory"):
            reconstruct(kspace, method)
    with pytest.raises(InputError, match="zero"):
        reconstruct(replace(kspace, data=0 * kspace.data), identity)
    with pytest.raises(ReconError, match="too small for single precision"):
        reconstruct(replace(kspace, data=np.complex64(1e-30) * kspace.data), identity)
    with pytest.raises(InputError, match="maps"):
        reconstruct(kspace, identity, mps=np.ones((3, 1, 4, 4), np.complex64))
