"""Where the centre of an axis lies: index n // 2, whatever is odd or even."""

import numpy as np
import pytest

from mri_qpan.sampling_masks.geometry import centre_block, centre_slice


@pytest.mark.parametrize(
    ("size", "calib", "first", "end"),
    [(8, 1, 4, 5), (8, 2, 3, 5), (8, 3, 3, 6), (7, 1, 3, 4), (7, 2, 2, 4), (7, 3, 2, 5), (5, 9, 0, 5)],
)
def test_the_centre_holds_the_zero_frequency(size: int, calib: int, first: int, end: int) -> None:
    assert centre_slice(size, calib) == slice(first, end)
    frequencies = np.fft.fftshift(np.fft.fftfreq(size, 1 / size))[centre_slice(size, calib)]
    assert 0 in frequencies
    # What is left over of an even number lies at the negative end, as the frequency of Nyquist does.
    assert -frequencies[0] - frequencies[-1] in (0, 1)


def test_a_block_is_cut_to_the_plane() -> None:
    block = centre_block((4, 9), 5)
    assert np.argwhere(block).min(0).tolist() == [0, 2]
    assert np.argwhere(block).max(0).tolist() == [3, 6]
