"""BART beside us: its .cfl files and its command-line tools.

BART stores arrays in Fortran order with x first; read backwards that is C order with x last, so an array
(coil, z, y, x) here is BART's [x, y, z, coil] without moving a number.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import InputError, ReconError

DIMENSIONS = 16

LONGEST_HEADER = 1 << 16
"""Bytes; more than that is no header of BART's."""


def write_cfl(stem: Path, array: NDArray[Any], made_by: Sequence[str] = ()) -> None:
    """Write `array` as `stem`.cfl and `stem`.hdr.

    Parameters
    ----------
    stem
        Path without suffix.
    array
        Of any shape with up to 16 dimensions, ending in (..., z, y, x); stored as complex64.
    made_by
        Lines of the header that say how it was made, as BART writes them.
    """
    _with_suffix(stem, ".hdr").write_bytes(_header(array, made_by))
    np.ascontiguousarray(array, dtype=np.complex64).tofile(_with_suffix(stem, ".cfl"))


def write_pipe(stream: BinaryIO, array: NDArray[Any], made_by: Sequence[str] = ()) -> None:
    """Hand `array` to the next BART command of a pipeline.

    As BART 0.8 does: a temporary file in the working folder, whose name goes through the pipe with the
    header. The command that reads it removes it.

    Parameters
    ----------
    stream
        The pipe.
    array, made_by
        As in `write_cfl`.
    """
    number, name = tempfile.mkstemp(prefix="bart-", dir=Path.cwd())
    try:
        with os.fdopen(number, "wb") as file:
            np.ascontiguousarray(array, dtype=np.complex64).tofile(file)
        stream.write(_header(array, ["# Data", Path(name).name, *made_by]))
        stream.flush()
    except BaseException:
        Path(name).unlink()
        raise


def read_pipe(stream: BinaryIO) -> NDArray[np.complex64]:
    """Read what a BART command (or `write_pipe`) put into a pipe, and remove its temporary file.

    Returns
    -------
    ndarray
        As of `open_cfl`.

    Raises
    ------
    InputError
        If no such header comes through the pipe, or its file is missing or incomplete.
    """
    header = stream.read(LONGEST_HEADER).decode("utf-8", "surrogateescape")
    sizes = _sizes(header, "the pipe")
    _, found, rest = header.partition("\n# Data\n")
    name = rest.partition("\n")[0]
    if not found or not name:
        raise InputError(
            "the pipe's header names no file under '# Data', as BART 0.8 writes it: exchange a .cfl file "
            "instead"
        )
    array = np.array(_mapped(Path(name), sizes))
    Path(name).unlink()
    return array


def read_cfl(stem: Path) -> NDArray[np.complex64]:
    """Read `stem`.cfl and `stem`.hdr into memory; else as `open_cfl`."""
    return np.array(open_cfl(stem))


def open_cfl(stem: Path) -> NDArray[np.complex64]:
    """Map `stem`.cfl into memory, read-only, as `stem`.hdr describes it.

    Returns
    -------
    ndarray
        complex64, (..., z, y, x) without the leading dimensions of size 1, but at least (y, x).

    Raises
    ------
    InputError
        If a file is missing or the two do not fit together.
    """
    try:
        header = _with_suffix(stem, ".hdr").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{stem}.hdr: {error.strerror}") from error
    return _mapped(_with_suffix(stem, ".cfl"), _sizes(header, f"{stem}.hdr"))


def _header(array: NDArray[Any], lines: Sequence[str]) -> bytes:
    sizes = [*reversed(array.shape), *[1] * (DIMENSIONS - array.ndim)]
    header = "\n".join(["# Dimensions", " ".join(str(n) for n in sizes), *lines]) + "\n"
    return header.encode("utf-8", "surrogateescape")


def _sizes(header: str, where: str) -> list[int]:
    """Return the sizes that a header states, x first."""
    lines = header.splitlines()
    try:
        return [int(word) for word in lines[lines.index("# Dimensions") + 1].split()]
    except (ValueError, IndexError) as error:
        if header.startswith("name: "):  # what bart prints of its own interface
            raise InputError(f"{where}: bart wrote no array: a pipe is `bart COMMAND -- ... -`") from error
        raise InputError(f"{where}: not a BART header: no line of sizes under '# Dimensions'") from error


def _mapped(path: Path, sizes: Sequence[int]) -> NDArray[np.complex64]:
    """Map a file of complex64 into memory, read-only."""
    wanted = 8 * math.prod(sizes)
    found = path.stat().st_size if path.is_file() else 0
    if min(sizes, default=0) < 1 or found != wanted:
        raise InputError(f"{path}: {found} bytes, but its header asks for {wanted}: is the file complete?")
    shape = list(reversed(sizes))
    while len(shape) > 2 and shape[0] == 1:
        shape.pop(0)
    return np.memmap(path, np.complex64, mode="r", shape=tuple(shape))


def available() -> bool:
    """Return whether BART's command is installed."""
    return shutil.which("bart") is not None


def version() -> str:
    """Return what `bart version` says.

    Raises
    ------
    ReconError
        If BART is missing.
    """
    return run(["version"], Path.cwd(), threads=1).strip()


def run(arguments: Sequence[str], folder: Path, threads: int) -> str:
    """Run `bart` with `arguments` inside `folder` on `threads` threads and return what it printed.

    Raises
    ------
    ReconError
        If BART is missing or fails; the message ends in BART's own last line.
    """
    if not available():
        raise ReconError("BART is not installed: no command 'bart' on the PATH")
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    result = subprocess.run(
        ["bart", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        words = (result.stderr + result.stdout).strip().splitlines() or ["no message"]
        raise ReconError(f"bart {arguments[0]} failed ({result.returncode}): {words[-1]}")
    return result.stdout + result.stderr


def _with_suffix(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)
