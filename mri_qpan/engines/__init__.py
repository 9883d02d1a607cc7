"""How a trained network runs: which code works its layers, and in which type."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from mri_qpan.engines import fused, inplace

if TYPE_CHECKING:
    from mri_qpan.networks.config import Config

Engine = Literal["auto", "fused", "compiled", "bfloat16", "float32"]
"""fused: the C++ kernel for K-bit networks, with 8-bit features; compiled: `torch.compile`'s code in the
fastest type without a visible loss (on a CPU it needs a C++ compiler); the others: PyTorch's convolutions in
that type."""


def choose(engine: Engine, config: Config, device: torch.device | str) -> Engine:
    """Return the engine to use, never "auto".

    "auto" takes the fused kernel where it fits, else PyTorch in the fastest type.

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
    fits = torch.device(device).type == "cpu" and fused.fits(config)
    if engine == "fused" and not fits:
        raise ValueError(
            "the fused engine runs K-bit PAN+ networks of 32 filters, on x86-64 processors with AVX2, where "
            "the package was installed with a C++ compiler at hand"
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
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home / "mri-qpan" / "inductor"))
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
