"""The output folder of a batch: what is done, what is to be done, and every move between the two.

`OUT/<name>/` holds the outputs of one input, and `OUT/.mri-qpan/` the journal and what is on its way:

    work/       sets that are not complete: deleted at the next start
    complete/   sets that are (see `work`): moved into place, now or at the next start
    trash/      outputs that newer ones replaced, on their way out

A kill between any two of these steps leaves something from which `Outbox` goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from mri_qpan.errors import InputError, ReconError
from mri_qpan.recon.batch.inputs import Source, Stamp, content_sha256, stamp, text_of
from mri_qpan.recon.batch.journal import DONE, Entry, Journal, as_stamp, fold, shorten
from mri_qpan.recon.batch.work import FILES, RECEIPT, ROOM, Outcome, Task, complete, sync
from mri_qpan.recon.files import output_folder
from mri_qpan.recon.job import output_stem
from mri_qpan.recon.recipe import Recipe

PATIENCE = 30.0  # seconds for a worker's files to be seen from here


class Outbox:
    """Opens an output folder for one recipe, and first brings what a kill left behind to its end.

    Parameters
    ----------
    out
        The folder; made if missing.
    recipe
        How to reconstruct, with absolute paths.
    command
        What the user typed, for the records.

    Raises
    ------
    InputError
        If the folder cannot be used, another process is at work in it, or the recipe is wrong.
    ReconError
        From any method, if the journal cannot be written or a set cannot be moved: what is complete stays
        complete, for the next start.
    """

    def __init__(self, out: Path, recipe: Recipe, command: str) -> None:
        self.out = output_folder(out).resolve()
        self._recipe, self._command = recipe, command
        self.method = recipe.job().method
        self._digest = recipe.digest(self.method)
        self._room = self.out / ROOM
        with self._writing():
            for name in ("work", "complete", "trash"):
                (self._room / name).mkdir(parents=True, exist_ok=True)
            self._journal = Journal(self._room)
        try:
            with self._writing():
                self._recover()
        except BaseException:
            self._journal.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:  # what lost workers left
            with suppress(OSError):
                _empty(self._room / "work")
        self._journal.close()

    def plan(self, sources: list[Source]) -> tuple[list[Task], list[tuple[Source, str]]]:
        """Return what is to be done for inputs, and those that cannot be had, with the reason.

        What is done already, with this recipe and an input of that content, is neither.
        """
        tasks, missing = [], []
        with self._writing(), self._journal.transaction():
            for source in sources:
                try:
                    now = stamp(source.path)
                    task = None if self._is_done(source, now) else self._want(source, now)
                except OSError as error:
                    missing.append((source, f"{text_of(source.path)}: {(error.strerror or '').lower()}"))
                    continue
                if task is not None:
                    tasks.append(task)
        return tasks, missing

    def is_done(self, source: Source) -> bool:
        """Return whether an input is done as it is now; raises OSError if it cannot be had."""
        return self._is_done(source, stamp(source.path))

    def settle(self, outcome: Outcome) -> Entry | None:
        """Move the set of a task into place, or note why there is none.

        Returns
        -------
        Entry
            The input's, done or failed; None if another job is wanted for this input meanwhile.
        """
        task = outcome.task
        with self._writing():
            known = self._journal.entry(text_of(task.source), task.method)
            if known is None or known.key != task.key:
                return None
            if _appears(complete(task), patient=outcome.reason is None):
                self._settle(complete(task))
            elif outcome.reason is None:
                raise FileNotFoundError(
                    f"no {complete(task)}, which a worker wrote: not the same folder there?"
                )
            else:
                self._journal.failed(known.source, known.method, outcome.reason)
            return self._journal.entry(known.source, known.method)

    def unsent(self, to: str, folder: Path) -> list[Entry]:
        """Return the finished entries of inputs in a folder that were not pushed to a place."""
        inside = text_of(folder) + os.sep
        with self._writing():
            found = self._journal.unsent(to)
        return [e for e in found if e.method == self.method.name and e.source.startswith(inside)]

    def unsent_of(self, source: Source, to: str) -> Entry | None:
        """Return the finished entry of an input if it was not pushed to a place."""
        with self._writing():
            entry = self._journal.entry(text_of(source.path), self.method.name)
        return None if entry is None or entry.state != DONE or entry.pushed == to else entry

    def pushed(self, entry: Entry, to: str) -> None:
        """Note where an entry's DICOM files were sent."""
        with self._writing():
            self._journal.pushed(entry, to)

    def _is_done(self, source: Source, now: Stamp) -> bool:
        with self._writing():
            entry = self._journal.entry(text_of(source.path), self.method.name)
        if entry is None or entry.state != DONE or entry.recipe != self._digest or not self.is_there(entry):
            return False
        if entry.stamp == now:
            return True
        before = entry.stamp or ()
        if [size for size, *_ in before] != [size for size, *_ in now]:
            return False
        if content_sha256(source.path) != entry.sha256 or stamp(source.path) != now:
            return False
        with self._writing():
            self._journal.restamp(entry.source, entry.method, now)
        return True

    def is_there(self, entry: Entry) -> bool:
        """Return whether an entry's outputs lie in its folder, complete."""
        folder = self.out / entry.name
        try:
            return all((folder / name).stat().st_size == size for name, size in entry.outputs.items())
        except OSError:
            return False

    def _want(self, source: Source, now: Stamp) -> Task:
        path, method = text_of(source.path), self.method.name
        key = hashlib.sha256(json.dumps([path, method, self._digest, now]).encode()).hexdigest()[:16]
        entry = self._journal.entry(path, method)
        name = self._name(source) if entry is None else entry.name
        self._journal.want(path, method, name, key)
        return Task(source.path, now, method, self.out, name, key, self._recipe, self._digest, self._command)

    def _name(self, source: Source) -> str:
        """Return a name that no other input has and no file of anyone else's: it stays the input's."""
        name = shorten(output_stem(source.path.with_name(f"{_plain(source.label)}.x"), self.method))
        if not self._is_free(name):
            name += "-" + hashlib.sha256(text_of(source.path).encode()).hexdigest()[:8]
        if not self._is_free(name):
            raise InputError(f"{self.out / name}: in the way of the outputs of {source.path}: move it")
        return name

    def _is_free(self, name: str) -> bool:
        return not (self._journal.taken(name) or os.path.lexists(self.out / name) or fold(name) == fold(ROOM))

    def _recover(self) -> None:
        for name in ("work", "trash"):
            _empty(self._room / name)
        for folder in sorted((self._room / "complete").iterdir()):
            self._settle(folder)

    def _settle(self, folder: Path) -> None:
        """Move a complete set into place, note it, clean up. Every step can be the last one or a second one.

        A set of a job that is no longer wanted, or a second one of the same, goes.
        """
        entry = _read(folder / RECEIPT)
        if entry is not None:
            known = self._journal.entry(entry.source, entry.method)
            if known is not None and known.key == entry.key and known.state != DONE:
                self._place(folder / FILES, self.out / known.name, known)
                self._journal.done(entry)
        _remove(self._room / "trash", folder)
        _empty(self._room / "trash")

    def _place(self, files: Path, target: Path, known: Entry) -> None:
        if not files.is_dir():  # moved before a kill
            return
        if target.is_dir():
            for path in target.iterdir():
                if path.name not in known.outputs and not os.path.lexists(files / path.name):
                    os.rename(path, files / path.name)  # what someone else put there stays
            _remove(self._room / "trash", target)
        os.rename(files, target)
        sync(self.out)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what a full or failing disk raises into one line."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ReconError(
                f"{self.out}: cannot be written: {error}; what is done is kept: make room, or repair it,"
                " and run the same command again"
            ) from error


def _plain(label: str) -> str:
    """Return a label that names a folder everyone sees and every file can hold."""
    return text_of(Path(label)).replace("\\", "_").lstrip(".") or "_"


def _read(receipt: Path) -> Entry | None:
    """Return a set's entry; None for a set that is moved already, or that a power cut spoilt."""
    try:
        values = json.loads(receipt.read_text(encoding="utf-8"))
        return Entry(**values | {"stamp": as_stamp(values["stamp"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _appears(folder: Path, patient: bool) -> bool:
    """Return whether a folder is there; network file systems take a while to show what another node made."""
    deadline = time.monotonic() + (PATIENCE if patient else 0.0)
    while not folder.is_dir():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.2)
        os.listdir(folder.parent)
    return True


def _remove(trash: Path, path: Path) -> None:
    """Take a folder away in one step."""
    os.rename(path, trash / uuid.uuid4().hex)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path, ignore_errors=True)
