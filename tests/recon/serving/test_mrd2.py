"""MRD 2 streams, made and read by mrd-python."""

import io
import os
import select
import subprocess
import sys
from typing import Any

import ismrmrd
import mrd
import numpy as np
import pytest
from mrd_files import random_kspace
from mrd_sessions import expected, zero_filled

from mri_qpan.errors import InputError
from mri_qpan.methods import get_method
from mri_qpan.recon.job import Job
from mri_qpan.recon.readers.mrd_header import parse_header
from mri_qpan.recon.serving import mrd2
from mri_qpan.recon.serving.mrd2 import acquisition, header_xml, reconstruct_stream

NY, NX = 24, 32


def header() -> mrd.Header:
    found = mrd.Header()
    space = mrd.EncodingSpaceType(
        matrix_size=mrd.MatrixSizeType(x=NX, y=NY, z=1), field_of_view_mm=mrd.FieldOfViewMm(x=320, y=240, z=5)
    )
    limits = mrd.EncodingLimitsType(
        kspace_encoding_step_1=mrd.LimitType(minimum=0, maximum=NY - 1, center=NY // 2),
        slice=mrd.LimitType(minimum=0, maximum=1, center=0),
    )
    found.encoding.append(mrd.EncodingType(encoded_space=space, recon_space=space, encoding_limits=limits))
    found.acquisition_system_information = mrd.AcquisitionSystemInformationType(
        relative_receiver_noise_bandwidth=0.75, system_vendor="a < b"
    )
    return found


def readout(kspace: np.ndarray, y: int, number: int = 0) -> mrd.StreamItem:
    made = mrd.Acquisition()
    made.data = np.ascontiguousarray(kspace[:, y])
    made.head.idx.kspace_encode_step_1 = y
    made.head.idx.slice = number
    made.head.center_sample = NX // 2
    made.head.position[:] = [1, 2, 3]
    made.head.read_dir[:] = [1, 0, 0]
    made.head.phase_dir[:] = [0, 1, 0]
    made.head.slice_dir[:] = [0, 0, 1]
    if y == NY - 1:
        made.head.flags = mrd.AcquisitionFlags.LAST_IN_SLICE
    return mrd.StreamItem.Acquisition(made)


def stream(*items: Any) -> bytes:
    sink = io.BytesIO()
    with mrd.BinaryMrdWriter(sink) as writer:
        writer.write_header(header())
        writer.write_data(items)
    return sink.getvalue()


def read(data: bytes) -> list[Any]:
    with mrd.BinaryMrdReader(io.BytesIO(data)) as reader:
        assert reader.read_header() == header()
        return [item.value for item in reader.read_data()]


def run(
    data: bytes, job: Job | None = None, words: list[str] | None = None
) -> tuple[tuple[int, int, int], bytes]:
    sink, said = io.BytesIO(), [] if words is None else words
    counts = reconstruct_stream(io.BytesIO(data), sink, job or zero_filled(), 10**9, said.append)
    return counts, sink.getvalue()


def test_slices_become_images() -> None:
    kspace = [random_kspace(1, NY, NX, seed=number) for number in range(2)]
    counts, out = run(stream(*(readout(kspace[s], y, s) for s in range(2) for y in range(NY))))
    assert counts == (2, 0, 0)
    found = read(out)
    assert [image.head.slice for image in found] == [0, 1]
    for image, measured in zip(found, kspace, strict=True):
        pixels, wanted = image.data[0, 0].astype(float), expected(measured)
        assert np.abs(pixels / pixels.max() - wanted / wanted.max()).max() < 5e-3
        assert image.head.field_of_view.tolist() == [320, 240, 5]
        assert image.head.position.tolist() == [1, 2, 3]
        assert image.meta["Keep_image_geometry"][0].value == "1"
    assert found[0].head.flags & mrd.ImageFlags.FIRST_IN_REPETITION
    assert found[1].head.flags & mrd.ImageFlags.LAST_IN_SLICE


def test_an_image_passes_through() -> None:
    image = mrd.Image(
        head=mrd.ImageHeader(image_type=mrd.ImageType.MAGNITUDE), data=np.ones((1, 1, 4, 5), np.float32)
    )
    counts, out = run(stream(mrd.StreamItem.ImageFloat(image)))
    assert counts == (0, 0, 1)
    (found,) = read(out)
    np.testing.assert_array_equal(found.data, image.data)


@pytest.mark.parametrize(("held", "code"), [(1, 0), (0, 3)])
def test_images_alone_are_no_empty_stream(held: int, code: int) -> None:
    image = mrd.Image(
        head=mrd.ImageHeader(image_type=mrd.ImageType.MAGNITUDE), data=np.ones((1, 1, 4, 5), np.float32)
    )
    command = [sys.executable, "-m", "mri_qpan.cli", "stream", "-m", "zero-filled", "--device", "cpu"]
    done = subprocess.run(
        command, input=stream(*[mrd.StreamItem.ImageFloat(image)] * held), capture_output=True
    )
    assert done.returncode == code, done.stderr
    assert len(read(done.stdout)) == held
    assert (b"0 images, 0 failures, 1 passed on" in done.stderr) == held
    assert (b"held no image" in done.stderr) == (not held)


def test_a_bad_image_costs_no_other() -> None:
    kspace, words = random_kspace(1, NY, NX), []
    bad = [readout(kspace * np.nan, NY - 1, 0)]
    counts, out = run(stream(*bad, *(readout(kspace, y, 1) for y in range(NY))), words=words)
    assert counts == (1, 1, 0)
    assert len(read(out)) == 1
    assert "error:" in "".join(words)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.85, 0.95])
