"""One client's session with the MRD server: its messages in, images and texts out."""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ismrmrd

from mri_qpan.errors import InputError, MriQpanError
from mri_qpan.recon.job import Job
from mri_qpan.recon.kspace import Index
from mri_qpan.recon.metrics import Meter
from mri_qpan.recon.readers.mrd_header import parse_header
from mri_qpan.recon.serving.mrd_stream import ConfigFile, ConfigText, HeaderText, MrdReader, MrdWriter
from mri_qpan.recon.serving.painter import Painter
from mri_qpan.recon.serving.parameters import config_in, without_effect
from mri_qpan.recon.serving.raw_file import Kept
from mri_qpan.recon.serving.session import Lines, Session
from mri_qpan.recon.serving.turns import POLL, Turns

DRAINING = ("null", "savedataonly")
"""Configs that take everything and make nothing."""

WAITING_IMAGES = 2
"""Complete images a session may hold before it stops reading: the peer then waits, not the memory."""

GIVE_UP = 30.0  # seconds that a peer may take to read what it is sent after an error

COMPRESSED = sum(1 << (flag - 1) for flag in range(ismrmrd.ACQ_COMPRESSION1, ismrmrd.ACQ_COMPRESSION4 + 1))
"""Flags of samples that are not as MRD has them."""

