"""MRD over TCP, as a scanner's side speaks it: a session a connection, images while lines still arrive."""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ismrmrd

from mri_qpan.errors import InputError, MriQpanError
from mri_qpan.recon.job import Job
from mri_qpan.recon.mrd_stream import ConfigFile, ConfigText, HeaderText, MrdReader, MrdWriter
from mri_qpan.recon.session import Lines, Painter, Session

DRAINING = ("null", "savedataonly")
"""Configs that take everything and make nothing."""

WAITING_IMAGES = 2
"""Complete images a session may hold before it stops reading: the peer then waits, not the memory."""

GIVE_UP = 30.0  # seconds that a peer may take to read what it is sent after an error

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


@dataclass
class Counts:
    """What a session came to."""

    acquisitions: int = 0
    images: int = 0
    failures: int = 0
    waveforms: int = 0
    seconds: list[float] = field(default_factory=list)


class Server:
    """Listens until `stop`.

    Parameters
    ----------
    settings
        How to serve.

    Raises
    ------
    OSError
        If the address cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._jobs: dict[str, Job] = {}
        self._jobs_lock = threading.Lock()
        self._painting = threading.BoundedSemaphore(settings.workers)
        self._places = threading.BoundedSemaphore(settings.clients)
        self._stopping = threading.Event()
        self._sessions: list[threading.Thread] = []
        self._listener = socket.create_server((settings.host, settings.port), backlog=64)
        self._listener.settimeout(0.2)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are listened on."""
        host, port = self._listener.getsockname()[:2]
        return host, port

    def serve(self) -> None:
        """Accept clients until `stop`, then let sessions in hand end."""
        with self._listener:
            while not self._stopping.is_set():
                if not self._places.acquire(timeout=0.2):
                    continue
                try:
                    connection, peer = self._listener.accept()
                except TimeoutError:
                    self._places.release()
                    continue
                except OSError as error:  # out of file handles: those of ended sessions come back
                    self._places.release()
                    log.error("cannot accept a client: %s", error)
                    time.sleep(1.0)
                    continue
                self._sessions = [t for t in self._sessions if t.is_alive()]
                thread = threading.Thread(target=self._attend, args=(connection, f"{peer[0]}:{peer[1]}"))
                try:
                    thread.start()
                except RuntimeError as error:
                    self._places.release()
                    connection.close()
                    log.error("%s: cannot be attended: %s", peer, error)
                else:
                    self._sessions.append(thread)
        for thread in self._sessions:
            thread.join()

    def stop(self) -> None:
        """Take no more clients; `serve` returns when sessions in hand have ended."""
        self._stopping.set()

    def job(self, config: str) -> tuple[Job, str | None]:
        """Return the reconstruction of a config, and what to say where it is not the one asked for."""
        name = Path(config.strip()).stem if len(config) < 1024 and "\n" not in config else ""
        chosen = name if name in self._settings.jobs else self._settings.default
        with self._jobs_lock:
            if chosen not in self._jobs:
                self._jobs[chosen] = self._settings.jobs[chosen]()
        known = ", ".join([*self._settings.jobs, *DRAINING])
        words = f"no config called {name[:80]!r} (there are {known}): {chosen!r} taken instead"
        return self._jobs[chosen], None if name == chosen else words

    def _attend(self, connection: socket.socket, peer: str) -> None:
        counts = Counts()
        started = time.monotonic()
        try:
            with connection:
                connection.settimeout(self._settings.patience)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _Conversation(self, self._settings, connection, peer, counts, self._painting).hold()
        except Exception:  # a session's end must not be the server's
            log.exception("%s: session failed", peer)
        finally:
            self._places.release()
            slowest = max(counts.seconds, default=0.0)
            log.info(
                "%s: closed after %.1f s: %d acquisitions, %d images, %d failures, slowest image %.2f s",
                peer,
                time.monotonic() - started,
                counts.acquisitions,
                counts.images,
                counts.failures,
                slowest,
            )


