"""Which files a batch takes, and what tells that one has changed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mri_qpan.errors import InputError
from mri_qpan.recon.readers import raw_suffixes

LIST = ".txt"

Stamp = tuple[tuple[int, int, int], ...]
"""Size in bytes, modification and change time in ns of every file that an input consists of."""


@dataclass(frozen=True)
class Source:
    """An input.

    Attributes
    ----------
    path
        Absolute.
    label
        What its outputs are called, unless another input has that name already: where it lies inside the
        folder that was named, without its suffix.
    """

    path: Path
    label: str


@dataclass(frozen=True)
class Trouble:
    """A place where no input could be had, and why."""

    path: Path
    reason: str


def find_inputs(
    inputs: Iterable[Path], out: Path, dims: str | None = None
) -> tuple[list[Source], list[Trouble]]:
    """Return the raw files that `inputs` name, each once, in their order.

    Parameters
    ----------
    inputs
        Files; folders, of which every raw file is taken, in subfolders too, but nothing hidden; and lists
        (.txt): a path a line, relative to the list's folder, # starts a comment.
    out
        The output folder: what lies in there is no input.
    dims
        Whether arrays (.npy, .mat) can be read: their axes (see `readers.open_kspace`).

    Raises
    ------
    InputError
        If a list cannot be read, or names itself, or a folder of inputs is the output folder, or an input is
        a link that leads to itself.
    """
    troubles: list[Trouble] = []
    found: dict[Path, Source] = {}
    for path in inputs:
        for source in _expand(normal(path), out, raw_suffixes(dims), troubles):
            found.setdefault(source.path, source)
    return list(found.values()), troubles


def _expand(
    path: Path,
    out: Path,
    suffixes: tuple[str, ...],
    troubles: list[Trouble],
    lists: frozenset[Path] = frozenset(),
) -> Iterator[Source]:
    """Yield the inputs that a path stands for; `lists` are those on the way to it."""
    if path.is_dir():
        if path.resolve() == out.resolve():
            raise InputError(f"{path}: outputs would lie among the inputs; choose another output folder")
        yield from _walk(path, out.resolve(), suffixes, troubles)
    elif path.suffix.lower() == LIST:
        if path.resolve() in lists:
            raise InputError(f"{path}: the list names itself")
        for entry in _listed(path):
            yield from _expand(entry, out, suffixes, troubles, lists | {path.resolve()})
    else:
        path = whole(path)
        yield Source(path, path.stem)


def _walk(top: Path, out: Path, suffixes: tuple[str, ...], troubles: list[Trouble]) -> Iterator[Source]:
    seen = {_identity(top), _identity(out)}

    def is_new(path: Path) -> bool:
        """Return whether a folder was not met yet: a link may lead to one above it, or to the outputs."""
        try:
            identity = _identity(path)
        except OSError as error:
            note(error)
            return False
        new = identity not in seen
        seen.add(identity)
        return new

    def note(error: OSError) -> None:
        path = Path(error.filename)
        troubles.append(Trouble(path, f"{text_of(path)}: cannot be listed: {error.strerror}"))

    for folder, folders, files in os.walk(top, onerror=note, followlinks=True):
        folders.sort(key=lambda name: (Path(folder, name).is_symlink(), name))  # linked ones last
        folders[:] = [name for name in folders if name[0] != "." and is_new(Path(folder, name))]
        for name in sorted(files):
            path = Path(folder, name)
            if name[0] != "." and path.suffix.lower() in suffixes and not _is_special(path):
                inside = path.relative_to(top)
                yield Source(path, "_".join([*inside.parts[:-1], path.stem]))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:  # the output folder, before the first output
        return None
    return found.st_dev, found.st_ino


def _is_special(path: Path) -> bool:
    """Return whether a path is a pipe or device: opening one could wait for ever."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:  # whose reason is told when it is read
        return False


def _listed(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows editors begin with a mark
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a list of files: {error}") from error
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return [normal(path.parent / name) for name in names]


def normal(path: Path) -> Path:
    """Return the absolute path without `..`, so that a file has one spelling; a `..` after a link stays.

    Raises
    ------
    InputError
        If it is a link that leads to itself.
    """
    path = path.absolute()
    plain = Path(os.path.normpath(path))
    try:
        return plain if plain.resolve() == path.resolve() else path
    except (RuntimeError, OSError) as error:
        raise InputError(f"{text_of(path)}: a link that leads to itself") from error


def whole(path: Path) -> Path:
    """Return the name that stands for all files of an input: BART's .cfl for its .hdr."""
    return path.with_suffix(".cfl") if path.suffix == ".hdr" else path


def members(path: Path) -> list[Path]:
    """Return the files that an input consists of."""
    return [path, path.with_suffix(".hdr")] if path.suffix == ".cfl" else [path]


def stamp(path: Path) -> Stamp:
    """Return an input's stamp; raises OSError if a file of it is missing."""
    found = [member.stat() for member in members(path)]
    return tuple((s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found)


def content_sha256(path: Path) -> str:
    """Return the 64 hexadecimal digits of an input's content."""
    total = hashlib.sha256()
    for member in members(path):
        with member.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def text_of(path: Path | str) -> str:
    """Return a path, or words with one, as text that any file can hold: what is not UTF-8 as hexadecimals."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
