"""Every reconstruction method by its name: classical solvers and trained networks, one call for all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor

from mri_qpan import models
from mri_qpan.encoding import Normal, Reconstructor
from mri_qpan.errors import InputError
from mri_qpan.solvers import SOLVERS


@dataclass(frozen=True)
class Method:
    """A reconstruction method: call it with A^H y and x -> A^H A x.

    Attributes
    ----------
    name
        What outputs are named after.
    run
        The network or solver itself.
    sha256
        Of a model's file, 64 hexadecimal digits; None for a solver, which has no weights.
    engine
        What runs a model (`mri_qpan.engines`); None for a solver.
    """

    name: str
    run: Reconstructor
    sha256: str | None = None
    engine: str | None = None

    def __call__(self, adjoint: Tensor, normal: Normal) -> Tensor:
        """Return the image (batch, *spatial) for A^H y of the same shape."""
        return self.run(adjoint, normal)


def method_names() -> list[str]:
    """Return the names that `get_method` knows: shipped models, then classical solvers."""
    return [*models.list_models(), *SOLVERS]


def get_method(name: str, device: torch.device | str = "cpu") -> Method:
    """Find a method by name.

    Parameters
    ----------
    name
        One of `method_names`, or the path of a .safetensors file.
    device
        Where a network runs; solvers run where their input lies.

    Raises
    ------
    InputError
        If there is no such method; the message lists the choices.
    ModelError
        If a model file cannot be used.
    """
    if name in SOLVERS:
        return Method(name, SOLVERS[name]())
    if name not in models.list_models() and not _is_path(name):
        raise InputError(_unknown(name))
    model = models.load_model(name, device)
    return Method(model.name, model, model.sha256, model.engine)


def find_device(name: str) -> torch.device:
    """Return the device called "auto" (a GPU where there is one), "cpu" or "cuda".

    Raises
    ------
    InputError
        If the name is another, or "cuda" is asked for where PyTorch finds no GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device {name!r}: choose auto, cpu or cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("no GPU found by this PyTorch: use --device cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _is_path(name: str) -> bool:
    return name.endswith(".safetensors") or os.sep in name


def _unknown(name: str) -> str:
    names = method_names()
    near = get_close_matches(name.lower(), names, 1)
    question = f"did you mean {near[0]}? " if near else ""
    return f"no method called {name!r}: {question}choose from {', '.join(names)} or a .safetensors file"
