"""The bank of magnitude images that training draws from, and its validation part."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.training import images as files


@dataclass(frozen=True)
class Bank:
    """Images with the group that each came from.

    Attributes
    ----------
    images
        Magnitude (float) or complex images of varied size, each divided by its maximum, as (y, x) complex64
        or float32 arrays.
    groups
        One name an image: the data set.
    """

    images: list[NDArray[Any]]
    groups: list[str]

    def of(self, groups: set[str]) -> Bank:
        """Return the images of some groups."""
        kept = [i for i, group in enumerate(self.groups) if group in groups]
        return Bank([self.images[i] for i in kept], [self.groups[i] for i in kept])

    def save(self, path: Path) -> None:
        """Write the bank as one .npz of 16-bit magnitudes (and phases where they are measured)."""
        parts: dict[str, NDArray[Any]] = {}
        for index, image in enumerate(self.images):
            parts[f"m{index}"] = np.round(np.abs(image) * 65535).astype(np.uint16)
            if np.iscomplexobj(image):
                parts[f"p{index}"] = np.round(np.angle(image) / np.pi * 32767).astype(np.int16)
        names = np.frombuffer(json.dumps(self.groups).encode(), np.uint8)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(file, groups=names, **parts)  # type: ignore[arg-type]
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Bank:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            If the file is not such a bank.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                groups = json.loads(stored["groups"].tobytes())
                images = []
                for index in range(len(groups)):
                    image = stored[f"m{index}"].astype(np.float32) / 65535
                    if f"p{index}" in stored:
                        image = image * np.exp(1j * np.pi / 32767 * stored[f"p{index}"]).astype(np.complex64)
                    images.append(image)
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(
                f"{path}: not an image bank of mri-qpan ({error}); build one from a folder"
            ) from error
        return cls(images, groups)


def build(root: Path, tell: Callable[[str], None] = lambda line: None) -> Bank:
    """Collect images from a folder with one folder a data set.

    A data set's name followed by "/val" marks the part kept for validation: files called v_* or with "valid"
    in their names and, of .mat files, the last tenth instead. Hidden files and folders within a data set are
    left alone.

    Parameters
    ----------
    root
        The folder.
    tell
        Called with a line for whatever was not taken and might be missed.

    Raises
    ------
    InputError
        If a file is damaged or holds nothing that `images.read` knows, or there is no image at all.
    """
    images: list[NDArray[Any]] = []
    groups: list[str] = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        others = []
        paths = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
        validation = _validation(paths)
        for path in paths:
            if not files.readable(path):
                others.append(path)
                continue
            found, lost = files.read(path)
            if lost:
                tell(f"{path}: {lost}")
            images += found
            groups += [folder.name + ("/val" if path in validation else "")] * len(found)
        others = [path for path in others if path.suffix.lower() not in files.NO_IMAGES]
        if others:
            kinds = ", ".join(files.SUFFIXES)
            tell(f"{folder}: {len(others)} files passed over ({others[0].name}, ...): none of {kinds}")
    if not images:
        raise InputError(f"{root}: no training images found; it needs one folder a data set")
    return Bank(images, groups)


def _validation(paths: list[Path]) -> set[Path]:
    """Return which of a data set's files, in order, are for validation."""
    matlab = [path for path in paths if path.suffix.lower() == ".mat"]
    named = {path for path in paths if path.name.startswith("v_") or "valid" in path.name}
    number = max(len(matlab) // 10, min(1, len(matlab) - 1))  # of two, one is left to train on
    return named.difference(matlab) | set(matlab[len(matlab) - number :])
