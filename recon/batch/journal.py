"""The journal of an output folder: what became of every input, in SQLite, for one process at a time.

SQLite's rollback journal brings a database that a kill or a power cut left behind back to its last commit,
also on network file systems, where its write-ahead log does not work.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sqlite3
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mri_qpan.errors import InputError
from mri_qpan.recon.batch.inputs import Stamp

VERSION = 1
LONGEST = 180  # bytes of a name, which a method's suffixes and a key still follow
WAITING, DONE, FAILED = "waiting", "done", "failed"

SCHEMA = """
CREATE TABLE files (
    source TEXT NOT NULL,
    method TEXT NOT NULL,
    name TEXT NOT NULL,
    folded TEXT NOT NULL UNIQUE,
    key TEXT NOT NULL,
    state TEXT NOT NULL,
    recipe TEXT,
    stamp TEXT,
    sha256 TEXT,
    outputs TEXT NOT NULL DEFAULT '{}',
    images INTEGER,
    seconds REAL,
    reason TEXT,
    pushed TEXT,
    PRIMARY KEY (source, method)
)
"""


@dataclass(frozen=True)
class Entry:
    """What is known of one input with one method.

    Attributes
    ----------
    source, method
        The input's path and the method's name: what an entry is found by.
    name
        Of the folder that its outputs lie in.
    key
        Of the job that is wanted or was done last: it changes with the input and the recipe.
    state
        `WAITING`, `DONE` or `FAILED`.
    recipe, stamp, sha256
        What the outputs were made from: the recipe's digest, the input's stamp and content.
    outputs
        Files in the folder, with their sizes in bytes.
    images, seconds
        How many, and how long they took.
    reason
        Why it failed.
    pushed
        Where its DICOM files were sent.
    """

    source: str
    method: str
    name: str
    key: str
    state: str = WAITING
    recipe: str | None = None
    stamp: Stamp | None = None
    sha256: str | None = None
    outputs: dict[str, int] = field(default_factory=dict)
    images: int | None = None
    seconds: float | None = None
    reason: str | None = None
    pushed: str | None = None


class Journal:
    """Opens the journal in `folder` and keeps it locked until `close` or the process's end, a kill included.

    Raises
    ------
    InputError
        If another process has it, or it is no journal of this version.
    sqlite3.Error, OSError
        From any method, if the disk is full or fails.
    """

    def __init__(self, folder: Path) -> None:
        path, self._owner = folder / "journal.sqlite", folder / "owner"
        self._db = sqlite3.connect(path, timeout=0, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        try:
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA synchronous=FULL")
            with self.transaction():
                found = self._db.execute("PRAGMA user_version").fetchone()[0]
                if found == 0:
                    self._db.execute(SCHEMA)
                    self._db.execute(f"PRAGMA user_version={VERSION}")
            if found not in (0, VERSION):
                raise InputError(
                    f"{path}: a journal of another mri-qpan (version {found}): take another folder"
                )
        except BaseException as error:
            self._db.close()
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                raise InputError(
                    f"{folder.parent}: another batch or watch is at work in this folder ({self._who()});"
                    " wait for its end or take another folder"
                ) from error
            if isinstance(error, sqlite3.DatabaseError) and "not a database" in str(error):
                raise InputError(
                    f"{path}: damaged, not a journal: take another folder, or delete it"
                ) from error
            raise
        with suppress(OSError):
            self._owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")

    def _who(self) -> str:
        try:
            return self._owner.read_text(encoding="utf-8").strip()
        except OSError:
            return "just started"

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all that is written inside one step."""
        self._db.execute("BEGIN EXCLUSIVE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def entry(self, source: str, method: str) -> Entry | None:
        """Return the entry of an input and a method."""
        return self._one("source = ? AND method = ?", source, method)

    def named(self, name: str) -> Entry | None:
        """Return the entry whose outputs lie in a folder."""
        return self._one("name = ?", name)

    def unsent(self, to: str) -> list[Entry]:
        """Return the finished entries that were not pushed to a place."""
        rows = self._db.execute("SELECT * FROM files WHERE state = ? AND pushed IS NOT ?", (DONE, to))
        return [_entry(row) for row in rows]

    def want(self, source: str, method: str, name: str, key: str) -> None:
        """Note that a job is to be done; what is known of earlier outputs stays."""
        self._db.execute(
            "INSERT INTO files (source, method, name, folded, key, state) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (source, method) DO UPDATE"
            " SET key = excluded.key, state = excluded.state, reason = NULL",
            (source, method, name, fold(name), key, WAITING),
        )

    def taken(self, name: str) -> bool:
        """Return whether outputs of some input lie, or will, in a folder of that name in any case."""
        return self._db.execute("SELECT 1 FROM files WHERE folded = ?", (fold(name),)).fetchone() is not None

    def done(self, entry: Entry) -> None:
        """Note finished outputs."""
        self._db.execute(
            "UPDATE files SET state = ?, recipe = ?, stamp = ?, sha256 = ?, outputs = ?, images = ?,"
            " seconds = ?, reason = NULL, pushed = NULL WHERE source = ? AND method = ?",
            (
                DONE,
                entry.recipe,
                json.dumps(entry.stamp),
                entry.sha256,
                json.dumps(entry.outputs),
                entry.images,
                entry.seconds,
                entry.source,
                entry.method,
            ),
        )

    def failed(self, source: str, method: str, reason: str) -> None:
        """Note why a job failed."""
        self._db.execute(
            "UPDATE files SET state = ?, reason = ? WHERE source = ? AND method = ?",
            (FAILED, reason, source, method),
        )

    def restamp(self, source: str, method: str, stamp: Stamp) -> None:
        """Note that an input has another stamp and the same content."""
        self._db.execute(
            "UPDATE files SET stamp = ? WHERE source = ? AND method = ?", (json.dumps(stamp), source, method)
        )

    def pushed(self, entry: Entry, to: str) -> None:
        """Note where an entry's DICOM files were sent, unless it has been made anew since."""
        self._db.execute(
            "UPDATE files SET pushed = ? WHERE source = ? AND method = ? AND key = ? AND state = ?",
            (to, entry.source, entry.method, entry.key, DONE),
        )

    def close(self) -> None:
        """Let others have it."""
        self._owner.unlink(missing_ok=True)
        self._db.close()

    def _one(self, where: str, *values: str) -> Entry | None:
        row = self._db.execute(f"SELECT * FROM files WHERE {where}", values).fetchone()
        return None if row is None else _entry(row)


def _entry(row: sqlite3.Row) -> Entry:
    values = {name: row[name] for name in row.keys() if name != "folded"}  # noqa: SIM118 (a Row's values)
    values["stamp"] = as_stamp(json.loads(row["stamp"] or "null"))
    values["outputs"] = json.loads(row["outputs"])
    return Entry(**values)


def as_stamp(numbers: list[list[int]] | None) -> Stamp | None:
    """Return a stamp that was JSON."""
    return (
        None if numbers is None else tuple((size, modified, changed) for size, modified, changed in numbers)
    )


def fold(name: str) -> str:
    """Return what two names share that some file systems take for one."""
    return unicodedata.normalize("NFC", name).casefold()


def shorten(name: str) -> str:
    """Return a name that a file system takes: a long one cut, with eight digits of its hash."""
    encoded = name.encode()
    if len(encoded) <= LONGEST:
        return name
    return encoded[: LONGEST - 9].decode(errors="ignore") + "-" + hashlib.sha256(encoded).hexdigest()[:8]