LONGEST_WORDS = 200  # characters of a peer's own words in a message

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How to serve.

    Attributes
    ----------
    host, port
        Where to listen; port 0 takes a free one.
    jobs
        Reconstructions by config name, each made when first asked for.
    default
        Name of the one for unknown configs.
    save
        Folder for what was received, an ISMRMRD file a session; None saves nothing.
    patience
        Seconds that a client may be silent.
    clients
        Sessions at once; more wait to be accepted.
    memory
        Bytes of samples that a session may hold without a complete image.
    workers
        Images to reconstruct at once, over all sessions.
    meter
        What counts sessions, images and errors.
    """

    jobs: dict[str, Callable[[], Job]]
    default: str
    host: str = "127.0.0.1"
    port: int = 9002
    save: Path | None = None
    patience: float = 120.0
    clients: int = 16
    memory: int = 4 * 2**30
    workers: int = 1
    meter: Meter = field(default_factory=Meter)


@dataclass
class Counts:
    """What a session came to."""

    acquisitions: int = 0
    images: int = 0
    failures: int = 0
    waveforms: int = 0
    returned: int = 0  # images that came as such
    seconds: list[float] = field(default_factory=list)


class Conversation:
    """One client's session.

    Parameters
    ----------
    job
        Returns the reconstruction of a config, and what to say where it is not the one asked for.
    settings, turns
        The server's.
    connection, peer
        The client, and what messages call it.
    counts
        Where to count.
    """

    def __init__(
        self,
        job: Callable[[str], tuple[Job, str | None]],
        settings: Settings,
        connection: socket.socket,
        peer: str,
        counts: Counts,
        turns: Turns,
    ) -> None:
        self._job, self._settings, self._connection, self._peer = job, settings, connection, peer
        self._counts, self._turns = counts, turns
        self._writer = MrdWriter(connection)
        self._writing, self._counting = threading.Lock(), threading.Lock()
        self._complete: queue.Queue[tuple[float, Lines] | None] = queue.Queue(WAITING_IMAGES)
        self._ahead: dict[Index, Lines] = {}  # calibrated, and not complete yet
        self._owed = 0  # images that are complete and not sent
        self._gone = threading.Event()
        self._warned = False  # that nothing is kept
        self._kept = Kept(settings.save, peer, self._say)
        self._config: str | None = None
        self._header: str | None = None
        self._session: Session | None = None
        self._worker: threading.Thread | None = None  # makes images of the session's lines

    def hold(self) -> None:
        """Talk until CLOSE, or until nothing more can be said."""
        try:
            # A peer that waits for an image says nothing meanwhile.
            for message in MrdReader(self._connection, lambda: self._owed > 0 and not self._gone.is_set()):
                self._hear(message)
            self._conclude()
        except (MriQpanError, OSError) as error:
            self._end(error)
        except Exception as error:
            log.exception("%s", self._peer)
            self._end(error)
        finally:
            if self._worker is not None:
                self._complete.put(None)
                self._worker.join()
            self._kept.end()
            self._close()

    def _hear(self, message: Any) -> None:
        """Take one message.

        Raises
        ------
        InputError
            If it cannot stand where it stands, or cannot be read.
        """
        if isinstance(message, ConfigFile | ConfigText):
            if self._config is not None:
                raise InputError("a second config")
            self._config = self._chosen(message) or str(message)
        elif isinstance(message, HeaderText):
            if self._header is not None:
                raise InputError("a second header")
            self._header = str(message)
            self._kept.begin(self._header)
        elif isinstance(message, ismrmrd.Acquisition):
            self._collect(message)
        elif isinstance(message, ismrmrd.Waveform):
            self._counts.waveforms += 1
            self._kept.add(message)
        elif isinstance(message, ismrmrd.Image):
            self._return(message, self._config)
        elif isinstance(message, str):
            log.info("%s: says %s", self._peer, _shown(message))
            chosen = self._chosen(message)
            if chosen is not None and self._counts.acquisitions:
                self._say(f"warning: the config {_shown(chosen)} came after the first readout: not used")
            self._config = chosen or self._config

    def _collect(self, acquisition: Any) -> None:
        """Take one acquisition; the first one starts what reconstructs."""
        if self._header is None:
            raise InputError("an acquisition before the header")
        if acquisition.flags & COMPRESSED:
            raise InputError("compressed acquisitions cannot be read: send them plain (no -P of Gadgetron's)")
        if not self._counts.acquisitions:
            self._worker = self._start(self._config or self._settings.default, self._header)
            if self._worker is not None:
                self._session = Session(self._header, self._peer, self._settings.memory)
        self._counts.acquisitions += 1
        try:
            if self._session is not None:  # first: an image does not wait for the disk
                self._take(acquisition, self._session)
        finally:
            self._kept.add(acquisition)

    def _conclude(self) -> None:
        """Make what CLOSE left, and tell what was not used."""
        if self._header is not None and not (self._counts.acquisitions or self._counts.returned):
            parse_header(self._header, self._peer)  # which may be why nothing came
        if self._session is None:
            return
        for lines in self._session.rest():
            self._pass_on(lines)
        if self._session.late:
            self._say(
                f"warning: {self._session.late} lines came after their image was complete: an image of "
                "their own where they were many, else left out"
            )
        if self._session.skipped:
            self._say(f"{self._session.skipped} acquisitions of navigators and the like were not used")
        if self._counts.waveforms:
            self._say(f"{self._counts.waveforms} waveforms were not used")

    def _chosen(self, text: str) -> str | None:
        """Return the config that a scanner's operator chose, which a text of JSON may carry.

        What else was set there is told to have no effect, lest the image be taken for what was asked for.
        """
        unused = without_effect(text)
        if unused:
            words = f"parameters that have no effect here: {_shown(', '.join(unused))}"
            log.warning("%s: %s", self._peer, words)
            self._say(f"warning: {words}")
        return config_in(text)

    def _return(self, image: Any, config: str | None) -> None:
        """Send what is an image already back as it came; it needs no valid header."""
        self._counts.returned += 1
        self._kept.add(image)
        if not _drains(config or ""):
            self._say(image)
        else:
            self._warn_unkept()

    def _take(self, acquisition: Any, session: Session) -> None:
        """Hand on what an acquisition completes: images, or the calibration region of one."""
        for lines in session.make_room(acquisition):
            self._pass_on(lines)
        for lines in session.add(acquisition):
            self._pass_on(lines)
        calibrated = session.calibrated()
        if calibrated is not None:
            self._ahead[calibrated.index] = calibrated

    def _pass_on(self, lines: Lines) -> None:
        self._ahead.pop(lines.index, None)
        self._settings.meter.waiting(1)
        with self._counting:
            self._owed += 1
        self._complete.put((time.monotonic(), lines))

    def _start(self, config: str, header: str) -> threading.Thread | None:
        """Start what reconstructs; None where nothing is to be made."""
        if _drains(config):
            self._warn_unkept()
            return None
        job, words = self._job(config)
        if words is not None:
            self._say(words)
        painter = Painter(job, header, self._peer)
        worker = threading.Thread(target=self._paint, args=(painter,), name=f"images for {self._peer}")
        worker.start()
        return worker

    def _warn_unkept(self) -> None:
        """Tell a peer for whom nothing is made, once, that nothing is kept; what goes wrong `Kept` tells."""
        if self._settings.save is None and not self._warned:
            self._warned = True
            self._say("nothing is kept: this server was started without --save")

    def _paint(self, painter: Painter) -> None:
        """Reconstruct what is complete and send it, until told to end."""
        while True:
            try:
                entry = self._complete.get(timeout=POLL)
            except queue.Empty:
                self._begin(painter)
                continue
            if entry is None:
                return
            self._finish(painter, entry[1], entry[0])
            with self._counting:
                self._owed -= 1
            self._settings.meter.waiting(-1)

    def _finish(self, painter: Painter, lines: Lines, since: float) -> None:
        """Reconstruct an image and send it."""
        if self._gone.is_set():
            return
        messages: list[Any] = []
        try:
            # Nothing is sent there: a peer that does not read would hold up every session.
            self._turns.image(lambda: messages.extend(painter.paint(lines, messages.append)))
        except MriQpanError as error:
            messages.append(self._failed(error))
        except BaseException as error:  # a library's panic too: the images after it are still due
            log.exception("%s: image %s", self._peer, lines.index)
            messages.append(self._failed(error))
        try:
            for message in messages:
                self._say(message)
                if not isinstance(message, str):
                    self._counts.images += 1
                    self._settings.meter.done(time.monotonic() - since)
        except OSError as error:
            self._gone.set()
            log.warning("%s: cannot be reached any more (%s)", self._peer, error)
        except BaseException:  # within a message, so that nothing can follow it
            self._gone.set()
            log.exception("%s: answer for image %s", self._peer, lines.index)
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        self._counts.seconds.append(time.monotonic() - since)

    def _begin(self, painter: Painter) -> None:
        """Make maps of an image that still arrives, unless something of this session is complete first."""
        try:
            _, lines = self._ahead.popitem()
        except KeyError:
            return
        try:
            self._turns.spare(
                lambda: painter.begin(lines), lambda: self._complete.empty() and not self._gone.is_set()
            )
        except BaseException:  # which the image itself will tell of
            log.debug("%s: maps of %s", self._peer, lines.index, exc_info=True)

    def _say(self, message: Any) -> None:
        with self._writing:
            self._writer.serialize(message)

    def _failed(self, error: BaseException) -> str:
        """Count and log a failure; return what the peer is told of it."""
        words = " ".join(str(error).split()) or type(error).__name__
        said = {"event": "failed", "fields": {"peer": self._peer, "reason": words}}
        log.warning("%s: %s", self._peer, words, extra=said)
        self._counts.failures += 1
        self._settings.meter.failed()
        return f"error: {words}"

    def _end(self, error: Exception) -> None:
        """Tell the peer why its session ends."""
        words = self._failed(error)
        try:
            self._connection.settimeout(GIVE_UP)
            self._say(words)
        except OSError:
            self._gone.set()

    def _close(self) -> None:
        """Send CLOSE and let the peer read to its end, or a reset could swallow what it has not read yet."""
        try:
            with self._writing:
                self._writer.close()
            self._connection.shutdown(socket.SHUT_WR)
            self._connection.settimeout(2.0)
            deadline = time.monotonic() + GIVE_UP
            while self._connection.recv(2**16) and time.monotonic() < deadline:
                pass
        except OSError:
            return


def _drains(config: str) -> bool:
    return Path(config.strip()).stem in DRAINING


def _shown(words: str) -> str:
    return " ".join(words.split())[:LONGEST_WORDS]
