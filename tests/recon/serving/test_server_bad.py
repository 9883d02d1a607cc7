"""Sessions with the MRD server that do not go well, and that none of them harms another."""

import contextlib
import resource
import shutil
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mrd_files import header_xml, line, lines, random_kspace
from mrd_sessions import KSPACE, NX, SLICE, XML, flagged, images, talk, texts, zero_filled
from waiting import until

from mri_qpan.errors import InputError, ModelError
from mri_qpan.recon.job import Job
from mri_qpan.recon.serving import mrd_stream
from mri_qpan.recon.serving.mrd_stream import ConfigFile, HeaderText, MrdReader, MrdWriter
from mri_qpan.recon.serving.server import Server, Settings

BAD: dict[str, tuple[list[Any], str]] = {
    "garbage": ([b"\xff" * 64], "not MRD"),
    "lengths that lie": ([struct.pack("<HI", 5, 2**31)], "beyond any of MRD's"),
    "a huge acquisition": (
        [ConfigFile("default"), HeaderText(XML), struct.pack("<H", 1008) + b"\xff" * 340],
        "error",
    ),
    "a huge image": (
        [ConfigFile("default"), HeaderText(XML), struct.pack("<H", 1022) + b"\xff" * 206],
        "error",
    ),
    "an acquisition before the header": ([ConfigFile("default"), SLICE[0]], "before the header"),
    "samples compressed": (
        [ConfigFile("default"), HeaderText(XML), line(KSPACE[:, 0], flags=[ismrmrd.ACQ_COMPRESSION2])],
        "compressed acquisitions cannot be read",
    ),
    "two headers": ([ConfigFile("default"), HeaderText(XML), HeaderText(XML)], "a second header"),
    "two configs": ([ConfigFile("default"), ConfigFile("default")], "a second config"),
    "no xml": ([ConfigFile("default"), HeaderText("nothing")], "not valid XML"),
    "other channels": (
        [ConfigFile("default"), HeaderText(XML), SLICE[0], line(random_kspace(2, NX), ky=1), *SLICE[2:]],
        "channels",
    ),
    "lines outside": (
        [ConfigFile("default"), HeaderText(XML), line(KSPACE[:, 0], ky=500)],
        "outside the encoded matrix",
    ),
    "a broken method": ([ConfigFile("broken"), HeaderText(XML), *SLICE], "a bug"),
    "no NaN": ([ConfigFile("default"), HeaderText(XML), *flagged(KSPACE * np.nan)], "NaN"),
}


