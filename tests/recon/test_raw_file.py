"""What a session sends, read again by ismrmrd-python: whole, and as a crash would leave it."""

import shutil
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest
from mrd_files import line, random_kspace
from mrd_sessions import KSPACE, SLICE, XML, flagged

from mri_qpan.recon import raw_file
from mri_qpan.recon.raw_file import RawFile

IMAGE = ismrmrd.Image.from_array(np.arange(20, dtype=np.float32).reshape(1, 1, 4, 5))
ALONG = ismrmrd.Acquisition.from_array(random_kspace(3, 7), np.arange(14, dtype=np.float32).reshape(7, 2))


def wave(number: int) -> Any:
    return ismrmrd.Waveform.from_array(np.full((2, 5), number, np.uint32))


def found_in(path: Path) -> list[Any]:
    """All readouts, then all waveforms, then all images."""
    with ismrmrd.Dataset(str(path), "dataset", mode="r") as dataset:
        assert dataset.read_xml_header().decode() == XML
        names = dataset.list()
        found = [dataset.read_acquisition(n) for n in range(dataset.number_of_acquisitions())]
        count = dataset.number_of_waveforms() if "waveforms" in names else 0
        found += [dataset.read_waveform(n) for n in range(count)]
        count = dataset.number_of_images("image_0") if "image_0" in names else 0
        return found + [dataset.read_image("image_0", n) for n in range(count)]


def assert_same(found: list[Any], sent: list[Any]) -> None:
    assert [type(one) for one in found] == [type(one) for one in sent]
    for one, other in zip(found, sent, strict=True):
        assert bytes(one.getHead()) == bytes(other.getHead())
        np.testing.assert_array_equal(one.data, other.data)
        if isinstance(one, ismrmrd.Acquisition):
            np.testing.assert_array_equal(one.traj, other.traj)


def test_all_of_it_in_its_order(path: Path) -> None:
    noise = line(random_kspace(2, 64), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
    readouts, waves = (
        [noise, ALONG, *SLICE, *flagged(2 * KSPACE, slice=1), ALONG],
        [wave(n) for n in range(9)],
    )
    file = RawFile(path, XML)
    for message in [*readouts[:10], *waves, IMAGE, *readouts[10:], IMAGE]:
        file.append(message)
    file.close()
    assert_same(found_in(path), [*readouts, *waves, IMAGE, IMAGE])


def test_a_crash_costs_what_came_since_the_last_slice(path: Path, tmp_path: Path) -> None:
    """What the disk has at any time is what a killed process leaves: no buffer lies between."""
    file = RawFile(path, XML)
    for number in range(3):
        for message in [wave(number), *flagged(KSPACE, slice=number), *SLICE[:-1]]:
            file.append(message)
        left = shutil.copy(path, tmp_path / "left.h5")
        whole = (number + 1) * len(SLICE) + number * (len(SLICE) - 1)
        with ismrmrd.Dataset(str(left), "dataset", mode="r") as dataset:
            assert (dataset.number_of_acquisitions(), dataset.number_of_waveforms()) == (whole, number + 1)
            assert dataset.read_acquisition(whole - 1).idx.slice == number
    file.close()


@pytest.mark.parametrize(("name", "most"), [("MOST", 10), ("BLOCK", 10 * SLICE[0].data.nbytes)])
def test_no_more_than_so_many_wait(path: Path, name: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_file, name, most)
    file = RawFile(path, XML)
    for number, message in enumerate(SLICE[:-1], start=1):
        file.append(message)
        assert len(file._waiting) == number % 10
    file.close()
    assert_same(found_in(path), SLICE[:-1])
