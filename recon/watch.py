"""A hot folder: every raw file that arrives in it is reconstructed, and its images sent on."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from mri_qpan.errors import InputError, ReconError
from mri_qpan.recon.batch.crew import Crew
from mri_qpan.recon.batch.inputs import Source, Stamp, Trouble, find_inputs, normal, stamp, text_of
from mri_qpan.recon.batch.journal import Entry
from mri_qpan.recon.batch.outbox import Outbox
from mri_qpan.recon.batch.run import log_done, log_failed
from mri_qpan.recon.batch.work import CHANGED, Task
from mri_qpan.recon.metrics import Meter
from mri_qpan.recon.push import Archive, push
from mri_qpan.recon.readers import HDF5
from mri_qpan.recon.readers.hdf5 import Hdf5Process

POLL = 1.0  # seconds between two looks at the folder; polling sees what arrives on network drives too
GIVE_UP = 60.0  # seconds after which a file that has not changed and cannot be opened is taken for damaged
LATER = 60.0  # seconds until a file is tried again whose outputs could not be written
FIRST_RETRY, LAST_RETRY = 10.0, 600.0  # seconds until a refused push is tried again, doubled every time

log = logging.getLogger(__name__)


@dataclass
class _Sight:
    """What a file looked like, since when, whether it was handed on like that, and whether it is not done."""

    stamp: Stamp
    since: float
    handed: bool = False
    is_new: bool = False


class Arrivals:
    """Tells which files of a folder are complete and new.

    A file is left alone until its size and times have stood still for `settle` seconds and, if it is HDF5, it
    can be opened: a copy that stalls leaves one that cannot.

    Parameters
    ----------
    folder
        The folder, with its subfolders.
    out
        The output folder, which may lie inside.
    dims
        See `find_inputs`.
    settle
        Seconds.
    """

    def __init__(self, folder: Path, out: Path, dims: str | None, settle: float) -> None:
        self._folder, self._out, self._dims, self._settle = folder, out, dims, settle
        self._sights: dict[Path, _Sight] = {}
        self._troubles: set[str] = set()

    def again(self, path: Path) -> None:
        """Let a file be ready once more, in a while."""
        if path in self._sights:
            self._sights[path] = replace(self._sights[path], since=time.monotonic() + LATER, handed=False)

    def ready(
        self, is_done: Callable[[Source], bool], is_held: Callable[[Source], bool] = lambda source: False
    ) -> Iterator[Source]:
        """Yield the files to reconstruct now, each once as long as it does not change."""
        sources: list[Source] = []
        troubles = [Trouble(self._folder, f"{text_of(self._folder)}: is not there any more")]
        if self._folder.is_dir():  # a network's drive comes and goes
            sources, troubles = find_inputs([self._folder], self._out, self._dims)
        for trouble in troubles:
            if trouble.reason not in self._troubles:
                log_failed(trouble.path, trouble.reason)
        self._troubles = {trouble.reason for trouble in troubles}
        here = {source.path for source in sources}
        self._sights = {path: sight for path, sight in self._sights.items() if path in here}
        for source in sources:
            try:
                if self._is_ready(source, is_done, is_held):
                    yield source
            except OSError:  # moved away meanwhile, or the other half of a pair is still to come
                continue

    def _is_ready(
        self, source: Source, is_done: Callable[[Source], bool], is_held: Callable[[Source], bool]
    ) -> bool:
        now, moment = stamp(source.path), time.monotonic()
        sight = self._sights.get(source.path)
        if sight is None or sight.stamp != now:
            self._sights[source.path] = _Sight(now, moment)
            return False
        if sight.handed or moment - sight.since < self._settle:
            return False
        if not sight.is_new and is_done(source):
            sight.handed = True
            return False
        sight.is_new = True  # asked once: the answer may take reading all of the file
        if is_held(source):
            return False
        if not _opens(source.path) and moment - sight.since < GIVE_UP:
            return False
        sight.handed = stamp(source.path) == now  # or it has grown while it was opened
        return sight.handed


def _opens(path: Path) -> bool:
    if path.suffix.lower() not in HDF5:
        return True
    try:
        Hdf5Process(path).close()
    except InputError:
        return False
    return True


class Sender:
    """Pushes finished images, one input at a time and beside the rest; what is refused is tried again later.

    A set without DICOM files is named once and left.

    Parameters
    ----------
    outbox
        Whose entries to push.
    folder
        Only those of inputs in this folder.
    archive
        Where to.
    """

    def __init__(self, outbox: Outbox, folder: Path, archive: Archive) -> None:
        self._outbox, self._folder, self._archive = outbox, normal(folder), archive
        self._thread = ThreadPoolExecutor(1)
        self._sending: tuple[Entry, Future[None]] | None = None
        self._retries: dict[str, tuple[float, float]] = {}  # name: when, and the pause before it
        self._told: set[str] = set()  # keys of what was warned of
        self._left = Event()

    def holds(self, source: Source) -> bool:
        """Return whether an input must not be done again yet: what it was before is still to be sent.

        One that is itself as it was, done again for other options, waits for a push under way alone.
        """
        entry = self._outbox.unsent_of(source, str(self._archive))
        if entry is None:
            return False
        if self._sending is not None and self._sending[0].source == entry.source:
            return True
        if not _dicom(entry) or stamp(source.path) == entry.stamp or not self._outbox.is_there(entry):
            return False
        self._warn(
            entry,
            "held",
            f"changed before its images were sent to {self._archive}: done again when they are, or when"
            f" {self._outbox.out / entry.name} is moved away",
        )
        return True

    def step(self, last: bool = False) -> bool:
        """Note what was sent, begin with what is next; return whether something is on its way.

        With `last`, nothing is begun after what failed.
        """
        if self._sending is not None:
            entry, sent = self._sending
            if not sent.done():
                return True
            self._sending = None
            error = sent.exception()
            self._note(entry, error)
            if last and error is not None:
                return False
        for entry in self._outbox.unsent(str(self._archive), self._folder):
            names = _dicom(entry)
            if not names:
                self._warn(entry, "no dicom", f"holds no DICOM: not sent to {self._archive}")
            elif self._retries.get(entry.name, (0.0, 0.0))[0] <= time.monotonic():
                files = [self._outbox.out / entry.name / name for name in names]
                self._sending = (entry, self._thread.submit(push, files, self._archive, self._left.is_set))
                return True
        return False

    def finish(self) -> None:
        """Push all that is finished, up to the first that fails: the rest goes at the next start."""
        while self.step(last=True):
            time.sleep(POLL / 10)

    def leave(self) -> None:
        """Send no more than the file in hand."""
        self._left.set()

    def close(self) -> None:
        """Wait for what is on its way."""
        self._thread.shutdown()

    def _warn(self, entry: Entry, event: str, words: str) -> None:
        if entry.key not in self._told:
            self._told.add(entry.key)
            log.warning("%s: %s", entry.name, words, extra={"event": event, "fields": self._fields(entry)})

    def _fields(self, entry: Entry) -> dict[str, object]:
        return {"file": entry.source, "name": entry.name, "archive": str(self._archive)}

    def _note(self, entry: Entry, error: BaseException | None) -> None:
        fields = self._fields(entry)
        if error is None:
            self._retries.pop(entry.name, None)
            self._outbox.pushed(entry, str(self._archive))
            log.info("%s: sent to %s", entry.name, self._archive, extra={"event": "pushed", "fields": fields})
            return
        pause = min(LAST_RETRY, 2 * self._retries.get(entry.name, (0.0, FIRST_RETRY / 2))[1])
        self._retries[entry.name] = (time.monotonic() + pause, pause)
        words = text_of(str(error)) if isinstance(error, ReconError) else f"{type(error).__name__}: {error}"
        extra = {"event": "push failed", "fields": fields | {"reason": words}}
        log.error("%s; tried again in %.0f s", words, pause, extra=extra)


def _dicom(entry: Entry) -> list[str]:
    return sorted(name for name in entry.outputs if name.endswith(".dcm"))


def watch(
    arrivals: Arrivals,
    outbox: Outbox,
    crew: Callable[[], Crew],
    sender: Sender | None,
    *,
    stop: Event,
    meter: Meter | None = None,
) -> tuple[int, int]:
    """Reconstruct what arrives until `stop`; then finish what is in hand, and push what is finished.

    What was waiting is found again at the next start.

    Parameters
    ----------
    arrivals, sender
        What comes, and what goes.
    outbox
        The output folder.
    crew
        Starts the workers.
    stop
        When to end.
    meter
        What counts files and errors.

    Returns
    -------
    int, int
        Numbers of files done and failed.

    Raises
    ------
    InputError
        If the workers cannot be had.
    ReconError
        If the output folder cannot be written, or the workers' scheduler is lost.
    """
    done = failed = 0
    meter = meter or Meter()
    waiting: deque[Task] = deque()
    known: set[str] = set()  # keys of the jobs that wait or are in hand
    looked = 0.0
    is_held = (lambda source: False) if sender is None else sender.holds
    try:
        with crew() as workers:
            log.info("watching", extra={"event": "watching"})
            while workers.in_hand or not stop.is_set():
                if not stop.is_set() and time.monotonic() - looked >= POLL:
                    tasks, missing = outbox.plan(list(arrivals.ready(outbox.is_done, is_held)))
                    for source, reason in missing:
                        log.warning("%s; tried again in %.0f s", reason, LATER)
                        arrivals.again(source.path)
                    new = [task for task in tasks if task.key not in known]
                    meter.waiting(len(new))
                    waiting += new
                    known |= {task.key for task in tasks}
                    looked = time.monotonic()
                while waiting and not stop.is_set() and workers.has_room():
                    workers.submit(waiting.popleft())
                if stop.is_set():
                    waiting.extend(workers.recall())
                outcome = workers.finished(POLL)
                if outcome is not None:
                    known.discard(outcome.task.key)
                    meter.waiting(-1)
                    entry = outbox.settle(outcome)
                    if outcome.unwritable:
                        arrivals.again(outcome.task.source)
                    if entry is not None and entry.reason is None:
                        done += 1
                        meter.done(entry.seconds or 0.0)
                        log_done(entry)
                    elif entry is not None and entry.reason not in (None, CHANGED):
                        failed += 1
                        meter.failed()
                        log_failed(outcome.task.source, str(entry.reason))
                if sender is not None:
                    sender.step()
        if sender is not None:
            sender.finish()
    except BaseException:  # Ctrl-C ends at once
        if sender is not None:
            sender.leave()
        raise
    finally:
        if sender is not None:
            sender.close()
    return done, failed
