"""What a session sends, read again by ismrmrd-python: whole, and as a crash would leave it."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ismrmrd
import numpy as np
import pytest
from mrd_files import line, random_kspace
from mrd_sessions import KSPACE, SLICE, XML, flagged

from mri_qpan.errors import InputError
from mri_qpan.recon.serving import raw_file
from mri_qpan.recon.serving.raw_file import Kept, RawFile

IMAGE = ismrmrd.Image.from_array(np.arange(20, dtype=np.float32).reshape(1, 1, 4, 5))
ALONG = ismrmrd.Acquisition.from_array(random_kspace(3, 7), np.arange(14, dtype=np.float32).reshape(7, 2))


def opened(path: Path) -> RawFile:
    file = RawFile(path)
    file.write_header(XML)
    return file


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
    file = opened(path)
    for message in [*readouts[:10], *waves, IMAGE, *readouts[10:], IMAGE]:
        file.append(message)
    file.close()
    assert_same(found_in(path), [*readouts, *waves, IMAGE, IMAGE])


def test_a_crash_costs_what_came_since_the_last_slice(path: Path, tmp_path: Path) -> None:
    """What the disk has at any time is what a killed process leaves: no buffer lies between."""
    file = opened(path)
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
    file = opened(path)
    for number, message in enumerate(SLICE[:-1], start=1):
        file.append(message)
        assert len(file._waiting) == number % 10
    file.close()
    assert_same(found_in(path), SLICE[:-1])


def test_images_of_another_size_or_type_are_in_groups_of_their_own(path: Path) -> None:
    sent = {
        "image_0": IMAGE,
        "image_0_2": ismrmrd.Image.from_array(IMAGE.data.reshape(1, 1, 5, 4)),
        "image_0_3": ismrmrd.Image.from_array(IMAGE.data.astype(np.complex64)),
    }
    file = opened(path)
    for message in [*sent.values(), *SLICE, *sent.values()]:
        file.append(message)
    file.close()
    with ismrmrd.Dataset(str(path), "dataset", mode="r") as dataset:
        assert dataset.number_of_acquisitions() == len(SLICE)
        for name, image in sent.items():
            assert dataset.number_of_images(name) == 2
            assert_same([dataset.read_image(name, n) for n in range(2)], [image, image])


def with_a_nul() -> Any:
    image = ismrmrd.Image.from_array(IMAGE.data)
    image.meta = {"name": "no\0end"}
    return image


@pytest.mark.parametrize("before", [0, 1])
def test_an_image_that_hdf5_cannot_hold_leaves_no_trace(path: Path, before: int) -> None:
    file = opened(path)
    for message in [IMAGE] * before:
        file.append(message)
    with pytest.raises(InputError, match="an image of series 0 cannot be kept"):
        file.append(with_a_nul())
    for message in [IMAGE, *SLICE]:
        file.append(message)
    file.close()
    assert_same(found_in(path), [*SLICE, *[IMAGE] * before, IMAGE])
    with ismrmrd.Dataset(str(path), "dataset", mode="r") as dataset:
        assert "image_0_2" not in dataset.list()


def test_a_peer_is_told_once_of_images_that_are_left_out(tmp_path: Path) -> None:
    told: list[str] = []
    kept = Kept(tmp_path, "peer:1", told.append)
    kept.begin(XML)
    for message in [with_a_nul(), with_a_nul(), *SLICE]:
        kept.add(message)
    kept.end()
    assert len(told) == 1
    assert told[0].startswith("warning: an image of series 0 cannot be kept: ")
    (saved,) = tmp_path.glob("*.h5")
    assert_same(found_in(saved), SLICE)


def test_images_may_come_before_the_header(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "peer:1", pytest.fail)
    kept.add(IMAGE)
    kept.begin(XML)
    for message in SLICE:
        kept.add(message)
    kept.end()
    (saved,) = tmp_path.glob("*.h5")
    assert_same(found_in(saved), [*SLICE, IMAGE])


def test_no_session_replaces_what_another_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that comes again within the second, or a clock that went back, give the name of before."""
    monkeypatch.setattr(
        "mri_qpan.recon.serving.raw_file.time", SimpleNamespace(strftime=lambda _: "20261123-120000")
    )
    for message in SLICE[:3]:
        kept = Kept(tmp_path, "peer:1", pytest.fail)
        kept.begin(XML)
        kept.add(message)
        kept.end()
    names = [f"20261123-120000_peer_1{end}.h5" for end in ("", "-2", "-3")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for name, message in zip(names, SLICE[:3], strict=True):
        assert_same(found_in(tmp_path / name), [message])
