"""The trained models that ship with the package or were fetched, and the loader of any other."""

from __future__ import annotations

import json
import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from mri_qpan.errors import ModelError, UnknownModelError

if TYPE_CHECKING:
    import torch

    from mri_qpan.engines import Engine
    from mri_qpan.models.store import Model

DEFAULT = "qpan+-3bit"
"""The smallest shipped model within 0.1 dB of the best on validation data."""

_FOLDER = Path(__file__).parent


def user_folder() -> Path:
    """Return where fetched models lie: $MRI_QPAN_MODELS, or the user's folder for data.

    Raises
    ------
    ModelError
        If none of the variables is set and this user has no home.
    """
    if own := os.environ.get("MRI_QPAN_MODELS"):
        return Path(own)
    windows = sys.platform == "win32"
    if given := os.environ.get("LOCALAPPDATA" if windows else "XDG_DATA_HOME"):
        return Path(given) / "mri-qpan" / "models"
    try:
        home = Path.home()
    except RuntimeError as error:  # a container's user without a name
        raise ModelError("this user has no home: set MRI_QPAN_MODELS to a folder for models") from error
    return home / ("AppData/Local" if windows else ".local/share") / "mri-qpan" / "models"


def list_models(channels: int | None = None) -> list[str]:
    """Return the names of the models that ship or were fetched, largest first.

    Parameters
    ----------
    channels
        Only those for images of so many: 2, complex ones; 1, the real ones of the published experiment.
    """
    files = _files()
    names = sorted(files, key=lambda name: -files[name].stat().st_size)
    return [name for name in names if channels is None or _channels(files[name]) == channels]


def shipped_models() -> list[str]:
    """Return the names of the models that ship."""
    return list(_in(_FOLDER))


def _files() -> dict[str, Path]:
    """Return every known model's file; one that ships goes before a fetched one of its name."""
    try:
        return _in(user_folder()) | _in(_FOLDER)
    except (ModelError, OSError):  # shipped models need no home, nor one that can be read
        return _in(_FOLDER)


def _in(folder: Path) -> dict[str, Path]:
    # A folder or a link to nothing is no model.
    return {path.stem: path for path in folder.glob("*.safetensors") if path.is_file()}


def _channels(path: Path) -> int | None:
    """Return the channels of a model file's images, read without PyTorch; None of a damaged file."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, 1 << 20)))
        return int(json.loads(header["__metadata__"]["mri_qpan"])["config"]["channels"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def model_path(name: str) -> Path:
    """Return the file of a known model (`list_models`) or of a path.

    Raises
    ------
    UnknownModelError
        If there is neither a model nor a file of that name.
    """
    known = _files()
    if name in known:
        return known[name]
    path = Path(name)
    if path.suffix == ".safetensors" or path.is_file():
        return path
    near = get_close_matches(name, list_models(), 1)
    if near:
        hint = f"did you mean {near[0]}?"
    else:
        complex_, real = (", ".join(list_models(channels)) or "none" for channels in (2, 1))
        hint = f"choose from {complex_}, a file, or, for the published experiment's real images, {real}"
    raise UnknownModelError(f"no model called {name!r}: {hint}")


def load_model(name: str, device: torch.device | str = "cpu", engine: Engine = "auto") -> Model:
    """Load a known model by name, or a model file by path, for inference.

    Parameters
    ----------
    name
        A name of `list_models` or the path of a .safetensors file.
    device
        Where to run it.
    engine
        "auto", the fastest here without a visible loss; or "fused", "compiled", "bfloat16" or "float32" (see
        `mri_qpan.engines`). Of "compiled" the first image of a size takes a minute to compile, once: the code
        is kept on disk.

    Raises
    ------
    ModelError
        If it does not exist or its file does not pass every check.
    ValueError
        If that engine cannot run it there.
    """
    from mri_qpan.models import store

    return store.load(model_path(name), device, engine)
