"""The MRD server: sessions that go well, sessions that do not, and that one never harms another."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mrd_files import header_xml, limit_xml, line, lines, random_kspace, write

from mri_qpan.errors import InputError, ModelError, ReconError
from mri_qpan.fourier import ifft_numpy
from mri_qpan.methods import Method, get_method
from mri_qpan.recon import mrd_stream
from mri_qpan.recon.client import send
from mri_qpan.recon.job import Job
from mri_qpan.recon.mrd_stream import ConfigFile, ConfigText, HeaderText, MrdReader, MrdWriter
from mri_qpan.recon.readers import open_kspace
from mri_qpan.recon.server import Server, Settings
from mri_qpan.recon.session import Session

NY, NX = 24, 32
XML = header_xml((NX, NY, 1))
CPU = torch.device("cpu")


def zero_filled() -> Job:
    return Job(get_method("zero-filled"), CPU)


def broken() -> Job:
    def run(adjoint: Any, normal: Any) -> Any:
        raise RuntimeError("a bug")

    return Job(Method("broken", run), CPU)


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[str, int]]]:
    """Start servers: `serve(patience=…)` returns an address."""
    started: list[tuple[Server, threading.Thread]] = []

    def start(**options: Any) -> tuple[str, int]:
        jobs = {"default": zero_filled, "broken": broken}
        server = Server(Settings(**({"jobs": jobs, "default": "default", "port": 0} | options)))
        thread = threading.Thread(target=server.serve)
        thread.start()
        started.append((server, thread))
        return server.address

    yield start
    for server, thread in started:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def flagged(kspace: np.ndarray, flag: int = ismrmrd.ACQ_LAST_IN_SLICE, **counters: Any) -> list[Any]:
    """The lines of k-space (coil, y, x), the last one flagged."""
    made = lines(kspace, **counters)
    made[-1].set_flag(flag)
    return made


def talk(address: tuple[str, int], *messages: Any, close: bool = True) -> list[Any]:
    """Say all messages, then listen to the end."""
    with socket.create_connection(address, timeout=30) as connection:
        writer = MrdWriter(connection)
        for message in messages:
            if isinstance(message, bytes):
                connection.sendall(message)
            else:
                writer.serialize(message)
        if close:
            writer.close()
        return list(MrdReader(connection))


def images(answer: list[Any]) -> list[Any]:
    return [m for m in answer if isinstance(m, ismrmrd.Image)]


def texts(answer: list[Any]) -> str:
    return "\n".join(m for m in answer if isinstance(m, str))


def expected(kspace: np.ndarray) -> np.ndarray:
    return np.abs(ifft_numpy(kspace, (-2, -1)))[0]


def assert_is(image: Any, kspace: np.ndarray) -> None:
    wanted = expected(kspace)
    pixels = image.data[0, 0].astype(float)
    assert np.abs(pixels / pixels.max() - wanted / wanted.max()).max() < 2e-3


KSPACE = random_kspace(1, NY, NX, seed=1)


class TestGoodSessions:
    def test_one_slice(self, serve) -> None:
        answer = talk(serve(), ConfigFile("default.xml"), HeaderText(XML), *flagged(KSPACE))
        (image,) = images(answer)
        assert_is(image, KSPACE)
        assert image.data.dtype == np.int16
        assert (image.image_index, image.image_series_index) == (1, 1)
        assert tuple(image.field_of_view) == (NX, NY, 1)
        assert image.meta["Keep_image_geometry"] == "1"
        assert "MRD stream from 127.0.0.1" in image.meta["Provenance"]
        assert "error" not in texts(answer)

    def test_an_image_leaves_before_the_next_one_is_sent(self, serve) -> None:
        with socket.create_connection(serve(), timeout=30) as connection:
            writer, reader = MrdWriter(connection), iter(MrdReader(connection))
            writer.serialize(ConfigFile("default"))
            writer.serialize(HeaderText(XML))
            for number in range(3):
                kspace = random_kspace(1, NY, NX, seed=number)
                for acquisition in flagged(kspace, slice=number):
                    writer.serialize(acquisition)
                image = next(reader)
                assert_is(image, kspace)
                assert (image.slice, image.image_index) == (number, number + 1)
            writer.close()
            assert list(reader) == []

    def test_one_scale_for_the_series(self, serve) -> None:
        made = [a for s in range(2) for a in flagged((s + 1) * KSPACE, slice=s)]
        first, second = images(talk(serve(), ConfigFile("default"), HeaderText(XML), *made))
        np.testing.assert_allclose(second.data, 2 * first.data.astype(int), atol=2)

    @pytest.mark.parametrize("flag", [ismrmrd.ACQ_LAST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_MEASUREMENT, None])
    def test_slices_that_end_together(self, serve, flag) -> None:
        made = [a for s in range(2) for a in lines((s + 1) * KSPACE, slice=s)]
        if flag is not None:
            made[-1].set_flag(flag)
        answer = images(talk(serve(), ConfigFile("default"), HeaderText(XML), *made))
        assert [image.slice for image in answer] == [0, 1]

    def test_averages_are_awaited(self, serve) -> None:
        xml = header_xml(
            (NX, NY, 1),
            limits=limit_xml("kspace_encoding_step_1", NY - 1, NY // 2) + limit_xml("average", 1, 0),
        )
        made = [*flagged(KSPACE, average=0), *flagged(3 * KSPACE, average=1)]
        (image,) = images(talk(serve(), ConfigFile("default"), HeaderText(xml), *made))
        assert_is(image, KSPACE)

    def test_noise_calibration_and_navigators(self, serve) -> None:
        kspace = random_kspace(4, NY, NX)
        noise = line(random_kspace(4, 256), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
        navigator = line(kspace[:, 0], flags=[ismrmrd.ACQ_IS_NAVIGATION_DATA])
        calib = lines(kspace, range(8, 16), flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION])
        sent = [noise, *calib, navigator, *flagged(kspace[:, ::2])]
        for number, acquisition in enumerate(sent[10:]):
            acquisition.idx.kspace_encode_step_1 = 2 * number
        wave = ismrmrd.Waveform.from_array(np.zeros((2, 10), np.uint32))
        answer = talk(serve(), ConfigFile("default"), HeaderText(XML), wave, *sent)
        assert len(images(answer)) == 1
        assert "1 waveforms were not used" in texts(answer)

    @pytest.mark.parametrize("config", [ConfigFile("of another site.xml"), ConfigText("<gadgetron/>\n")])
    def test_an_unknown_config_is_the_default_and_said(self, serve, config) -> None:
        answer = talk(serve(), config, HeaderText(XML), *flagged(KSPACE))
        assert len(images(answer)) == 1
        assert "'default' taken instead" in texts(answer)

    @pytest.mark.parametrize("config", ["null", "savedataonly"])
    def test_draining_configs_make_nothing_but_are_saved(self, serve, tmp_path: Path, config: str) -> None:
        answer = talk(serve(save=tmp_path), ConfigFile(config), HeaderText(XML), *flagged(KSPACE))
        assert answer == []
        (saved,) = tmp_path.glob("*.h5")
        (kspace,) = open_kspace(saved)
        np.testing.assert_array_equal(kspace.data[:, 0], KSPACE)

    def test_images_pass_through_and_texts_are_logged(self, serve) -> None:
        image = ismrmrd.Image.from_array(np.ones((1, 1, 4, 5), np.float32))
        answer = talk(serve(), ConfigFile("default"), HeaderText(XML), "hello\0", image)
        assert len(answer) == 1
        np.testing.assert_array_equal(answer[0].data, image.data)

    def test_clients_at_once_get_their_own_images(self, serve) -> None:
        address = serve(workers=2)
        found: dict[int, list[Any]] = {}

        def client(number: int) -> None:
            made = [
                a for s in range(3) for a in flagged(random_kspace(1, NY, NX, seed=100 * number + s), slice=s)
            ]
            found[number] = images(talk(address, ConfigFile("default"), HeaderText(XML), *made))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, answer in found.items():
            assert [image.slice for image in answer] == [0, 1, 2]
            for s, image in enumerate(answer):
                assert_is(image, random_kspace(1, NY, NX, seed=100 * number + s))


SLICE = flagged(KSPACE)
BAD: dict[str, tuple[list[Any], str]] = {
    "garbage": ([b"\xff" * 64], "not MRD"),
    "lengths that lie": ([struct.pack("<HI", 5, 2**31)], "beyond any of MRD's"),
    "a huge acquisition": (
        [ConfigFile("default"), HeaderText(XML), struct.pack("<H", 1008) + b"\xff" * 340],
        "error",
    ),
    "an acquisition before the header": ([ConfigFile("default"), SLICE[0]], "before the header"),
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
    def test_end_in_a_text_and_close_and_the_next_client_is_served(self, serve, name: str) -> None:
        address = serve()
        messages, words = BAD[name]
        answer = (
            talk(address, *messages, close=False)
            if name in ("garbage", "lengths that lie")
            else talk(address, *messages)
        )
        assert "error:" in texts(answer)
        assert words in texts(answer)
        assert len(images(talk(address, ConfigFile("default"), HeaderText(XML), *SLICE))) == 1

    def test_a_bad_image_does_not_end_its_session(self, serve) -> None:
        bad = [line(KSPACE[:, 0], ky=500, slice=0, flags=[ismrmrd.ACQ_LAST_IN_SLICE])]
        answer = talk(serve(), ConfigFile("default"), HeaderText(XML), *bad, *flagged(KSPACE, slice=1))
        assert "error:" in texts(answer)
        assert [image.slice for image in images(answer)] == [1]

    def test_silence(self, serve) -> None:
        answer = talk(serve(patience=0.3), ConfigFile("default"), HeaderText(XML), close=False)
        assert "error: timed out" in texts(answer)

    def test_leaving_in_the_middle(self, serve) -> None:
        address = serve()
        with socket.create_connection(address) as connection:
            writer = MrdWriter(connection)
            writer.serialize(ConfigFile("default"))
            writer.serialize(HeaderText(XML))
            connection.sendall(struct.pack("<H", 1008) + bytes(100))
        assert len(images(talk(address, ConfigFile("default"), HeaderText(XML), *SLICE))) == 1

    def test_more_samples_than_allowed(self, serve) -> None:
        answer = talk(serve(memory=1000), ConfigFile("default"), HeaderText(XML), *lines(KSPACE))
        assert "more than 1000 bytes" in texts(answer)

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
            time.sleep(0.5)
            server.stop()
            for acquisition in SLICE:
                writer.serialize(acquisition)
            writer.close()
            assert len(images(list(MrdReader(connection)))) == 1
        thread.join(30)
        assert not thread.is_alive()


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


BOTH = [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING]


class TestSorting:
    """What `Session` makes of flags and counters."""

    def test_lines_with_both_calibration_flags_are_their_images_own(self, serve) -> None:
        made = []
        for s in range(2):
            slice_ = lines((s + 1) * KSPACE, slice=s)
            for acquisition in slice_[8:16]:
                for flag in BOTH:
                    acquisition.set_flag(flag)
            slice_[-1].set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
            made += slice_
        found = images(talk(serve(), ConfigFile("default"), HeaderText(XML), *made))
        assert [image.slice for image in found] == [0, 1]
        for image in found:
            assert_is(image, KSPACE)

    def test_calibration_of_an_earlier_repetition_is_let_go(self) -> None:
        session = Session(XML, "peer", 10**6)
        for repetition in range(50):
            for acquisition in lines(KSPACE, range(8, 16), flags=BOTH[:1], repetition=repetition):
                session.add(acquisition)
            (done,) = session.add(flagged(KSPACE[:, :1], repetition=repetition)[0])
            assert len(done.acquisitions) == 9

    def test_a_few_stragglers_make_no_image(self, serve) -> None:
        answer = talk(serve(), ConfigFile("default"), HeaderText(XML), *SLICE, *flagged(KSPACE[:, :2]))
        assert len(images(answer)) == 1
        assert "2 lines came after" in texts(answer)

    def test_averages_written_as_decimals(self, serve) -> None:
        limits = limit_xml("kspace_encoding_step_1", NY - 1, NY // 2) + limit_xml("average", 1, 0)
        xml = header_xml((NX, NY, 1), limits=limits.replace("<maximum>1<", "<maximum>1.0<"))
        made = [*flagged(KSPACE, average=0), *flagged(KSPACE, average=1)]
        assert len(images(talk(serve(), ConfigFile("default"), HeaderText(xml), *made))) == 1

    def test_brighter_images_than_the_scale_holds_are_told_of(self, serve) -> None:
        made = [*flagged(KSPACE, slice=0), *flagged(50 * KSPACE, slice=1)]
        answer = talk(serve(), ConfigFile("default"), HeaderText(XML), *made)
        assert len(images(answer)) == 2
        assert "too bright for the scale" in texts(answer)


class TestRobustness:
    def test_patience_outlives_a_bad_image(self, serve, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mri_qpan.recon.server.GIVE_UP", 0.2)
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

    def test_draining_needs_no_memory(self, serve, tmp_path: Path) -> None:
        answer = talk(serve(memory=1000), ConfigFile("null"), HeaderText(XML), *lines(KSPACE))
        assert "error" not in texts(answer)
        assert "started without --save" in texts(answer)

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


class TestSend:
    @pytest.fixture
    def raw(self, tmp_path: Path) -> Path:
        noise = line(random_kspace(1, 64), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
        made = [noise, *flagged(KSPACE, slice=0), *flagged(2 * KSPACE, slice=1)]
        return write(tmp_path / "scan.h5", XML, made)

    def test_images_are_saved(self, serve, raw: Path, tmp_path: Path) -> None:
        assert send(raw, serve(), "default", tmp_path / "out.h5") == 2
        with ismrmrd.Dataset(str(tmp_path / "out.h5"), "dataset", mode="r") as dataset:
            found = [dataset.read_image("image_1", i) for i in range(dataset.number_of_images("image_1"))]
            assert "ismrmrdHeader" in dataset.read_xml_header().decode()
        assert [image.slice for image in found] == [0, 1]
        assert_is(found[1], KSPACE)

    @pytest.mark.parametrize("config", ["broken", "null"])
    def test_failures_leave_nothing(self, serve, raw: Path, tmp_path: Path, config: str) -> None:
        with pytest.raises(ReconError):
            send(raw, serve(), config, tmp_path / "out.h5")
        assert [path.name for path in tmp_path.iterdir()] == ["scan.h5"]

    def test_no_server(self, raw: Path, tmp_path: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = free.getsockname()
        with pytest.raises(ReconError, match="refused"):
            send(raw, address, "default", tmp_path / "out.h5")

    def test_a_server_that_leaves(self, raw: Path, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=lambda: listener.accept()[0].close())
            thread.start()
            with pytest.raises(ReconError):
                send(raw, listener.getsockname(), "default", tmp_path / "out.h5")
            thread.join()

    def test_a_real_head(self, serve, shared_data: Path, tmp_path: Path) -> None:
        raw = shared_data / "kspace/head_8ch_256_R3_acs24.h5"
        jobs = {"default": lambda: Job(get_method("qpan+-3bit"), CPU)}
        assert send(raw, serve(jobs=jobs), "default", tmp_path / "out.h5") == 1
        with h5py.File(tmp_path / "out.h5") as file:
            assert file["dataset/image_1/data"].shape == (1, 1, 1, 256, 256)