class TestBadSessions:
    @pytest.mark.parametrize("name", BAD)
    def test_end_in_a_text_and_close_and_the_next_client_is_served(
        self, serve, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "mri_qpan")
        address = serve()
        messages, words = BAD[name]
        answer = (
            talk(address, *messages, close=False)
            if name in ("garbage", "lengths that lie", "a huge image")
            else talk(address, *messages)
        )
        assert "error:" in texts(answer)
        assert words in texts(answer)
        assert len(images(talk(address, ConfigFile("default"), HeaderText(XML), *SLICE))) == 1
        told = [record.fields for record in caplog.records if getattr(record, "event", "") == "failed"]
        assert words in told[0]["reason"] or "error" in words

    def test_a_bad_image_does_not_end_its_session(self, serve) -> None:
        bad = [line(KSPACE[:, 0], ky=500, slice=0, flags=[ismrmrd.ACQ_LAST_IN_SLICE])]
        answer = talk(serve(), ConfigFile("default"), HeaderText(XML), *bad, *flagged(KSPACE, slice=1))
        assert "error:" in texts(answer)
        assert [image.slice for image in images(answer)] == [1]

    def test_silence(self, serve) -> None:
        answer = talk(serve(patience=0.3), ConfigFile("default"), HeaderText(XML), close=False)
        assert "error: nothing came for 0.3 s" in texts(answer)

    def test_silence_in_the_middle_of_a_readout(self, serve) -> None:
        part = struct.pack("<H", 1008) + bytes(SLICE[0].getHead()) + bytes(7)
        messages = [ConfigFile("default"), HeaderText(XML), *flagged(KSPACE), part]
        answer = talk(serve(patience=0.3), *messages, close=False)
        assert len(images(answer)) == 1
        assert "error: nothing came for 0.3 s" in texts(answer)

    def test_waveforms_alone(self, serve) -> None:
        wave = ismrmrd.Waveform.from_array(np.zeros((2, 10), np.uint32))
        assert talk(serve(), ConfigFile("default"), HeaderText(XML), wave, wave) == []

    def test_leaving_in_the_middle(self, serve) -> None:
        address = serve()
        with socket.create_connection(address) as connection:
            writer = MrdWriter(connection)
            writer.serialize(ConfigFile("default"))
            writer.serialize(HeaderText(XML))
            connection.sendall(struct.pack("<H", 1008) + bytes(100))
        assert len(images(talk(address, ConfigFile("default"), HeaderText(XML), *SLICE))) == 1

    def test_more_samples_than_allowed(self, serve) -> None:
        answer = talk(serve(memory=9000), ConfigFile("default"), HeaderText(XML), *lines(KSPACE))
        assert "more than 9000 bytes of samples" in texts(answer)

    def test_late_lines_are_told_of(self, serve) -> None:
        answer = talk(serve(), ConfigFile("default"), HeaderText(XML), *SLICE, *flagged(KSPACE))
        assert len(images(answer)) == 2
        assert "came after their image was complete" in texts(answer)

    def test_more_clients_than_places_wait(self, serve) -> None:
        address = serve(clients=1)
        with socket.create_connection(address, timeout=30) as first:
            MrdWriter(first).serialize(ConfigFile("default"))
            answers: list[Any] = []
            second = threading.Thread(
                target=lambda: answers.extend(talk(address, ConfigFile("default"), HeaderText(XML), *SLICE))
            )
            second.start()
            time.sleep(0.5)
            assert not answers
            MrdWriter(first).close()
        second.join(30)
        assert len(images(answers)) == 1

    def test_a_stop_lets_sessions_end(self) -> None:
        server = Server(Settings(jobs={"default": zero_filled}, default="default", port=0))
        thread = threading.Thread(target=server.serve)
        thread.start()
        with socket.create_connection(server.address, timeout=30) as connection:
            writer = MrdWriter(connection)
            writer.serialize(ConfigFile("default"))
            writer.serialize(HeaderText(XML))
            until(lambda: server._sessions)
            server.stop()
            for acquisition in SLICE:
                writer.serialize(acquisition)
            writer.close()
            assert len(images(list(MrdReader(connection)))) == 1
        thread.join(30)
        assert not thread.is_alive()

    def test_when_no_more_clients_can_be_taken_those_in_hand_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = Server(Settings(jobs={"default": zero_filled}, default="default", port=0))
        with ThreadPoolExecutor() as pool:
            served = pool.submit(server.serve)
            with socket.create_connection(server.address, timeout=30) as connection:
                writer = MrdWriter(connection)
                writer.serialize(ConfigFile("default"))
                writer.serialize(HeaderText(XML))
                until(lambda: server._sessions)
                asked = threading.Event()

                def broken(timeout: float) -> bool:
                    asked.set()
                    raise MemoryError("no room for another client")

                monkeypatch.setattr(server._places, "acquire", broken)
                assert asked.wait(30)
                for acquisition in SLICE:
                    writer.serialize(acquisition)
                writer.close()
                assert len(images(list(MrdReader(connection)))) == 1
            with pytest.raises(MemoryError, match="another client"):
                served.result(30)


@pytest.fixture(scope="module")
def whole() -> bytes:
    """A good session's bytes."""
    ours, theirs = socket.socketpair()
    writer = MrdWriter(ours)
    for message in (ConfigFile("default"), HeaderText(XML), *flagged(KSPACE[:, :6])):
        writer.serialize(message)
    writer.close()
    ours.close()
    found = b""
    while part := theirs.recv(2**20):
        found += part
    theirs.close()
    return found


