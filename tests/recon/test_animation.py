"""Animations, read back by Pillow: frames, their timing and what they show."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as Picture

from mri_qpan.errors import ReconError
from mri_qpan.recon.kspace import Geometry, Image, ImageSeries, Index, Stamp
from mri_qpan.recon.writers import write_animation
from mri_qpan.recon.writers.animation import _durations

PROVENANCE: dict[str, object] = {
    "method": "tv",
    "version": "1.2",
    "input": "/data/cine.h5",
    "mask_ratio": 0.25,
    "mask_hash": "0123456789ab",
}


def xml(vendor: str = "", tr: str = "") -> str:
    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><acquisitionSystemInformation>'
        f"<systemVendor>{vendor}</systemVendor></acquisitionSystemInformation>"
        f"<sequenceParameters><TR>{tr}</TR></sequenceParameters></ismrmrdHeader>"
    )


def cine(
    phases: int = 5, slices: int = 1, repetitions: int = 1, header: str | None = None, ticks: int = 17
) -> ImageSeries:
    """Return a bar that moves down 4 of 32 rows a phase, in a frame half as bright as the other."""
    images = []
    for r in range(repetitions):
        for p in range(phases):
            for s in range(slices):
                pixels = np.full((1, 32, 32), 0.25, np.complex64)
                pixels[0, 4 * p : 4 * p + 4] = 1
                pixels *= np.exp(1j * p) * (0.5 if p % 2 else 1)
                now = 1000 + 40 * r
                stamp = Stamp(acquisition_time_stamp=now, physiology_time_stamp=(10 + ticks * p, 0, 0))
                geometry = Geometry((64.0, 64.0, 5.0), (0.0, 0.0, 5.0 * s))
                images.append(Image(pixels, geometry, Index(phase=p, slice=s, repetition=r), stamp))
    return ImageSeries(images, header, PROVENANCE)


def frames(path: Path) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """Return the frames of a GIF and how long each lasts in ms."""
    pixels, durations = [], []
    with Picture.open(path) as gif:
        assert gif.format == "GIF"
        for number in range(gif.n_frames):
            gif.seek(number)
            pixels.append(np.asarray(gif.convert("L")))
            durations.append(gif.info["duration"])
    return pixels, durations


def picture(frame: NDArray[np.uint8], column: int = 0) -> NDArray[np.float64]:
    """Return the (column)th picture of the first row, 32 x 32 again, by the mean."""
    left, top = 8 + column * 520, frame.shape[0] - 512 - 48
    return frame[top : top + 512, left : left + 512].reshape(32, 16, 32, 16).mean(axis=(1, 3))


def test_every_phase_is_a_frame_in_one_window(tmp_path: Path) -> None:
    series = cine()
    write_animation(tmp_path / "a.gif", series)
    shown, _ = frames(tmp_path / "a.gif")
    assert len(shown) == 5
    for frame, image in zip(shown, series.images, strict=True):
        # Rows beside the bar's edges are mixed by the enlargement.
        wanted = 255 * np.abs(image.data[0])
        error = np.abs(picture(frame) - wanted)
        assert np.median(error) < 1
        bar = np.arange(4 * image.index.phase + 1, 4 * image.index.phase + 3)
        assert error[bar].max() < 2
    with Picture.open(tmp_path / "a.gif") as gif:
        assert gif.info["loop"] == 0
        assert json.loads(gif.info["comment"]) == PROVENANCE


def test_slices_move_side_by_side(tmp_path: Path) -> None:
    series = cine(phases=3, slices=2)
    kept = [i for i in series.images if (i.index.phase, i.index.slice) != (1, 1)]
    write_animation(tmp_path / "a.gif", replace(series, images=kept))
    shown, _ = frames(tmp_path / "a.gif")
    assert len({frame.shape for frame in shown}) == 1
    assert shown[0].shape[1] == 8 + 2 * 512
    side = (1024 // 2) - 8
    left = [frame[:, 8 : 8 + side] for frame in shown]
    right = [frame[:, 16 + side : 16 + 2 * side] for frame in shown]
    assert right[1][-300:-60].max() == 0  # this slice has no such phase
    np.testing.assert_array_equal(left[0][-300:-60], right[0][-300:-60])


@pytest.mark.parametrize(
    ("header", "step"),
    [
        (xml("SIEMENS", "3.1"), 42.5),  # 17 ticks of 2.5 ms
        (xml("Other", "38"), 38),
        (xml("Other", "3.1"), 100),
        (xml("", "x"), 100),
        (xml("", "inf"), 100),
        (None, 100),
    ],
)
def test_the_time_of_phases(tmp_path: Path, header: str | None, step: float) -> None:
    write_animation(tmp_path / "a.gif", cine(phases=9, header=header))
    assert sum(frames(tmp_path / "a.gif")[1]) == pytest.approx(9 * step, abs=5)


def test_the_time_of_repetitions(tmp_path: Path) -> None:
    write_animation(tmp_path / "a.gif", cine(phases=1, repetitions=4, header=xml("Siemens", "500")))
    assert frames(tmp_path / "a.gif")[1] == [100] * 4  # 40 ticks


def test_the_tr_of_lines_is_not_that_of_repetitions(tmp_path: Path) -> None:
    write_animation(tmp_path / "a.gif", cine(phases=1, repetitions=4, header=xml("Other", "500")))
    assert frames(tmp_path / "a.gif")[1] == [100] * 4


def test_clocks_that_stand_still_are_no_clocks(tmp_path: Path) -> None:
    write_animation(tmp_path / "a.gif", cine(header=xml("Siemens", "60"), ticks=0))
    assert frames(tmp_path / "a.gif")[1] == [60] * 5


def test_equal_images_are_frames_of_their_own(tmp_path: Path) -> None:
    series = cine(phases=1, repetitions=3)
    write_animation(tmp_path / "a.gif", series)
    shown, durations = frames(tmp_path / "a.gif")
    assert durations == [100] * 3
    assert not (shown[0] == shown[1]).all()  # their labels differ


@given(step=st.floats(0.1, 1e5), count=st.integers(2, 300))
def test_durations_keep_pace(step: float, count: int) -> None:
    found = _durations(step, count)
    shown = min(max(step, 20.0), 1000.0)
    assert len(found) == count
    assert all(duration % 10 == 0 and duration >= 20 for duration in found)
    assert abs(sum(found) - count * shown) <= 5.01


def test_one_image_does_not_move(tmp_path: Path) -> None:
    with pytest.raises(ReconError, match="nothing moves"):
        write_animation(tmp_path / "a.gif", cine(phases=1, slices=4))
