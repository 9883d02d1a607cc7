"""One input on a worker: a set of outputs, complete in one step or not at all.

A set is a folder with `receipt.json` and `files/`. It grows under `work/` and is renamed into `complete/`,
under the name and the key of its job, when every file of it is on the disk. With that rename the job is done,
whatever happens to this process, its scheduler or the batch afterwards.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from mri_qpan.errors import InputError, MriQpanError, ReconError
from mri_qpan.recon.batch.inputs import Stamp, content_sha256, stamp, text_of
from mri_qpan.recon.batch.journal import DONE, Entry
from mri_qpan.recon.job import Done, Edges, Job, Spread, WriteError, reconstruct_file, reconstruct_images
from mri_qpan.recon.memory import keep_memory
from mri_qpan.recon.recipe import Recipe

ROOM = ".mri-qpan"
RECEIPT, FILES = "receipt.json", "files"
LOST = "its worker was lost, and the next one too: killed for memory, or crashed"

SMALLEST = 4
"""Images that are worth opening the file once more for."""

CHANGED = "it changed or was moved meanwhile: run the same command again when it is complete"

_gpu = threading.Lock()
"""One job at a time on a worker's GPU, however many threads the worker has."""

_loading = threading.Lock()
"""Held while a worker loads a method: its other threads then find it there."""


@dataclass(frozen=True)
class Task:
    """What a worker is sent.

    Attributes
    ----------
    source, stamp
        The input, and what it looked like when it was found.
    method
        The method's name.
    out
        The batch's output folder.
    name, key
        Of the outputs' folder, and of the job.
    recipe, digest
        How to reconstruct, and the recipe's digest: a method that differs on this machine is not taken.
    command
        What the user typed.
    workers
        Among how many workers the input's images may be spread: more than one where fewer inputs wait than
        there are workers.
    """

    source: Path
    stamp: Stamp
    method: str
    out: Path
    name: str
    key: str
    recipe: Recipe
    digest: str
    command: str
    workers: int = 1


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes
    ----------
    task
        The task.
    reason
        Why it failed; None if its set is complete.
    unwritable
        Whether it failed because outputs cannot be written, as the next one would: the disk is full or fails.
    """

    task: Task
    reason: str | None = None
    unwritable: bool = False


def perform(task: Task, make: Callable[[Path, Path, Job], dict[str, Any]] | None = None) -> Outcome:
    """Reconstruct an input and complete its set; whatever goes wrong is the outcome's reason.

    Parameters
    ----------
    task
        What to do.
    make
        Instead of `reconstruct_file`.
    """
    try:
        if complete(task).is_dir():  # by a worker that was lost right after it
            return Outcome(task)
        if _changed(task):
            return Outcome(task, CHANGED)
        with _loading:
            job = replace(_job(task.recipe, task.digest), command=task.command)
        with _alone(job):
            _make(task, job, make or _maker(task, job))
    except Exception as error:
        if isinstance(error, FileNotFoundError | InputError) and _changed(task):
            return Outcome(task, CHANGED)
        words = str(error) if isinstance(error, MriQpanError) else f"{type(error).__name__}: {error}"
        return Outcome(task, text_of(words) or type(error).__name__, isinstance(error, WriteError))
    return Outcome(task) if complete(task).is_dir() else Outcome(task, CHANGED)


def _changed(task: Task) -> bool:
    """Return whether an input is not what it was when the task was made, or not there any more."""
    try:
        return stamp(task.source) != task.stamp
    except FileNotFoundError:
        return True


def perform_images(task: Task, start: int, stop: int, edges: Edges) -> list[Done]:
    """Reconstruct some images of an input for the worker that has it.

    Raises
    ------
    InputError, ReconError
        As `job.reconstruct_images` does, and if the method differs on this worker.
    """
    with _loading:
        job = _job(task.recipe, task.digest)
    with _alone(job):
        return reconstruct_images(task.source, job, start, stop, edges)


def _on_gpu(job: Job) -> bool:
    return job.device.type == "cuda"


def _alone(job: Job) -> AbstractContextManager[object]:
    return _gpu if _on_gpu(job) else nullcontext()


def _maker(task: Task, job: Job) -> Callable[[Path, Path, Job], dict[str, Any]]:
    return reconstruct_file if task.workers == 1 else partial(reconstruct_file, spread=_spread(task, job))


def _spread(task: Task, job: Job) -> Spread:
    """Return what spreads the images of an input among the workers of this one's scheduler."""

    def spread(start: int, stop: int, edges: Edges) -> list[list[Done]]:
        from distributed import worker_client

        if _on_gpu(job):
            _gpu.release()  # some of the images may come to this worker
        try:
            with worker_client() as client:
                futures = [
                    client.submit(perform_images, task, first, last, edges, pure=False)
                    for first, last in pieces(start, stop, task.workers)
                ]
                try:
                    return [_result(future) for future in futures]
                finally:
                    client.cancel(futures)
        finally:
            if _on_gpu(job):
                _gpu.acquire()

    return spread


def _result(future: Any) -> list[Done]:
    try:
        found: list[Done] = future.result()
    except Exception as error:
        if type(error).__name__ == "KilledWorker":
            raise ReconError(LOST) from error
        raise
    return found


def pieces(start: int, stop: int, workers: int) -> list[tuple[int, int]]:
    """Divide images evenly: two pieces a worker, for one may be faster, unless they would be small."""
    number = max(1, min(2 * workers, (stop - start) // SMALLEST))
    edges = [start + (stop - start) * i // number for i in range(number + 1)]
    return list(pairwise(edges))


def complete(task: Task) -> Path:
    """Return where the set of a task lies when it is complete."""
    return task.out / ROOM / "complete" / f"{task.name}.{task.key}"


def _make(task: Task, job: Job, make: Callable[[Path, Path, Job], dict[str, Any]]) -> None:
    with _writing(task):
        stage = Path(tempfile.mkdtemp(prefix="", dir=task.out / ROOM / "work"))
    try:
        files = stage / FILES
        with _writing(task):
            files.mkdir()
        sha256 = content_sha256(task.source)
        record = make(task.source, files, job)
        if stamp(task.source) != task.stamp:
            return
        entry = Entry(
            source=text_of(task.source),
            method=task.method,
            name=task.name,
            key=task.key,
            state=DONE,
            recipe=task.digest,
            stamp=task.stamp,
            sha256=sha256,
            outputs={path.name: path.stat().st_size for path in files.iterdir()},
            images=len(record["images"]),
            seconds=round(sum(record["seconds"].values()), 3),
        )
        with _writing(task):
            (stage / RECEIPT).write_text(json.dumps(asdict(entry)), encoding="utf-8")
            for path in (*files.iterdir(), files, stage / RECEIPT, stage):
                sync(path)
            _publish(stage, complete(task))
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def _writing(task: Task) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(f"{task.source}: cannot write to {task.out}: {error.strerror}") from error


def _publish(stage: Path, place: Path) -> None:
    try:
        os.rename(stage, place)
    except OSError as error:
        # A worker thought lost was first with the same job: its set is as good.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return
    sync(place.parent)


def sync(path: Path) -> None:
    """Have a file or a folder's names on the disk, not in a cache: a full disk shows here at the latest."""
    with suppress(PermissionError):  # folders on Windows
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@lru_cache(maxsize=1)
def _job(recipe: Recipe, digest: str) -> Job:
    """Load the method once a process."""
    keep_memory()
    job = recipe.job()
    if recipe.digest(job.method) != digest:
        raise ReconError(f"{recipe.method}: the method or the maps changed, or differ on this worker")
    return job
