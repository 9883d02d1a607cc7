"""Thousands of damaged streams against the reader, hundreds against whole sessions, without a network."""

import threading
from typing import Any

import ismrmrd
import numpy as np
import pytest
from mrd_sessions import KSPACE, XML, computing, flagged, zero_filled

from mri_qpan.errors import InputError
from mri_qpan.recon.serving import conversation
from mri_qpan.recon.serving.conversation import Conversation, Counts, Settings
from mri_qpan.recon.serving.mrd_stream import ConfigFile, HeaderText, MrdReader
from mri_qpan.recon.soak import mutated, session_bytes

MIDDLE = flagged(KSPACE[:, :6])
for _line in MIDDLE:
    _line.idx.kspace_encode_step_1 += 10
STREAM = session_bytes(XML, MIDDLE)


class Wire:
    """A connection whose other end has said everything and left."""

    def __init__(self, incoming: bytes) -> None:
        self._incoming, self.place, self.sent = incoming, 0, bytearray()

    def recv(self, count: int) -> bytes:
        part = self._incoming[self.place : self.place + count]
        self.place += len(part)
        return part

    def send(self, data: memoryview) -> int:
        self.sent += data
        return len(data)

    def settimeout(self, seconds: float) -> None: ...

    def shutdown(self, how: int) -> None: ...


def heard(data: bytes) -> list[Any]:
    connection: Any = Wire(data)
    return list(MrdReader(connection))


def hold(data: bytes) -> tuple[list[Any], Counts]:
    """One session; returns what the server sent."""
    wire: Any = Wire(data)
    counts = Counts()
    settings = Settings(jobs={}, default="default", memory=10**6)
    with computing() as turns:
        Conversation(lambda config: (zero_filled(), None), settings, wire, "peer", counts, turns).hold()
    return heard(bytes(wire.sent)), counts


def test_the_stream_itself_is_whole() -> None:
    messages = heard(STREAM)
    assert [type(message) for message in messages[:2]] == [ConfigFile, HeaderText]
    assert len(messages) == 2 + 6
    answer, counts = hold(STREAM)
    assert [type(message) for message in answer] == [ismrmrd.Image]
    assert (counts.acquisitions, counts.images, counts.failures) == (6, 1, 0)


def test_three_thousand_damaged_streams_are_read_or_refused() -> None:
    rng, refused = np.random.default_rng(11), 0
    for _ in range(3000):
        try:
            heard(mutated(STREAM, rng))
        except InputError:
            refused += 1
    assert 1000 < refused < 3000


@pytest.mark.parametrize("seed", range(3))
def test_every_damaged_session_ends_in_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CLOSE, no thread left, and the reason in a text where it failed."""
    monkeypatch.setattr(conversation, "GIVE_UP", 0.1)
    rng = np.random.default_rng(100 + seed)
    failures = 0
    for _ in range(100):
        answer, counts = hold(mutated(STREAM, rng))  # which ends in CLOSE, or `heard` would raise
        errors = [m for m in answer if isinstance(m, str) and m.startswith("error:")]
        assert len(errors) == counts.failures
        assert sum(isinstance(message, ismrmrd.Image) for message in answer) >= counts.images
        failures += bool(errors)
        assert "images for peer" not in {thread.name for thread in threading.enumerate()}
    assert failures > 20
