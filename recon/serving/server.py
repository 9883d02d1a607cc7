"""MRD over TCP, as a scanner's side speaks it: a session a connection, images while lines still arrive."""

from __future__ import annotations

import logging
import socket
import threading
import time
from pathlib import Path

import numpy as np

from mri_qpan.fourier import fft_numpy
from mri_qpan.recon.job import Job
from mri_qpan.recon.kspace import Geometry, KSpace
from mri_qpan.recon.pipeline import reconstruct
from mri_qpan.recon.serving.conversation import DRAINING, Conversation, Counts, Settings
from mri_qpan.recon.serving.turns import Turns

__all__ = ["Server", "Settings", "warm_up"]

SIZE = 64  # of the phantom that warms up

log = logging.getLogger(__name__)


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
        self._turns = Turns()
        self._places = threading.BoundedSemaphore(settings.clients)
        self._stopping = threading.Event()
        self._sessions: list[threading.Thread] = []
        self._failure: Exception | None = None
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        self._listener = socket.create_server((settings.host, settings.port), family=family, backlog=64)
        self._listener.settimeout(0.2)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are listened on."""
        host, port = self._listener.getsockname()[:2]
        return host, port

    def serve(self) -> None:
        """Accept clients until `stop`, then let sessions in hand end. This thread computes."""
        helpers = [
            threading.Thread(target=self._turns.compute, name=f"computes {number}")
            for number in range(1, self._settings.workers)
        ]
        threads = [*helpers, threading.Thread(target=self._listen, name="accepts clients")]
        try:
            for thread in threads:
                thread.start()
            self._turns.compute()
        except BaseException:
            self.stop()
            self._turns.abandon()
            raise
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def _listen(self) -> None:
        try:
            self._accept()
        except Exception as error:
            self._failure = error
        if left := sum(thread.is_alive() for thread in self._sessions):
            log.info("no more clients; ends when %d sessions in hand have ended", left)
        for thread in self._sessions:
            thread.join()
        self._turns.end()

    def _accept(self) -> None:
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

    def stop(self) -> None:
        """Take no more clients; `serve` returns when sessions in hand have ended."""
        self._stopping.set()

    def job(self, config: str) -> tuple[Job, str | None]:
        """Return the reconstruction of a config, and what to say where it is not the one asked for."""
        asked = config.strip()
        jobs, default = self._settings.jobs, self._settings.default
        name = next((name for name in (asked, Path(asked).stem) if name in jobs), None)
        chosen = default if name is None else name
        if chosen not in self._jobs:
            with self._jobs_lock:  # once, and not in the way of those who have theirs
                if chosen not in self._jobs:
                    self._jobs[chosen] = self._turns.image(jobs[chosen])
        if name is not None:
            return self._jobs[chosen], None
        shown, known = " ".join(asked.split())[:80], ", ".join([*jobs, *DRAINING])
        words = f"no config called {shown!r} (there are {known}): {default!r} taken instead"
        return self._jobs[chosen], words

    def _attend(self, connection: socket.socket, peer: str) -> None:
        counts = Counts()
        started = time.monotonic()
        self._settings.meter.session(1)
        try:
            with connection:
                connection.settimeout(self._settings.patience)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                Conversation(self.job, self._settings, connection, peer, counts, self._turns).hold()
        except Exception:  # a session's end must not be the server's
            log.exception("%s: session failed", peer)
        finally:
            self._settings.meter.session(-1)
            self._places.release()
            _log_end(peer, time.monotonic() - started, counts)


def _log_end(peer: str, seconds: float, counts: Counts) -> None:
    """Log what a session came to, in words and in fields."""
    slowest = max(counts.seconds, default=0.0)
    fields = {
        "peer": peer,
        "seconds": round(seconds, 3),
        "acquisitions": counts.acquisitions,
        "images": counts.images,
        "failures": counts.failures,
        "waveforms": counts.waveforms,
        "returned": counts.returned,
        "slowest": round(slowest, 3),
    }
    log.info(
        f"{peer}: closed after {seconds:.1f} s: {counts.acquisitions} acquisitions, {counts.images} images, "
        f"{counts.failures} failures, {counts.waveforms} waveforms, {counts.returned} images returned as "
        f"they came, slowest image {slowest:.2f} s",
        extra={"event": "closed", "fields": fields},
    )


def warm_up(job: Job) -> None:
    """Reconstruct a disc in four coils: libraries are loaded, and threads run, before the first client."""
    y, x = np.ogrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    coils = [np.exp(-((y - v) ** 2) - (x - u) ** 2) for v in (-1, 1) for u in (-1, 1)]
    mask = np.zeros((1, SIZE, SIZE), bool)
    mask[:, ::3] = mask[:, SIZE // 2 - 12 : SIZE // 2 + 12] = True
    images = (np.stack(coils) * (y**2 + x**2 < 0.5))[:, None].astype(np.complex64)
    kspace = KSpace(
        data=fft_numpy(images, (-2, -1)) * mask,
        mask=mask,
        recon_shape=(1, SIZE, SIZE),
        geometry=Geometry((float(SIZE), float(SIZE), 1.0)),
    )
    try:
        reconstruct(kspace, job.method, device=job.device, compress=job.compress)
    except Exception as error:  # a site's own method may want other data
        log.warning("the method fails on a phantom: %s", error)
