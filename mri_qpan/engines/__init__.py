"""How a trained network runs: which code works its layers, and in which type."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from mri_qpan.engines import fused, gpu, inplace

if TYPE_CHECKING:
    from mri_qpan.networks.config import Config
    from mri_qpan.networks.pan import ProximalNetwork

Engine = Literal["auto", "fused", "compiled", "bfloat16", "float32"]
"""fused: the kernels for K-bit networks, in C++ with 8-bit features on a CPU, in Triton with bfloat16
features on an NVIDIA GPU; compiled: `torch.compile`'s code in the fastest type without a visible loss (on a
CPU it needs a C++ compiler); the others: PyTorch's convolutions in that type."""


class Kernel(Protocol):
    """A network's layers without their data consistency, on one device.

    Attributes
    ----------
    device
        Where it runs.
    """

    device: torch.device

    def __call__(self, index: int, r: Tensor, features: Any) -> tuple[Tensor, Any]:
        """Work a layer.

        Parameters
        ----------
        index
            Of the layer.
        r
            Images (batch, channels, y, x) on `device`; worked in float32.
        features
            What the layer before handed on, or None.

        Returns
        -------
        image
            As `r`.
        features
            For the next layer, of the kernel's own kind, with a method `scaled`.
        """


def fuse(network: ProximalNetwork, device: torch.device | str) -> Kernel:
    """Return the fused kernel of a network for which `choose` allows it, with its weights as they are now."""
    if torch.device(device).type == "cuda":
        return gpu.Fused(network, device)
    return fused.Fused(network)


def choose(engine: Engine, config: Config, device: torch.device | str) -> Engine:
    """Return the engine to use, never "auto".

    "auto" takes the fused kernel where it fits a CPU, else PyTorch in the fastest type. The GPU's kernels
    have met no GPU yet, only Triton's interpreter and compiler, and run where they are asked for.

    Parameters
    ----------
    engine
        What was asked for.
    config
        The network.
    device
        Where it will run.

    Raises
    ------
    ValueError
        If there is no such engine, or it cannot run this network here.
    """
    if engine not in get_args(Engine):
        raise ValueError(f"unknown engine {engine!r}: choose from {', '.join(get_args(Engine))}")
    kind = torch.device(device).type
    fits = kind == "cpu" and fused.fits(config)
    if engine == "fused" and not (fits or gpu.fits(config, device)):
        raise ValueError(
            "the fused engine runs K-bit PAN+ networks of 32 filters, on x86-64 processors with AVX2, where "
            "the package was installed with a C++ compiler at hand, and on NVIDIA GPUs of compute "
            "capability 8.0 or later, where Triton is installed"
        )
    if engine != "auto":
        return engine
    if fits:
        return "fused"
    return "bfloat16" if inplace.fast_dtype(device) == torch.bfloat16 else "float32"


def dtype_of(engine: Engine, device: torch.device | str) -> torch.dtype:
    """Return the type of an engine's features and weights; for "fused" that of its stand-in."""
    if engine == "compiled":
        return inplace.fast_dtype(device)
    return torch.bfloat16 if engine == "bfloat16" else torch.float32


def keep_compiled_code() -> None:
    """Let `torch.compile` keep its code where a later process finds it, even after a restart.

    PyTorch's own default is the temporary folder. Where TORCHINDUCTOR_CACHE_DIR is set it stays.
    """
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home / "mri-qpan" / "inductor"))
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
