"""What scanners' flags and their networks make of a session: images whole, in time, and each its own."""

import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ismrmrd
import numpy as np
import pytest
from mrd_files import header_xml, limit_xml, line, lines, random_kspace
from mrd_sessions import CPU, KSPACE, NX, NY, SLICE, XML, assert_is, flagged, images, talk, texts, zero_filled
from waiting import until

from mri_qpan.errors import InputError
from mri_qpan.methods import Method
from mri_qpan.recon.job import Job
from mri_qpan.recon.serving.mrd_stream import ConfigFile, HeaderText, MrdReader, MrdWriter
from mri_qpan.recon.serving.painter import Painter
from mri_qpan.recon.serving.session import Lines, Session

STEPS = limit_xml("kspace_encoding_step_1", NY - 1, NY // 2)
HEAD = [ConfigFile("default"), HeaderText(XML)]
LAST = (ismrmrd.ACQ_LAST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_MEASUREMENT)


def slow(seconds: float) -> Callable[[], Job]:
    def run(adjoint: Any, normal: Any) -> Any:
        time.sleep(seconds)
        return adjoint

    return lambda: Job(Method("slow", run), CPU)


@pytest.mark.parametrize("flag", LAST)
def test_averages_that_each_end_a_repetition_make_one_image(serve, flag: int) -> None:
    header = HeaderText(header_xml((NX, NY, 1), limits=STEPS + limit_xml("average", 1, 0)))
    made = [*flagged(KSPACE, flag, average=0), *flagged(3 * KSPACE, flag, average=1)]
    answer = talk(serve(), HEAD[0], header, *made)
    (image,) = images(answer)
    assert_is(image, KSPACE)
    assert "came after" not in texts(answer)


@pytest.mark.parametrize("flag", LAST)
def test_interleaved_slices_that_each_end_the_repetition_come_whole(serve, flag: int) -> None:
    slices = [random_kspace(1, NY, NX, seed=number) for number in range(3)]
    made = [flagged(kspace, slice=number) for number, kspace in enumerate(slices)]
    for one in made:
        one[-1].set_flag(flag)
    sent = [one[row] for row in range(NY) for one in made]
    answer = talk(serve(), *HEAD, *sent)
    assert [image.slice for image in images(answer)] == [0, 1, 2]
    for image, kspace in zip(images(answer), slices, strict=True):
        assert_is(image, kspace)
    assert "came after" not in texts(answer)


def test_partitions_that_each_end_the_slice_make_one_slab(serve) -> None:
    kspace = random_kspace(1, 4, NY, NX)
    made = lines(kspace)
    for acquisition in made[NY - 1 :: NY]:
        acquisition.set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
    answer = talk(serve(), HEAD[0], HeaderText(header_xml((NX, NY, 4))), *made)
    (image,) = images(answer)
    assert image.data.shape == (1, 4, NY, NX)


ROWS = [*range(1, NY), 0]  # any order
SLAB = [(partition, row) for partition in range(4) for row in ROWS]


@pytest.mark.parametrize(
    ("places", "limits"),
    [
        (SLAB, True),
        (SLAB, False),
        (SLAB[::-1], True),  # partitions from the last
        ([(3 - p, r) for p, r in SLAB], True),
        ([((2, 1, 3, 0)[p], r) for p, r in SLAB], True),  # from the centre
        ([((3, 0, 1, 2)[p], r) for p, r in SLAB], True),
        (SLAB[NY:], True),  # partial Fourier along z
        ([(p, r) for r in ROWS for p in range(4)], True),  # partitions in turn, line by line
        ([(p, r) for r in ROWS for p in (2, 1, 3, 0)], True),
    ],
)
def test_a_slab_leaves_with_the_last_of_its_flagged_lines(
    places: list[tuple[int, int]], limits: bool
) -> None:
    kspace = random_kspace(1, 4, NY, NX)
    xml = header_xml((NX, NY, 4))
    if not limits:
        xml = re.sub("<kspace_encoding_step_2>.*?</kspace_encoding_step_2>", "", xml, flags=re.DOTALL)
        assert "step_2>" not in xml.split("</encodingLimits>")[0]
    last = {partition: number for number, (partition, _) in enumerate(places)}
    for flagged_places in (
        set(last.values()),
        {len(places) - 1},
    ):  # every partition's last line, or the slab's
        session = Session(xml, "peer", 10**8)
        for number, (partition, row) in enumerate(places):
            one = line(kspace[:, partition, row], ky=row, kz=partition)
            if number in flagged_places:
                one.set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
            found = session.add(one)
            assert bool(found) == (number == len(places) - 1)
        assert len(found[0].acquisitions) == len(places)


def test_a_slab_of_elliptical_rows_leaves_with_its_last_line() -> None:
    kspace = random_kspace(1, 8, NY, NX)
    session = Session(header_xml((NX, NY, 8)), "peer", 10**8)
    y, z = np.meshgrid((np.arange(NY) + 0.5) / NY - 0.5, (np.arange(8) + 0.5) / 8 - 0.5, indexing="ij")
    places = np.argwhere(np.hypot(y, z) < 0.5)
    for number, (row, partition) in enumerate(places):
        one = line(kspace[:, partition, row], ky=row, kz=partition)
        if number == len(places) - 1:
            one.set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
        assert bool(session.add(one)) == (number == len(places) - 1)


def test_every_image_tells_what_no_earlier_one_did(serve) -> None:
    sent = []
    for number in range(3):
        made = flagged(random_kspace(4, NY, NX, seed=number), slice=number)
        if number == 1:  # neither line of the centre: no calibration region
            made = [a for a in made if abs(a.idx.kspace_encode_step_1 - NY // 2) > 1 or a is made[-1]]
        sent += made
    answer = talk(serve(jobs={"default": zero_filled}), *HEAD, *sent)
    assert len(images(answer)) == 3
    assert texts(answer).count("no calibration region") == 1
    assert "slice 1: no calibration region" in texts(answer)


def test_patience_does_not_run_while_an_image_is_owed(serve) -> None:
    address = serve(jobs={"default": slow(4)}, patience=1.5)
    with socket.create_connection(address, timeout=30) as connection:
        writer, reader = MrdWriter(connection), iter(MrdReader(connection))
        for message in [*HEAD, *SLICE]:
            writer.serialize(message)
        assert isinstance(next(reader), ismrmrd.Image)
        for acquisition in flagged(KSPACE, repetition=1):
            writer.serialize(acquisition)
        writer.close()
        (second,) = reader
        assert second.repetition == 1


def pair(size: int = 4096) -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection that holds little."""
    ends = socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    return ends


def test_nothing_follows_a_message_that_was_cut_short() -> None:
    here, there = pair()
    with here, there:
        here.settimeout(0.2)
        writer = MrdWriter(here)
        with pytest.raises(TimeoutError, match=r"nothing was read for 0\.2 s"):
            writer.serialize("x" * 10**6)
        there.setblocking(False)
        received = there.recv(10**7)
        for _ in range(2):
            with pytest.raises(OSError, match="cut short"):
                writer.serialize("more")
        with pytest.raises(OSError, match="cut short"):
            writer.close()
        here.close()
        there.setblocking(True)
        while part := there.recv(10**7):
            received += part
        assert set(received[6:]) == set(b"x")


def test_a_slow_peer_that_reads_gets_all() -> None:
    here, there = pair()
    received = bytearray()

    def read_slowly() -> None:
        while len(received) < 40000:
            time.sleep(0.05)
            received.extend(there.recv(1000))

    with here, there:
        here.settimeout(1.0)
        reader = threading.Thread(target=read_slowly)
        reader.start()
        MrdWriter(here).serialize("y" * 40000)  # takes longer than the timeout
        reader.join(30)
    assert bytes(received[6:]) == b"y" * (len(received) - 6)


def test_images_of_earlier_repetitions_leave_before_memory_ends(serve) -> None:
    made = [a for r in range(60) for a in lines(KSPACE, repetition=r)]
    answer = talk(serve(memory=4 * NY * (8 * NX + 1600)), *HEAD, *made)
    assert [image.repetition for image in images(answer)] == list(range(60))
    assert "error" not in texts(answer)


def test_they_leave_though_the_next_one_is_too_large(serve) -> None:
    made = [*lines(KSPACE), *(a for _ in range(4) for a in lines(KSPACE, repetition=1))]
    answer = talk(serve(memory=2 * NY * (8 * NX + 1600)), *HEAD, *made)
    assert [image.repetition for image in images(answer)] == [0]
    assert "bytes of samples without a complete image" in texts(answer)


def test_an_acquisition_larger_than_all_memory_loses_no_image(serve) -> None:
    large = line(np.ones((1, 8000), np.complex64), repetition=1)
    answer = talk(serve(memory=NY * (8 * NX + 1600) + 10000), *HEAD, *lines(KSPACE), large)
    assert [image.repetition for image in images(answer)] == [0]
    assert "bytes of samples without a complete image" in texts(answer)


def test_texts_and_headers_need_not_be_utf_8(serve) -> None:
    def text(kind: int, words: bytes) -> bytes:
        return kind.to_bytes(2, "little") + len(words).to_bytes(4, "little") + words

    named = XML.replace(
        "<acquisitionSystemInformation>",
        "<studyInformation><studyDescription>Schädel"
        "</studyDescription></studyInformation><acquisitionSystemInformation>",
    )
    declared = named.replace('version="1.0"?', 'version="1.0" encoding="ISO-8859-1"?').encode("latin-1")
    sent = [HEAD[0], text(5, "Schädel".encode("latin-1")), text(3, declared), *SLICE]
    answer = talk(serve(), *sent)
    assert len(images(answer)) == 1
    assert "error" not in texts(answer)


def test_a_header_in_latin_1_is_told_on_in_utf_8() -> None:
    here, there = socket.socketpair()
    words = '<?xml version="1.0" encoding="ISO-8859-1"?><a>Schädel</a>'.encode("latin-1")
    with here, there:
        here.sendall((3).to_bytes(2, "little") + len(words).to_bytes(4, "little") + words)
        here.shutdown(socket.SHUT_WR)
        header = next(iter(MrdReader(there)))
    assert header == '<?xml version="1.0" encoding="UTF-8"?><a>Schädel</a>'


def test_each_encoding_has_its_scale(serve) -> None:
    xml = header_xml((NX, NY, 1))
    start, end = xml.index("<encoding>"), xml.index("</encoding>") + len("</encoding>")
    header = HeaderText(xml[:end] + xml[start:end] + xml[end:])
    made = [*flagged(1e4 * KSPACE), *flagged(KSPACE, encoding=1), *flagged(2 * KSPACE, encoding=1, slice=1)]
    first, second, third = images(talk(serve(), HEAD[0], header, *made))
    assert_is(first, KSPACE)
    assert_is(second, KSPACE)
    np.testing.assert_allclose(third.data, 2 * second.data.astype(int), atol=2)


def test_images_that_wait_keep_their_own_repetitions_calibration() -> None:
    session = Session(XML, "peer", 10**8)
    flag = [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION]
    for repetition in range(4):
        for own in (1, 2):
            if repetition != 2:  # which uses the last one's before it
                for acquisition in lines(
                    own * (repetition + 1) * KSPACE,
                    range(8, 16),
                    flags=flag,
                    repetition=repetition,
                    contrast=own,
                ):
                    session.add(acquisition)
        for acquisition in lines(KSPACE[:, ::2], repetition=repetition):
            session.add(acquisition)
    for done in session.rest():
        expected = 2 if done.index.repetition == 2 else done.index.repetition + 1
        factors = [
            np.abs(a.data / KSPACE[:, a.idx.kspace_encode_step_1]).max() for a in done.acquisitions[:16]
        ]
        np.testing.assert_allclose(factors[:8], expected, rtol=1e-5)
        np.testing.assert_allclose(factors[8:16], 2 * expected, rtol=1e-5)
        assert len(done.acquisitions) == 16 + NY // 2


def test_a_noise_scan_with_another_flag_is_one() -> None:
    session = Session(XML, "peer", 10**8)
    both = [ismrmrd.ACQ_IS_NOISE_MEASUREMENT, ismrmrd.ACQ_IS_RTFEEDBACK_DATA]
    session.add(line(random_kspace(1, 256), flags=both))
    (done,) = (found for a in flagged(KSPACE) for found in session.add(a))
    assert len(done.acquisitions) == NY + 1
    assert session.skipped == 0


@pytest.mark.parametrize("maximum", ["1e0", "1.0", "many", "nan", "1e999", "-1", "0x1"])
def test_odd_limits_of_averages_end_no_session(serve, maximum: str) -> None:
    limits = STEPS + limit_xml("average", 1, 0).replace("<maximum>1<", f"<maximum>{maximum}<")
    answer = talk(serve(), HEAD[0], HeaderText(header_xml((NX, NY, 1), limits=limits)), *SLICE)
    assert len(images(answer)) == 1


def test_numbers_of_images_start_again_after_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mri_qpan.recon.serving.painter.LARGEST_NUMBER", 2)
    session, painter = Session(XML, "peer", 10**8), Painter(slow(0)(), XML, "peer")
    numbers = []
    for number in range(5):
        for acquisition in flagged(KSPACE, slice=number):
            for done in session.add(acquisition):
                numbers += [m.image_index for m in painter.paint(done, lambda words: None)]
    assert numbers == [1, 2, 1, 2, 1]


def test_acquisitions_count_with_what_they_take_beside_their_samples() -> None:
    session = Session(XML, "peer", 10**6)
    for number in range(600):
        session.add(line(KSPACE[:, 0, :1], ky=number % NY))
    with pytest.raises(InputError, match="more than 1000000 bytes"):
        talkative(session)


def talkative(session: Session) -> None:
    for number in range(100):
        session.add(line(KSPACE[:, 0, :1], ky=number % NY))


def test_a_librarys_panic_costs_one_image(serve) -> None:
    class Panic(BaseException):
        """What Rust's panics are in Python."""

    calls: list[int] = []

    def run(adjoint: Any, normal: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise Panic("index out of bounds")
        return adjoint

    address = serve(jobs={"default": lambda: Job(Method("panics", run), CPU)})
    answer = talk(address, *HEAD, *SLICE, *flagged(KSPACE, slice=1))
    assert [image.slice for image in images(answer)] == [1]
    assert "error: index out of bounds" in texts(answer)
    assert len(images(talk(address, *HEAD, *SLICE))) == 1


def test_a_librarys_panic_over_maps_costs_nothing(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """What Rust's panics are in Python."""

    def begin(painter: Painter, lines: Lines) -> None:
        begun.append(lines.index.slice)
        raise Panic("index out of bounds")

    begun: list[int] = []
    monkeypatch.setattr(Painter, "begin", begin)
    calibration = lines(KSPACE, range(8, 16), flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION])
    with socket.create_connection(serve(), timeout=30) as connection:
        writer = MrdWriter(connection)
        for message in (*HEAD, *calibration):
            writer.serialize(message)
        for number in range(4):
            made = flagged(KSPACE, slice=number)
            for own in lines(KSPACE, range(8, 16), flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION], slice=number):
                writer.serialize(own)
            writer.serialize(made[0])
            until(lambda: begun and begun[-1] == number)  # noqa: B023
            for acquisition in made[1:]:
                writer.serialize(acquisition)
        writer.close()
        assert [image.slice for image in images(list(MrdReader(connection)))] == [0, 1, 2, 3]


def test_an_answer_that_cannot_be_written_ends_its_session_alone(
    serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MrdWriter.serialize

    def serialize(writer: MrdWriter, message: Any) -> None:
        if isinstance(message, ismrmrd.Image) and message.slice == 1:
            raise TypeError("no such field")
        real(writer, message)

    address = serve()
    with monkeypatch.context() as patched:
        patched.setattr(MrdWriter, "serialize", serialize)
        with socket.create_connection(address, timeout=30) as connection:
            writer = MrdWriter(connection)
            for message in (*HEAD, *SLICE, *flagged(KSPACE, slice=1), *flagged(KSPACE, slice=2)):
                real(writer, message)
            found = []
            with suppress(InputError, OSError):
                found.extend(MrdReader(connection))
    assert [image.slice for image in images(found)] in ([0], [])  # a reset may swallow it
    assert len(images(talk(address, *HEAD, *SLICE))) == 1


def test_a_choice_of_config_that_comes_late_is_told(serve) -> None:
    choice = '{"parameters": {"config": "wavelet"}}'
    answer = talk(serve(), *HEAD, *SLICE[:3], choice, *SLICE[3:])
    assert len(images(answer)) == 1
    assert "wavelet came after the first readout" in texts(answer)
