"""Every reconstruction method by its name: classical solvers and trained networks, one call for all."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mri_qpan import models
from mri_qpan.encoding import Normal, Reconstructor, SelfAdjoint
from mri_qpan.errors import InputError, OptionError, ReconError
from mri_qpan.solvers import SOLVERS

if TYPE_CHECKING:
    from mri_qpan.models.store import Model

GROUP = "mri_qpan.methods"
"""Entry points of other packages: name a method, point to a function with the call of `Method`."""


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
    linear
        Whether the image is a linear map of the samples, so that its noise does not depend on the image.
    least_squares
        Whether the image is that of least squares, regularised or not: the g-factor is defined for it.
    """

    name: str
    run: Reconstructor
    sha256: str | None = None
    engine: str | None = None
    linear: bool = False
    least_squares: bool = False

    def __call__(self, adjoint: Tensor, normal: Normal) -> Tensor:
        """Return the image (batch, *spatial) for A^H y of the same shape."""
        return self.run(adjoint, normal)


def as_reconstructor(function: Reconstructor, name: str | None = None) -> Method:
    """Let a function of one's own take part wherever a method's name is asked for.

    Parameters
    ----------
    function
        (A^H y, x -> A^H A x) -> x, on torch tensors (batch, *spatial) complex64, A^H y of maximum about 1.
        Its attributes `linear` and `least_squares`, where it has them, are the method's. Where its caller
        takes no gradients, it can take its own, through A^H A too, under `torch.enable_grad`.
    name
        What outputs are named after; None takes the function's own name.

    Returns
    -------
    Method
        It raises `ReconError` if the function fails, or returns anything but an image of A^H y's shape. It
        can be pickled where the function can.
    """
    called = name or str(getattr(function, "__name__", type(function).__name__))
    return _solver(called, _Own(function, called), function)


def method_names() -> list[str]:
    """Return the names that `get_method` knows: models, solvers, other packages' methods."""
    others = sorted({point.name for point in entry_points(group=GROUP)})
    return [*models.list_models(channels=2), *SOLVERS, *others]


def get_method(name: str, device: torch.device | str = "cpu") -> Method:
    """Find a method by name.

    Parameters
    ----------
    name
        One of `method_names`, the path of a .safetensors file, or FILE.py:FUNCTION for a function of one's
        own (see `as_reconstructor`).
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
        solver = SOLVERS[name]()
        return _solver(name, solver, solver)
    file, _, function = name.rpartition(":")
    if file.endswith(".py"):
        return as_reconstructor(_function(Path(file), function))
    if name not in models.list_models():
        for point in entry_points(group=GROUP, name=name):
            return as_reconstructor(point.load(), name)
    if name not in models.list_models() and not _is_path(name):
        raise OptionError(_unknown(name))
    model = models.load_model(name, device)
    require_complex(model)
    return Method(model.name, model, model.sha256, model.engine)


def require_complex(model: Model) -> None:
    """Raise `InputError` if a model is of the published experiment, not of measurements."""
    if model.config.channels == 1:
        raise InputError(
            f"{model.name} takes the real images of the published experiment (mri-qpan benchmark brain), not "
            "measurements: choose another model"
        )


def find_device(name: str) -> torch.device:
    """Return the device called "auto" (a GPU where there is one), "cpu" or "cuda".

    Raises
    ------
    InputError
        If the name is another, or "cuda" is asked for where PyTorch finds no GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise OptionError(f"unknown device {name!r}: choose auto, cpu or cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("no GPU found by this PyTorch: use --device cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


@dataclass(frozen=True)
class _Own:
    """A function of one's own, its failures said by its name."""

    function: Reconstructor
    name: str

    def __call__(self, adjoint: Tensor, normal: Normal) -> Tensor:
        try:
            image: Any = self._called(adjoint, normal)
        except (Exception, SystemExit) as error:  # someone else's code
            raise ReconError(f"{self.name} failed: {type(error).__name__}: {error}") from error
        if not isinstance(image, Tensor) or image.shape != adjoint.shape:
            found = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ReconError(f"{self.name} returned {found}, not an image tensor of {tuple(adjoint.shape)}")
        return image.to(adjoint.dtype)

    def _called(self, adjoint: Tensor, normal: Normal) -> Any:
        if not torch.is_inference_mode_enabled():
            return self.function(adjoint, normal)

        def apply(x: Tensor) -> Tensor:
            with torch.inference_mode():
                found = normal(x)
            return found.clone()

        # Tensors of inference mode take no part in gradients, clones made outside it do.
        with torch.inference_mode(False), torch.no_grad():
            image: Any = self.function(adjoint.clone(), lambda x: SelfAdjoint.apply(x, apply))
            return image.detach() if isinstance(image, Tensor) else image


def _solver(name: str, run: Reconstructor, function: Reconstructor) -> Method:
    """Return a method that is what `function` says of itself."""
    linear, least_squares = (bool(getattr(function, trait, False)) for trait in ("linear", "least_squares"))
    return Method(name, run, linear=linear, least_squares=least_squares)


def _function(file: Path, name: str) -> Reconstructor:
    """Return a function of a Python file."""
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    whole = file.resolve()
    # A name of its own: `recon.py` or `numpy.py` must not stand in for the module of that name.
    private = f"_mri_qpan_method_{sha256(str(whole).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(private, whole)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Modules beside it are found, also later, but after all others: workers inherit the path, and a file of
    # the lab's called h5py.py must not be the library to them.
    if str(whole.parent) not in sys.path:
        sys.path.append(str(whole.parent))
    sys.modules[private] = module  # dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # someone else's code
        del sys.modules[private]
        raise InputError(f"{file}: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{file}: no function called {name!r}")
    return function


def _is_path(name: str) -> bool:
    return name.endswith(".safetensors") or os.sep in name


def _unknown(name: str) -> str:
    names = method_names()
    near = get_close_matches(name.lower(), names, 1)
    question = f"did you mean {near[0]}? " if near else ""
    choices = f"{', '.join(names)}, a .safetensors file or FILE.py:FUNCTION"
    return f"no method called {name!r}: {question}choose from {choices}"
