"""Models that do not ship with the package: fetched from a folder or an address, and held to their hash."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from mri_qpan.errors import InputError, ModelError, OptionError
from mri_qpan.models import shipped_models, user_folder
from mri_qpan.models.store import MAX_BYTES, read_header

SCHEMES = ("https://", "http://", "file://")
TIMEOUT = 30.0


def fetch(source: str, sha256: str) -> Path:
    """Copy a model file to the user's folder, so that it is known by its name.

    Parameters
    ----------
    source
        Path, or address (https, http, file).
    sha256
        Of the file, 64 hexadecimal digits.

    Returns
    -------
    Path
        Of the copy, called `<name>.safetensors` after the name in its header.

    Raises
    ------
    InputError
        If the hash is none, or the source cannot be read or is too large.
    ModelError
        If the file is another than the hash says, no model of this package, or called as one that ships.
    """
    wanted = sha256.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", wanted):
        raise OptionError(f"--sha256 {sha256!r:.80}: give the 64 hexadecimal digits of the file's SHA-256")
    folder = user_folder()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{wanted[:16]}.{os.getpid()}.part"
    try:
        found = _copy(source, temporary)
        if found != wanted:
            raise ModelError(f"{source}: its SHA-256 is {found}, so it is another file, or damaged")
        name = str(read_header(temporary)["name"])
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+_-]*", name):
            raise ModelError(f"{source}: {name!r:.80} cannot be a model's name")
        path = folder / f"{name}.safetensors"
        if name in shipped_models():
            raise ModelError(f"{source}: a model called {name} ships and goes first: give it another name")
        temporary.replace(path)
        return path
    finally:
        temporary.unlink(missing_ok=True)


def _copy(source: str, target: Path) -> str:
    """Copy `source` to `target` and return its SHA-256."""
    address = source if source.startswith(SCHEMES) else Path(source).expanduser().absolute().as_uri()
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as stream:
            content = stream.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(f"{source}: the server answers {error.code} {error.reason}") from error
    except (OSError, ValueError, HTTPException) as error:  # a bad address is a ValueError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise InputError(f"{source}: cannot be read: {reason}") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"{source}: larger than any model of mri-qpan ({MAX_BYTES} bytes)")
    target.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
