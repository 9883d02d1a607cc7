"""The trained models that ship with the package, and the loader of any other."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from mri_qpan.errors import ModelError

if TYPE_CHECKING:
    import torch

    from mri_qpan.engines import Engine
    from mri_qpan.models.store import Model

DEFAULT = "qpan+-3bit"
"""The smallest shipped model within 0.1 dB of the best on validation data."""

_FOLDER = Path(__file__).parent


def list_models() -> list[str]:
    """Return the names of the shipped models, largest first."""
    files = sorted(_FOLDER.glob("*.safetensors"), key=lambda p: -p.stat().st_size)
    return [path.stem for path in files]


def model_path(name: str) -> Path:
    """Return the file of a shipped model or of a path.

    Raises
    ------
    ModelError
        If there is neither a shipped model nor a file of that name.
    """
    if name in list_models():
        return _FOLDER / f"{name}.safetensors"
    path = Path(name)
    if path.suffix == ".safetensors" or path.is_file():
        return path
    near = get_close_matches(name, list_models(), 1)
    hint = (
        f"did you mean {near[0]}?" if near else f"choose from {', '.join(list_models()) or 'none'} or a file"
    )
    raise ModelError(f"no model called {name!r}: {hint}")


def load_model(name: str, device: torch.device | str = "cpu", engine: Engine = "auto") -> Model:
    """Load a shipped model by name, or a model file by path, for inference.

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
