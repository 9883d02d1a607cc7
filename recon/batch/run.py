"""A batch from its inputs to its summary."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event

from mri_qpan.recon.batch.crew import Crew
from mri_qpan.recon.batch.inputs import Source, Trouble, text_of
from mri_qpan.recon.batch.journal import Entry
from mri_qpan.recon.batch.outbox import Outbox
from mri_qpan.recon.metrics import Meter

POLL = 1.0  # seconds after which a stop is noticed at the latest

log = logging.getLogger(__name__)


@dataclass
class Summary:
    """What a batch came to.

    Attributes
    ----------
    kept
        Number of inputs that were done before.
    done
        Entries of those done now.
    failures
        Inputs or folders, each with the reason.
    left
        Number of inputs not begun: it was told to stop, or outputs cannot be written.
    """

    kept: int = 0
    done: list[Entry] = field(default_factory=list)
    failures: list[tuple[Path, str]] = field(default_factory=list)
    left: int = 0


def run_batch(
    sources: list[Source],
    troubles: list[Trouble],
    outbox: Outbox,
    crew: Callable[[], Crew],
    *,
    stop: Event,
    progress: Callable[[int, int], None] = lambda done, total: None,
    meter: Meter | None = None,
) -> Summary:
    """Reconstruct inputs into an output folder, except what is done there already.

    Parameters
    ----------
    sources, troubles
        From `find_inputs`.
    outbox
        The output folder.
    crew
        Starts the workers; called if there is anything to do.
    stop
        When set, what workers have in hand is finished and nothing more is begun.
    progress
        Called with the number of files done and their total, at the start and after each.
    meter
        What counts files and errors.

    Raises
    ------
    InputError
        If the workers cannot be had.
    ReconError
        If the output folder cannot be written, or the workers' scheduler is lost.
    """
    meter = meter or Meter()
    tasks, missing = outbox.plan(sources)
    waiting, total = deque(tasks), len(tasks)
    summary = Summary(kept=len(sources) - len(tasks) - len(missing))
    for trouble in troubles:
        _fail(summary, meter, trouble.path, trouble.reason)
    for source, reason in missing:
        _fail(summary, meter, source.path, reason)
    meter.waiting(total)
    if summary.kept:
        fields = {"files": summary.kept}
        log.info(
            "%d of %d done before", summary.kept, len(sources), extra={"event": "kept", "fields": fields}
        )
    progress(0, total)
    if not waiting:
        return summary
    with crew() as workers:
        writable, finished = True, 0
        while True:
            while waiting and writable and not stop.is_set() and workers.has_room():
                task = waiting.popleft()
                # The last files' images are spread, or one worker would end the batch while others idle.
                number = workers.number  # asked once: a scheduler answers from afar
                workers.submit(replace(task, workers=number) if len(waiting) < number else task)
            if stop.is_set() or not writable:
                waiting.extend(workers.recall())
            if not workers.in_hand:
                break
            outcome = workers.finished(POLL)
            if outcome is None:
                continue
            finished += 1
            meter.waiting(-1)
            entry = outbox.settle(outcome)
            if entry is None:
                continue
            if entry.reason is None:
                summary.done.append(entry)
                meter.done(entry.seconds or 0.0)
                log_done(entry)
            else:
                writable = writable and not outcome.unwritable
                _fail(summary, meter, outcome.task.source, entry.reason)
            progress(finished, total)
    summary.left = len(waiting)
    if waiting and not writable:
        log.error("%s cannot be written: nothing more is begun", outbox.out, extra={"event": "unwritable"})
    return summary


def log_done(entry: Entry) -> None:
    """Log a finished entry."""
    number = "1 image" if entry.images == 1 else f"{entry.images} images"
    fields = {"file": entry.source, "name": entry.name, "images": entry.images, "seconds": entry.seconds}
    log.info(
        "%s: %s in %.1f s: %s", entry.source, number, entry.seconds, entry.name, extra=_event("done", fields)
    )


def log_failed(path: Path, reason: str) -> None:
    """Log why an input failed."""
    where = text_of(path)
    words = reason if reason.startswith(where) else f"{where}: {reason}"
    log.error("%s", words, extra=_event("failed", {"file": where, "reason": reason}))


def _fail(summary: Summary, meter: Meter, path: Path, reason: str) -> None:
    meter.failed()
    summary.failures.append((path, reason))
    log_failed(path, reason)


def _event(name: str, fields: Mapping[str, object]) -> dict[str, object]:
    return {"event": name, "fields": fields}