@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    cut=st.floats(0, 1),
)
@settings(deadline=None, max_examples=150)
def test_mutated_streams_are_read_or_refused(whole: bytes, flips: list[tuple[int, int]], cut: float) -> None:
    damaged = bytearray(whole)
    for place, value in flips:
        damaged[place % len(damaged)] = value
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    sender = threading.Thread(target=_pour, args=(ours, bytes(damaged[: int(len(damaged) * cut)])))
    sender.start()
    with contextlib.suppress(InputError), theirs:
        for _ in MrdReader(theirs):
            pass
    sender.join()


def _pour(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError), connection:
        connection.sendall(data)


def test_hundreds_of_mutated_sessions(serve, whole: bytes) -> None:
    """The server answers each of them and then a good one."""
    address = serve(patience=2.0)
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for place in rng.integers(len(damaged), size=rng.integers(1, 5)):
            damaged[place] = rng.integers(256)
        with socket.create_connection(address, timeout=20) as connection:
            try:
                connection.sendall(damaged[: rng.integers(len(damaged) // 2, len(damaged) + 1)])
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(2**16):
                    pass
            except OSError:
                continue
    assert len(images(talk(address, ConfigFile("default"), HeaderText(XML), *SLICE))) == 1


def test_nothing_is_allocated_before_it_arrives() -> None:
    ours, theirs = socket.socketpair()
    ours.sendall(struct.pack("<HI", 3, mrd_stream.LARGEST_TEXT) + b"x" * 100)
    ours.close()
    with pytest.raises(InputError, match="ended in the middle"):
        list(MrdReader(theirs))
    theirs.close()


class TestRobustness:
    @pytest.mark.parametrize(
        "messages", [[], [ConfigFile("default")], [ConfigFile("default"), HeaderText(XML)]]
    )
    def test_nothing_comes(self, serve, messages: list[Any]) -> None:
        assert talk(serve(), *messages) == []

    def test_a_disk_that_fills_up_costs_no_image(self, serve, tmp_path: Path) -> None:
        """Nor the process: HDF5 would end it, were it told."""
        address = serve(save=tmp_path)
        made = [a for s in range(3) for a in flagged(KSPACE, slice=s)]
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (25_000, before[1]))
        try:
            answers = [talk(address, ConfigFile("default"), HeaderText(XML), *made) for _ in range(2)]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        for answer in answers:
            assert len(images(answer)) == 3
            assert texts(answer).count("cannot be kept: [Errno 27]") == 1
        cut = set(tmp_path.glob("*.h5"))
        assert len(images(talk(address, ConfigFile("default"), HeaderText(XML), *made))) == 3
        (whole,) = set(tmp_path.glob("*.h5")) - cut
        with ismrmrd.Dataset(str(whole), "dataset", mode="r") as dataset:
            assert dataset.number_of_acquisitions() == 3 * len(SLICE)

    def test_a_disk_that_is_nearly_full_keeps_what_it_can(
        self, serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        room = iter([2**30] * 2)  # to open the file, and for the first slice
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=next(room, 10**6)))
        made = [a for s in range(2) for a in flagged(KSPACE, slice=s)]
        answer = talk(serve(save=tmp_path), ConfigFile("default"), HeaderText(XML), *made)
        assert len(images(answer)) == 2
        assert texts(answer).count("No space left on device") == 1
        (saved,) = tmp_path.glob("*.h5")
        with ismrmrd.Dataset(str(saved), "dataset", mode="r") as dataset:
            assert dataset.number_of_acquisitions() == len(SLICE)

    def test_patience_outlives_a_bad_image(self, serve, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mri_qpan.recon.serving.conversation.GIVE_UP", 0.2)
        with socket.create_connection(serve(), timeout=30) as connection:
            writer, reader = MrdWriter(connection), iter(MrdReader(connection))
            for message in (ConfigFile("default"), HeaderText(XML)):
                writer.serialize(message)
            writer.serialize(line(KSPACE[:, 0], ky=500, flags=[ismrmrd.ACQ_LAST_IN_SLICE]))
            assert "error:" in next(reader)
            time.sleep(0.6)
            for acquisition in flagged(KSPACE, slice=1):
                writer.serialize(acquisition)
            writer.close()
            assert len(images(list(reader))) == 1

    def test_a_matrix_that_one_line_would_fill_memory_with_is_refused(self, serve) -> None:
        header = HeaderText(header_xml((60000, 60000, 1)))
        answer = talk(serve(), ConfigFile("default"), header, *lines(KSPACE))
        assert not images(answer)
        assert "a matrix of 60000 x 60000 x 1 in 1 channels takes 28800000000 bytes" in texts(answer)

    def test_draining_needs_no_memory(self, serve, tmp_path: Path) -> None:
        answer = talk(serve(memory=1000), ConfigFile("null"), HeaderText(XML), *lines(KSPACE))
        assert "error" not in texts(answer)
        assert "started without --save" in texts(answer)

    @pytest.mark.parametrize("header", [[], [HeaderText(XML)]])
    def test_images_that_nobody_keeps_are_told_of_once(self, serve, header: list[Any]) -> None:
        image = ismrmrd.Image.from_array(np.ones((1, 1, 4, 5), np.float32))
        rest = SLICE if header else []
        answer = talk(serve(), ConfigFile("savedataonly"), *header, image, image, *rest, image)
        assert answer == ["nothing is kept: this server was started without --save"]
        answer = talk(serve(), ConfigFile("savedataonly"), HeaderText(XML), *SLICE, image)
        assert answer == ["nothing is kept: this server was started without --save"]

    def test_images_without_a_header_are_kept(self, serve, tmp_path: Path) -> None:
        image = ismrmrd.Image.from_array(np.ones((1, 1, 4, 5), np.float32))
        assert talk(serve(save=tmp_path), ConfigFile("savedataonly"), image, image) == []
        (saved,) = tmp_path.glob("*.h5")
        with ismrmrd.Dataset(str(saved), "dataset", mode="r") as dataset:
            assert dataset.number_of_images("image_0") == 2

    def test_images_of_two_sizes_cost_no_raw_data(self, serve, tmp_path: Path) -> None:
        sent = [ismrmrd.Image.from_array(np.ones((1, 1, n, n), np.float32)) for n in (4, 5)]
        answer = talk(serve(save=tmp_path), ConfigFile("savedataonly"), HeaderText(XML), *sent, *SLICE)
        assert answer == []
        (saved,) = tmp_path.glob("*.h5")
        with ismrmrd.Dataset(str(saved), "dataset", mode="r") as dataset:
            assert dataset.number_of_acquisitions() == len(SLICE)
            assert dataset.number_of_images("image_0_2") == 1

    @pytest.mark.parametrize("header", [[], [HeaderText(XML), *SLICE]])
    def test_a_keeping_that_fails_is_told_as_it_is(self, serve, tmp_path: Path, header: list[Any]) -> None:
        (tmp_path / "file").write_text("")
        image = ismrmrd.Image.from_array(np.ones((1, 1, 4, 5), np.float32))
        address = serve(save=tmp_path / "file")
        (words,) = talk(address, ConfigFile("savedataonly"), *header, image, image)
        assert "warning: what you send cannot be kept: [Errno 17]" in words

    def test_a_config_that_fails_is_told(self, serve) -> None:
        def missing() -> Job:
            raise ModelError("site.safetensors: no such model file")

        address = serve(jobs={"default": missing})
        answer = talk(address, ConfigFile("default"), HeaderText(XML), *SLICE)
        assert "error: site.safetensors: no such model file" in texts(answer)

    def test_a_folder_that_cannot_be_written_costs_no_image(self, serve, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        address = serve(save=tmp_path / "file")
        answer = talk(address, ConfigFile("default"), HeaderText(XML), *SLICE)
        assert len(images(answer)) == 1
        assert "cannot be kept" in texts(answer)

    def test_damaged_images(self, serve) -> None:
        image = ismrmrd.Image.from_array(np.ones((1, 1, 4, 5), np.float32))
        damaged = struct.pack("<H", 1022) + bytes(image.getHead()) + struct.pack("<Q", 8) + b"<not xml"
        damaged += image.data.tobytes()
        answer = talk(serve(), ConfigFile("default"), HeaderText(XML), damaged, close=False)
        assert "error: not MRD, or damaged" in texts(answer)
