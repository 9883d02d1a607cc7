"""How a trained network runs: which code works its layers, and in which type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

from mri_qpan.engines import fused, inplace

if TYPE_CHECKING:
    from mri_qpan.networks.config import Config

Engine = Literal["auto", "fused", "bfloat16", "float32"]
"""fused: the C++ kernel for K-bit networks, with 8-bit features; the others: PyTorch's convolutions in that
type."""


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
