import numpy as np
import pytest

from mri_qpan.recon.describe import describe_sampling


def sampled(rows: np.ndarray, size: int = 96, width: int = 8) -> np.ndarray:
    mask = np.zeros((1, size, width), bool)
    mask[0, rows] = True
    return mask


class TestDescribeSampling:
    def test_full(self):
        found = describe_sampling(np.ones((1, 6, 8), bool))
        assert found.ratio == 1
        assert (found.y.acquired, found.y.spacing, found.y.centre) == (6, 1, 6)
        assert found.y.partial == found.y.resolution == found.x.partial == 1

    @pytest.mark.parametrize("start", [0, 1, 2])
    def test_equispaced(self, start):
        found = describe_sampling(sampled(np.arange(start, 96, 3)))
        assert found.y.spacing == 3
        assert found.y.partial == found.y.resolution == 1

    @pytest.mark.parametrize("start", range(4))
    def test_equispaced_with_centre(self, start):
        rows = np.union1d(np.arange(start, 96, 4), np.arange(36, 60))
        found = describe_sampling(sampled(rows)).y
        assert found.spacing == 4
        assert found.centre >= 24

    def test_irregular(self):
        rows = np.union1d([1, 3, 9, 20, 27, 31, 70, 77, 90], np.arange(40, 56))
        found = describe_sampling(sampled(rows)).y
        assert found.spacing is None
        assert found.centre == 16

    def test_partial_fourier(self):
        found = describe_sampling(sampled(np.arange(24, 96))).y
        assert found.partial == 0.75
        assert found.missing == (24, 0)
        assert found.resolution == 1

    def test_partial_fourier_of_every_second_line(self):
        assert describe_sampling(sampled(np.arange(0, 72, 2))).y.partial == 0.75

    def test_low_resolution(self):
        found = describe_sampling(sampled(np.arange(12, 84))).y
        assert found.resolution == 0.75
        assert found.partial == 1

    def test_asymmetric_echo(self):
        mask = np.ones((1, 4, 64), bool)
        mask[..., :16] = False
        found = describe_sampling(mask)
        assert found.x.partial == 0.75
        assert found.ratio == 0.75

    def test_slab(self):
        mask = np.zeros((16, 32, 4), bool)
        mask[::2, ::4] = True
        found = describe_sampling(mask)
        assert (found.z.spacing, found.y.spacing) == (2, 4)

    def test_no_centre(self):
        assert describe_sampling(sampled(np.array([0, 1]))).y.centre == 0
