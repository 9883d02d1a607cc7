"""A whole reconstruction as a `torch.export` program."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from mri_qpan.networks.convolution import Convolution
from mri_qpan.networks.pan import ProximalNetwork
from mri_qpan.nn import Reconstruction

SMALLEST = 32
"""Pixels along y and x at least: below, tracing would bind the program to one rank of the intensity scale."""


def build(network: ProximalNetwork) -> ExportedProgram:
    """Return `network` as a program (kspace, mps, mask) -> image, shaped as in `Reconstruction`.

    Batch, coils, y and x are free, y and x from 32 on; mask and maps have the batch of k-space.
    """
    module = Reconstruction(_settled(network))
    kspace = torch.randn(2, 2, SMALLEST + 8, SMALLEST + 4, dtype=torch.complex64)
    mps = torch.randn_like(kspace)  # not k-space itself: tracing takes one tensor for one input
    mask = torch.ones(2, *kspace.shape[2:], dtype=torch.bool)
    batch, coil, y, x = Dim("batch"), Dim("coil"), Dim("y", min=SMALLEST), Dim("x", min=SMALLEST)
    coils = {0: batch, 1: coil, 2: y, 3: x}
    with torch.no_grad():
        return torch.export.export(
            module, (kspace, mps, mask), dynamic_shapes=(coils, coils, {0: batch, 1: y, 2: x})
        )


def save(program: ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    """Write a .pt2 file, `metadata` in it as mri_qpan.json."""
    torch.export.save(program, path, extra_files={"mri_qpan.json": json.dumps(metadata)})


def _settled(network: ProximalNetwork) -> ProximalNetwork:
    """Return a copy that holds the quantized weights alone: no quantizer is traced."""
    network = copy.deepcopy(network).requires_grad_(False)
    for convolution in network.modules():
        if isinstance(convolution, Convolution):
            convolution.weight.copy_(convolution())
            convolution.bits = None
    return network
