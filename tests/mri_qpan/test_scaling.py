import pytest
import torch

from mri_qpan.scaling import robust_scale


def test_is_the_upper_quantile_of_each_entry() -> None:
    image = torch.stack([torch.arange(1000.0), 3 * torch.arange(1000.0)]).reshape(2, 10, 100)
    scale = robust_scale(image)
    assert scale.shape == (2, 1, 1)
    assert scale.flatten().tolist() == pytest.approx([998, 3 * 998])


def test_a_few_outliers_do_not_matter() -> None:
    image = torch.ones(1, 100, 100, dtype=torch.complex64)
    image[0, 0, :15] = 1e6
    assert robust_scale(image).item() == pytest.approx(1)


def test_phase_does_not_matter() -> None:
    image = torch.randn(2, 4, 16, 16, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(robust_scale(image), robust_scale(1j * image))
    assert robust_scale(image).shape == (2, 1, 1, 1)


def test_an_empty_image_is_not_divided_by_zero() -> None:
    assert robust_scale(torch.zeros(1, 8, 8)).item() == 1


def test_input_of_scale_one_stays() -> None:
    image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(robust_scale(image / robust_scale(image)), torch.ones(1, 1, 1))