class _Conversation:
    """One client's session."""

    def __init__(
        self,
        server: Server,
        settings: Settings,
        connection: socket.socket,
        peer: str,
        counts: Counts,
        painting: threading.BoundedSemaphore,
    ) -> None:
        self._server, self._settings, self._connection, self._peer = server, settings, connection, peer
        self._counts, self._painting = counts, painting
        self._writer = MrdWriter(connection)
        self._writing = threading.Lock()
        self._complete: queue.Queue[tuple[float, Lines] | None] = queue.Queue(WAITING_IMAGES)
        self._gone = threading.Event()
        self._saving: Any = None

    def hold(self) -> None:
        """Talk until CLOSE, or until nothing more can be said."""
        worker: threading.Thread | None = None
        config = header = session = None
        try:
            for message in MrdReader(self._connection):
                if isinstance(message, ConfigFile | ConfigText):
                    if config is not None:
                        raise InputError("a second config")
                    config = str(message)
                elif isinstance(message, HeaderText):
                    if header is not None:
                        raise InputError("a second header")
                    header = str(message)
                    self._save_to(header)
                    if Path(config or "").stem not in DRAINING:
                        session = Session(header, self._peer, self._settings.memory)
                        worker = self._start(config or self._settings.default, header)
                    elif self._saving is None:
                        self._say("nothing is kept: this server was started without --save")
                elif isinstance(message, ismrmrd.Acquisition):
                    if header is None:
                        raise InputError("an acquisition before the header")
                    self._counts.acquisitions += 1
                    self._keep(message)
                    for lines in [] if session is None else session.add(message):
                        self._complete.put((time.monotonic(), lines))
                elif isinstance(message, ismrmrd.Waveform):
                    self._counts.waveforms += 1
                    self._keep(message)
                elif isinstance(message, ismrmrd.Image):
                    self._say(message)  # what is an image already goes back as it came
                elif isinstance(message, str):
                    log.info("%s: says %.200s", self._peer, message)
            for lines in [] if session is None else session.rest():
                self._complete.put((time.monotonic(), lines))
            if session is not None and session.late:
                self._say(
                    f"warning: {session.late} lines came after their image was complete: an image of "
                    "their own where they were many, else left out"
                )
            if self._counts.waveforms and session is not None:
                self._say(f"{self._counts.waveforms} waveforms were not used")
        except (MriQpanError, OSError) as error:
            self._end(error)
        except Exception as error:
            log.exception("%s", self._peer)
            self._end(error)
        finally:
            if worker is not None:
                self._complete.put(None)
                worker.join()
            self._stop_saving()
            self._close()

    def _start(self, config: str, header: str) -> threading.Thread:
        job, words = self._server.job(config)
        if words is not None:
            self._say(words)
        worker = threading.Thread(target=self._paint, args=(Painter(job, header, self._peer),))
        worker.start()
        return worker

    def _paint(self, painter: Painter) -> None:
        """Reconstruct what is complete and send it, until told to end."""
        while (entry := self._complete.get()) is not None:
            since, lines = entry
            if self._gone.is_set():
                continue
            messages: list[Any] = []
            try:
                # Nothing is sent in here: a peer that does not read would hold up every session.
                with self._painting:
                    messages += painter.paint(lines, messages.append)
            except MriQpanError as error:
                messages.append(self._failed(error))
            except Exception as error:
                log.exception("%s: image %s", self._peer, lines.index)
                messages.append(self._failed(error))
            try:
                for message in messages:
                    self._say(message)
                    self._counts.images += not isinstance(message, str)
            except OSError as error:
                self._gone.set()
                log.warning("%s: cannot be reached any more (%s)", self._peer, error)
            self._counts.seconds.append(time.monotonic() - since)

    def _say(self, message: Any) -> None:
        with self._writing:
            self._writer.serialize(message)

    def _failed(self, error: Exception) -> str:
        """Count and log a failure; return what the peer is told of it."""
        words = " ".join(str(error).split()) or type(error).__name__
        log.warning("%s: %s", self._peer, words)
        self._counts.failures += 1
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

    def _save_to(self, header: str) -> None:
        """Open an ISMRMRD file for what arrives, if anything is to be kept."""
        if self._settings.save is None:
            return
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}_{self._peer.replace(':', '_')}"
        try:
            self._settings.save.mkdir(parents=True, exist_ok=True)
            self._saving = ismrmrd.Dataset(str(self._settings.save / f"{stem}.h5"), "dataset", mode="w")
            self._saving.write_xml_header(header.encode())
        except Exception as error:  # a full disk must not cost the images
            self._not_saved(error)

    def _keep(self, message: Any) -> None:
        if self._saving is None:
            return
        try:
            if isinstance(message, ismrmrd.Waveform):
                self._saving.append_waveform(message)
            else:
                self._saving.append_acquisition(message)
        except Exception as error:
            self._not_saved(error)

    def _not_saved(self, error: Exception) -> None:
        self._stop_saving()
        log.error("%s: what it sends cannot be kept: %s", self._peer, error)
        self._say(f"warning: what you send cannot be kept: {' '.join(str(error).split())}")

    def _stop_saving(self) -> None:
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            saving.close()
        except Exception as error:
            log.error("%s: what was kept may be incomplete: %s", self._peer, error)