def test_damage_is_told_and_what_was_written_is_whole(share: float) -> None:
    kspace = random_kspace(1, NY, NX)
    data = stream(*(readout(kspace, y, s) for s in range(2) for y in range(NY)))
    sink = io.BytesIO()
    with pytest.raises(InputError, match="MRD 2 stream"):
        reconstruct_stream(io.BytesIO(data[: int(share * len(data))]), sink, zero_filled(), 10**9, print)
    if share > 0.5:
        assert len(read(sink.getvalue())) == 1


def test_headers_keep_what_a_reconstruction_needs() -> None:
    found = parse_header(header_xml(header()), "")
    (encoding,) = found.encodings
    assert (encoding.encoded.matrix, encoding.recon.fov) == ((NX, NY, 1), (320, 240, 5))
    assert encoding.step_1 is not None
    assert encoding.step_1.center == NY // 2
    assert encoding.trajectory == "cartesian"
    assert (found.vendor, found.relative_noise_bandwidth) == ("a < b", 0.75)


def test_slices_excited_together_are_refused() -> None:
    found = header()
    factors = mrd.ParallelImagingType(multiband=mrd.MultibandType(multiband_factor=3))
    found.encoding[0].parallel_imaging = factors
    assert parse_header(header_xml(found), "").encodings[0].bands == 3
    sink, words = io.BytesIO(), []
    with mrd.BinaryMrdWriter(sink) as writer:
        writer.write_header(found)
        writer.write_data([readout(random_kspace(1, NY, NX), y) for y in range(NY)])
    assert run(sink.getvalue(), words=words)[0] == (0, 1, 0)
    assert "3 slices were excited together" in "".join(words)


PRECISE = hasattr(mrd.AcquisitionHeader(), "acquisition_time_stamp_ns")
TIMES = [f"{kind}_time_stamp{'_ns' * PRECISE}" for kind in ("acquisition", "physiology")]
"""MRD 2.2 counts nanoseconds, 2.1 does not."""


def set_times(head: Any, acquisition: int, physiology: list[int]) -> None:
    """Set times in ms."""
    unit = 10**6 if PRECISE else 1
    for name, value in zip(TIMES, (unit * acquisition, [unit * t for t in physiology]), strict=True):
        setattr(head, name, value)


def test_an_image_has_its_readouts_stamps_and_user_values() -> None:
    kspace = random_kspace(1, NY, NX)
    items = [readout(kspace, y) for y in range(NY)]
    for y, item in enumerate(items):
        head = item.value.head
        set_times(head, 1000 + y, [y, 2])
        head.user_int, head.user_float = [y, -2, 3], [0.5, y]
    (found,) = read(run(stream(*items))[1])
    centre = NY // 2
    wanted = mrd.ImageHeader(image_type=mrd.ImageType.MAGNITUDE)
    set_times(wanted, 1000 + centre, [centre, 2, 0])
    for name in TIMES:
        assert getattr(found.head, name) == getattr(wanted, name)
    assert found.head.user_int == [centre, -2, 3, 0, 0, 0, 0, 0]
    assert found.head.user_float == [0.5, centre, 0, 0, 0, 0, 0, 0]


