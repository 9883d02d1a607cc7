"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from mri_qpan.errors import InputError


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Lend a hidden folder inside `folder`; what was written there moves up when the block ends well.

    Whatever ends the block early (an error, Ctrl-C) leaves `folder` as it was.

    Yields
    ------
    Path
        The hidden folder. Files of the same name in `folder` are replaced in one step each.
    """
    stage = Path(tempfile.mkdtemp(prefix=".mri-qpan-", dir=folder))
    try:
        yield stage
        made = sorted(stage.iterdir())
        for path in made:
            if (folder / path.name).is_dir():  # before the first is moved: all or none
                raise IsADirectoryError(errno.EISDIR, f"{folder / path.name} is a folder")
        for path in made:
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def from_memory(path: Path) -> Iterator[BytesIO]:
    """Lend memory whose content becomes a file when the block ends well.

    For HDF5: where it cannot write out what it holds, on a full disk, the process crashes at its end.
    """
    memory = BytesIO()
    yield memory
    path.write_bytes(memory.getbuffer())


def output_folder(folder: Path) -> Path:
    """Make `folder` where it is missing and check that files can be written in it.

    Raises
    ------
    InputError
        If it cannot be made, is a file or refuses files.
    """
    with _refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder


def check_output_folder(folder: Path) -> None:
    """Check what `output_folder` does and make nothing yet: what comes between may fail.

    Raises
    ------
    InputError
        As `output_folder`.
    """
    with _refusals(folder):
        nearest = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
        if not nearest.is_dir():
            raise FileExistsError
        with tempfile.TemporaryFile(dir=nearest):
            return


@contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise InputError(f"cannot write to {folder}: it is a file, give a folder") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot write to {folder}: {reason.lower()}; choose another folder") from error
