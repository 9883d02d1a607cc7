"""What python-ismrmrd-server's client puts on the wire, in its order and small sends; what its server says.

Their code is no part of these tests. Gadgetron's client itself takes part where it is installed.
"""

import json
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
import pytest
from mrd_files import write
from mrd_sessions import KSPACE, SLICE, XML, assert_is, broken, flagged, images, talk, texts, zero_filled

from mri_qpan.errors import ReconError
from mri_qpan.recon.serving.client import send
from mri_qpan.recon.serving.mrd_stream import HeaderText, MrdReader

CONFIG_FILE, CONFIG_TEXT, HEADER, CLOSE, TEXT, ACQUISITION, IMAGE, WAVEFORM = 1, 2, 3, 4, 5, 1008, 1022, 1026


class Client:
    """Speaks as theirs does: every part of a message by `socket.send`, texts ended by a NUL."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def text(self, kind: int, words: str) -> None:
        encoded = f"{words}\0".encode()
        for part in (struct.pack("<H", kind), struct.pack("<I", len(encoded)), encoded):
            self._socket.send(part)

    def config_file(self, name: bytes) -> None:
        self._socket.send(struct.pack("<H", CONFIG_FILE))
        self._socket.send(struct.pack("<1024s", name))

    def item(self, kind: int, item: Any) -> None:
        self._socket.send(struct.pack("<H", kind))
        item.serialize_into(self._socket.send)

    def close(self) -> None:
        self._socket.send(struct.pack("<H", CLOSE))


@contextmanager
def client(address: tuple[str, int]) -> Iterator[tuple[Client, list[Any]]]:
    """A client, and what it hears: its listener runs beside, as theirs is a process of its own."""
    answer: list[Any] = []
    with socket.create_connection(address, timeout=30) as connection:
        listener = threading.Thread(target=lambda: answer.extend(MrdReader(connection)))
        listener.start()
        speaker = Client(connection)
        try:
            yield speaker, answer
            speaker.close()
        finally:
            listener.join(30)


def told(
    address: tuple[str, int], config: bytes | str, *after: str, lines: Sequence[Any] = SLICE
) -> list[Any]:
    """Config (bytes: a file's name; str: its text), header, texts, lines; returns the answer."""
    with client(address) as (speaker, answer):
        if isinstance(config, bytes):
            speaker.config_file(config)
        else:
            speaker.text(CONFIG_TEXT, config)
        speaker.text(HEADER, XML)
        for words in after:
            speaker.text(TEXT, words)
        for acquisition in lines:
            speaker.item(ACQUISITION, acquisition)
    return answer


OPENRECON = {"options": "", "sendOriginal": "False"}
BROKEN = {"zero": zero_filled, "default": broken}
"""Only who asks for `zero` gets an image."""


class TestItsClient:
    def test_its_own_default(self, serve) -> None:
        """`client.py FILE` asks for a config of its own server and sends its parameters, all strings."""
        answer = told(serve(), b"invertcontrast", json.dumps({"version": "1.1.0", "parameters": OPENRECON}))
        (image,) = images(answer)
        assert_is(image, KSPACE)
        assert texts(answer).count("taken instead") == 1
        assert "error" not in texts(answer)
        assert "no effect" not in texts(answer)

    @pytest.mark.parametrize("as_config", [True, False])
    def test_parameters_that_have_no_effect_are_told(
        self, serve, as_config: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        asked = OPENRECON | {"sendOriginal": "True", "config": "zero", "threshold\n": 0.3}
        words = json.dumps({"parameters": asked})
        answer = told(serve(jobs=BROKEN), words) if as_config else told(serve(jobs=BROKEN), b"zero", words)
        assert len(images(answer)) == 1
        warning = "parameters that have no effect here: sendOriginal, threshold"
        assert texts(answer) == f"warning: {warning}"
        assert [r.getMessage().partition(": ")[2] for r in caplog.records if r.levelname == "WARNING"] == [
            warning
        ]

    @pytest.mark.parametrize(
        "parameters",
        [
            {"config": "zero"},
            {"config": "default", "customconfig": "zero"},
            {"config": "zero", "customconfig": ""},
        ],
    )
    def test_the_config_in_the_parameters(self, serve, parameters: dict[str, str]) -> None:
        """`configAdditional` of a file; what the operator typed goes before what was chosen."""
        words = json.dumps({"parameters": OPENRECON | parameters})
        assert len(images(told(serve(jobs=BROKEN), b"invertcontrast", words))) == 1

    @pytest.mark.parametrize(
        "words", ['{"parameters": 3}', '{"parameters": [1]}', "[]", "null", '{"parameters": {}}']
    )
    def test_parameters_that_are_none_change_nothing(self, serve, words: str) -> None:
        assert len(images(told(serve(jobs=BROKEN), b"zero", words))) == 1

    @pytest.mark.parametrize(
        "config",
        ["zero\n", " zero.xml ", '{"parameters": {"config": "zero"}}', "zero\0rest", b"zero\0\xff\xfe"],
    )
    def test_configs_as_texts_and_in_a_used_buffer(self, serve, config: bytes | str) -> None:
        """`-C FILE` sends a file's text, which ends in a newline."""
        answer = told(serve(jobs=BROKEN), config)
        assert len(images(answer)) == 1
        assert "taken instead" not in texts(answer)

    def test_a_name_with_a_dot(self, serve) -> None:
        jobs = {"default": broken, "knee.v2": zero_filled}
        for config in (b"knee.v2", b"knee.v2.toml"):
            assert len(images(told(serve(jobs=jobs), config))) == 1

    def test_waveforms_come_before_the_readouts(self, serve, tmp_path: Path) -> None:
        with client(serve(save=tmp_path)) as (speaker, answer):
            speaker.config_file(b"default")
            speaker.text(HEADER, XML)
            for _ in range(3):
                speaker.item(WAVEFORM, ismrmrd.Waveform.from_array(np.zeros((2, 10), np.uint32)))
            for acquisition in SLICE:
                speaker.item(ACQUISITION, acquisition)
        assert_is(images(answer)[0], KSPACE)
        assert "3 waveforms were not used" in texts(answer)
        (saved,) = tmp_path.glob("*.h5")
        with h5py.File(saved) as file:
            assert len(file["dataset/waveforms"]) == 3

    def test_images_need_no_valid_header(self, serve) -> None:
        """Of a file without a header it sends these words."""
        sent = ismrmrd.Image.from_array(np.arange(20, dtype=np.float32).reshape(1, 1, 4, 5))
        with client(serve()) as (speaker, answer):
            speaker.config_file(b"default")
            speaker.text(HEADER, "Dummy XML header")
            speaker.item(IMAGE, sent)
        (image,) = answer
        np.testing.assert_array_equal(image.data, sent.data)

    def test_readouts_do(self, serve) -> None:
        with client(serve()) as (speaker, answer):
            speaker.config_file(b"default")
            speaker.text(HEADER, "Dummy XML header")
            speaker.item(ACQUISITION, SLICE[0])
        assert "error:" in texts(answer)
        assert "not valid XML" in texts(answer)

    @pytest.mark.parametrize("config", [b"null", b"savedataonly"])
    def test_saving_alone_keeps_images_too(self, serve, tmp_path: Path, config: bytes) -> None:
        sent = ismrmrd.Image.from_array(np.arange(20, dtype=np.float32).reshape(1, 1, 4, 5))
        with client(serve(save=tmp_path)) as (speaker, answer):
            speaker.config_file(config)
            speaker.text(HEADER, "Dummy XML header")
            speaker.item(ACQUISITION, SLICE[0])
            speaker.item(IMAGE, sent)
        assert answer == []
        (saved,) = tmp_path.glob("*.h5")
        with ismrmrd.Dataset(str(saved), "dataset", mode="r") as dataset:
            np.testing.assert_array_equal(dataset.read_image("image_0", 0).data, sent.data)
            assert dataset.number_of_acquisitions() == 1


GADGETRON = shutil.which("gadgetron_ismrmrd_client")


@pytest.mark.skipif(GADGETRON is None, reason="Gadgetron's client is not installed (no Debian package)")
class TestGadgetronsClient:
    def run(self, address: tuple[str, int], folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
        raw = write(folder / "scan.h5", XML, [*SLICE, *flagged(2 * KSPACE, slice=1)])
        host, port = address
        command = [str(GADGETRON), "-a", host, "-p", str(port), "-f", str(raw), "-o", str(folder / "out.h5")]
        return subprocess.run(
            [*command, "-G", "images", *options], cwd=folder, capture_output=True, text=True, timeout=60
        )

    @pytest.mark.parametrize("options", [(), ("-c", "zero.xml"), ("-C", "local.xml")])
    def test_its_images(self, serve, tmp_path: Path, options: tuple[str, ...]) -> None:
        (tmp_path / "local.xml").write_text("<gadgetronStreamConfiguration/>")
        jobs = {"default": zero_filled, "zero": zero_filled}
        done = self.run(serve(jobs=jobs), tmp_path, *options)
        assert done.returncode == 0, done.stderr
        assert ("taken instead" in done.stdout) == ("-C" in options)
        with h5py.File(tmp_path / "out.h5") as file:
            (series,) = file["images"].values()
            assert list(series["header"]["slice"]) == [0, 1]
        with ismrmrd.Dataset(str(tmp_path / "out.h5"), "images", mode="r") as dataset:
            (name,) = dataset.list()
            for number in range(2):
                assert_is(dataset.read_image(name, number), KSPACE)

    def test_what_it_compresses_is_refused(self, serve, tmp_path: Path) -> None:
        assert (
            "error: compressed acquisitions cannot be read" in self.run(serve(), tmp_path, "-P", "16").stdout
        )

    def test_its_queries_are_refused_and_the_next_is_served(self, serve, tmp_path: Path) -> None:
        address = serve()
        assert "error: not MRD" in self.run(address, tmp_path, "-Q", "gadgetron::info").stdout
        assert len(images(talk(address, HeaderText(XML), *SLICE))) == 1


def serving(*parts: bytes) -> tuple[tuple[str, int], threading.Thread]:
    """A server that takes one client's messages to their CLOSE, says the parts and leaves."""
    listener = socket.create_server(("127.0.0.1", 0))

    def attend() -> None:
        connection, _ = listener.accept()
        with listener, connection:
            for _ in MrdReader(connection):
                pass
            for part in parts:
                connection.send(part)

    thread = threading.Thread(target=attend)
    thread.start()
    return listener.getsockname()[:2], thread


def said(words: str) -> bytes:
    encoded = f"{words}\0".encode()
    return struct.pack("<HI", TEXT, len(encoded)) + encoded


def an_image() -> bytes:
    parts = [struct.pack("<H", IMAGE)]
    ismrmrd.Image.from_array(np.ones((1, 1, 4, 5), np.int16)).serialize_into(parts.append)
    return b"".join(bytes(part) for part in parts)


END = struct.pack("<H", CLOSE)
TRACEBACK = 'ERROR    Traceback (most recent call last):\n  File "x.py", line 3\nValueError: all the input\n'


class TestItsServer:
    @pytest.fixture
    def raw(self, tmp_path: Path) -> Path:
        return write(tmp_path / "scan.h5", XML, SLICE)

    def test_an_image_and_words(self, raw: Path, tmp_path: Path) -> None:
        address, thread = serving(said("INFO     Total processing time: 1 ms"), an_image(), END)
        assert send(raw, address, "simplefft", tmp_path / "out.h5") == 1
        thread.join()

    @pytest.mark.parametrize(
        ("parts", "words"),
        [
            ((an_image(), said(TRACEBACK), END), "ValueError: all the input"),
            ((an_image(), said("CRITICAL no memory"), END), "CRITICAL no memory"),
            ((an_image(),), "without CLOSE"),
            ((an_image()[:-3],), "in the middle"),
            ((said("INFO     nothing to do"), END), "without an image"),
            ((b"\xff" * 20,), "not MRD"),
        ],
    )
    def test_its_failures_are_ours(
        self, raw: Path, tmp_path: Path, parts: tuple[bytes, ...], words: str
    ) -> None:
        """Even where images came first, which are saved: some are missing."""
        address, thread = serving(*parts)
        with pytest.raises(ReconError, match=words):
            send(raw, address, "simplefft", tmp_path / "out.h5")
        thread.join()
        saved = ["out.h5"] if parts[0] == an_image() else []
        assert sorted(path.name for path in tmp_path.iterdir()) == [*saved, "scan.h5"]