def test_times_in_nanoseconds() -> None:
    """As MRD 2.2 has them: either version of mrd-python may be installed."""
    made = mrd.Acquisition(data=np.ones((1, 4), np.complex64))
    for name in ("acquisition_time_stamp", "physiology_time_stamp", "sample_time_us"):
        vars(made.head).pop(name, None)
    made.head.acquisition_time_stamp_ns = 5_000_000
    made.head.physiology_time_stamp_ns = [7_900_000, 8_000_000]
    made.head.sample_time_ns = 2500
    found = acquisition(made)
    assert (found.acquisition_time_stamp, list(found.physiology_time_stamp)) == (5, [7, 8, 0])
    assert found.sample_time_us == 2.5


@pytest.mark.parametrize("turned", [False, True])
def test_trajectories_in_either_order(turned: bool) -> None:
    made = mrd.Acquisition()
    made.data = np.ones((2, 7), np.complex64)
    path = np.arange(14, dtype=np.float32).reshape(7, 2)
    made.trajectory = np.ascontiguousarray(path.T) if turned else path
    made.head.flags = mrd.AcquisitionFlags.IS_NOISE_MEASUREMENT | mrd.AcquisitionFlags.LAST_IN_REPETITION
    found = acquisition(made)
    np.testing.assert_array_equal(found.traj, path)
    assert found.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    assert found.is_flag_set(ismrmrd.ACQ_LAST_IN_REPETITION)
    made.trajectory = np.ones((3, 5), np.float32)
    with pytest.raises(InputError, match="trajectory"):
        acquisition(made)


def test_mrd_pythons_own_phantom_through_pipes(tmp_path: Any) -> None:
    """Their phantom in, our command, their reader: as their own reconstruction has it."""
    made = subprocess.run(
        [sys.executable, "-m", "mrd.tools.phantom", "-m", "32", "-c", "2"], capture_output=True, check=True
    ).stdout
    theirs = subprocess.run(
        [sys.executable, "-m", "mrd.tools.stream_recon"], input=made, capture_output=True, check=True
    ).stdout
    command = [sys.executable, "-m", "mri_qpan.cli", "stream", "-m", "cg-sense", "--device", "cpu"]
    done = subprocess.run(command, input=made, capture_output=True)
    assert done.returncode == 0, done.stderr
    found = []
    for data in (theirs, done.stdout):
        with mrd.BinaryMrdReader(io.BytesIO(data)) as reader:
            reader.read_header()
            items = [item.value for item in reader.read_data()]
        found.append(np.abs(items[0].data[0, 0]).astype(float))
    assert found[0].shape == found[1].shape
    like = np.corrcoef(found[0].ravel(), found[1].ravel())[0, 1]
    assert like > 0.95  # theirs is a root sum of squares over the coils
    turned = [np.roll(found[1], step, axis) for step in (-1, 1) for axis in (0, 1)]
    turned += [found[1][::-1], found[1][:, ::-1], found[1].T]
    assert all(np.corrcoef(found[0].ravel(), other.ravel())[0, 1] < like for other in turned)
    assert get_method("cg-sense").name.encode() in done.stdout


def test_an_image_leaves_before_the_next_line_comes() -> None:
    """Through pipes, as from a scanner that pauses between two slices."""
    kspace = random_kspace(16, NY, NX)
    first = stream(*(readout(kspace, y) for y in range(NY)))[:-1]  # without the end
    command = [sys.executable, "-m", "mri_qpan.cli", "stream", "-m", "zero-filled", "--device", "cpu"]
    whole = subprocess.run(command, input=first + b"\0", capture_output=True, check=True).stdout
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(first)
        process.stdin.flush()
        found = b""
        while len(found) < len(whole) - 1:
            assert select.select([process.stdout], [], [], 60)[0]
            found += os.read(process.stdout.fileno(), 2**16)
        process.stdin.write(b"\0")
        process.stdin.close()
        found += process.stdout.read()
        assert process.wait(60) == 0
    assert len(read(found)) == 1


def test_an_error_that_nobody_expected_costs_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = mrd2.image_item

    def once(message: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise IndexError("list index out of range")
        return real(message)

    monkeypatch.setattr(mrd2, "image_item", once)
    kspace, words = random_kspace(1, NY, NX), []
    counts, out = run(stream(*(readout(kspace, y, s) for s in range(2) for y in range(NY))), words=words)
    assert counts == (1, 1, 0)
    assert len(read(out)) == 1
    assert "error: IndexError: list index out of range" in words
