"""A client that does not read, and images that leave while the next ones arrive."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice

import ismrmrd
import pytest
from mrd_files import header_xml, lines, random_kspace
from mrd_sessions import NX, NY, XML, assert_is, computing, flagged, zero_filled

from mri_qpan.recon.serving.conversation import WAITING_IMAGES, Conversation, Counts, Settings
from mri_qpan.recon.serving.mrd_stream import ConfigFile, HeaderText, MrdReader, MrdWriter

SMALL = 4096  # bytes of the sockets' buffers: an image does not fit


class Session:
    """One session whose both ends hold next to nothing that was not read."""

    def __init__(self, patience: float) -> None:
        self.ours, theirs = socket.socketpair()
        for end in (self.ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        self.ours.settimeout(30)
        theirs.settimeout(patience)
        self.counts, self._theirs, self._held = Counts(), theirs, ExitStack()
        self.turns = self._held.enter_context(computing())
        settings = Settings(jobs={}, default="default", patience=patience)
        talk = Conversation(
            lambda config: (zero_filled(), None), settings, theirs, "peer", self.counts, self.turns
        )
        self.thread = threading.Thread(target=talk.hold)
        self.thread.start()
        self.writer = MrdWriter(self.ours)
        self.writer.serialize(ConfigFile("default"))
        self.writer.serialize(HeaderText(XML))

    def push(self, slices: int) -> int:
        """Send slices without reading until the server takes no more; return how many it took whole."""
        self.ours.settimeout(1.0)
        try:
            for number in range(slices):
                for acquisition in flagged(random_kspace(1, NY, NX, seed=number), slice=number):
                    self.writer.serialize(acquisition)
        except TimeoutError:
            return number
        finally:
            self.ours.settimeout(30)
        return slices

    def end(self) -> None:
        self.ours.close()
        self.thread.join(60)
        self._theirs.close()
        self._held.close()
        assert not self.thread.is_alive()


@pytest.fixture
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    made = Session(request.param)
    yield made
    made.end()


@pytest.mark.parametrize("session", [60.0], indirect=True)
def test_who_does_not_read_is_not_read_from(session: Session) -> None:
    """And holds a few images, but no place to compute in."""
    taken = session.push(50)
    assert taken < WAITING_IMAGES + 6
    assert session.counts.acquisitions < (WAITING_IMAGES + 6) * NY
    assert session.turns.image(lambda: "computed") == "computed"
    answer = list(islice(MrdReader(session.ours), taken))  # what was taken leaves, in order, once it is read
    assert [image.slice for image in answer] == list(range(taken))
    for image in answer:
        assert_is(image, random_kspace(1, NY, NX, seed=image.slice))


@pytest.mark.parametrize("session", [1.5], indirect=True)
def test_patience_with_it_ends(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mri_qpan.recon.serving.conversation.GIVE_UP", 0.3)
    session.push(50)
    session.thread.join(30)
    assert not session.thread.is_alive()


def test_a_repetition_leaves_while_the_next_arrives(serve) -> None:
    limits = "".join(
        f"<{name}><minimum>0</minimum><maximum>{most}</maximum><center>{center}</center></{name}>"
        for name, most, center in (("kspace_encoding_step_1", NY - 1, NY // 2), ("repetition", 2, 0))
    )
    with socket.create_connection(serve(), timeout=30) as connection:
        writer, reader = MrdWriter(connection), iter(MrdReader(connection))
        writer.serialize(ConfigFile("default"))
        writer.serialize(HeaderText(header_xml((NX, NY, 1), limits=limits)))
        for number in range(3):
            parts = [random_kspace(1, NY, NX, seed=10 * number + s) for s in range(2)]
            made = [lines(k, slice=s, repetition=number) for s, k in enumerate(parts)]
            made[-1][-1].set_flag(ismrmrd.ACQ_LAST_IN_REPETITION)
            for acquisition in [a for part in made for a in part]:
                writer.serialize(acquisition)
            for s, kspace in enumerate(parts):
                image = next(reader)
                assert (image.repetition, image.slice) == (number, s)
                assert_is(image, kspace)
        writer.close()
        assert list(reader) == []
