"""An exported file against the network that it was made of."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mri_qpan.errors import ReconError
from mri_qpan.export import require
from mri_qpan.models.store import Model
from mri_qpan.nn import Reconstruction
from mri_qpan.phantom_head import FOV, head
from mri_qpan.sampling_masks import make_mask

MATRIX = (64, 48)
COILS = 4
LARGEST_ERROR = 1e-4
"""Rounding alone leaves some 1e-6."""


def scan(matrix: tuple[int, int] = MATRIX, coils: int = COILS, slices: int = 1) -> tuple[Tensor, ...]:
    """Return k-space, maps and mask of the head phantom's slices, as `Reconstruction` takes them."""
    phantom = head(coils, slices)
    maps = torch.from_numpy(phantom.maps(matrix, FOV)).transpose(0, 1)  # (slice, coil, y, x)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    mask = torch.from_numpy(make_mask("lines", matrix, 0.33))
    kspace = torch.from_numpy(phantom.kspace(matrix, FOV)).transpose(0, 1) * mask
    mps = maps.expand_as(kspace).contiguous()
    return kspace.contiguous(), mps, mask.expand(slices, *matrix).contiguous()


def run(path: Path, kspace: Tensor, mps: Tensor, mask: Tensor) -> Tensor:
    """Return the image that an .onnx (in ONNX Runtime, on the CPU) or .pt2 file makes of a measurement.

    Raises
    ------
    InputError
        If it takes ONNX Runtime and that is not installed.
    """
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(kspace, mps, mask)
    session = require("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    arrays = {"kspace": torch.view_as_real(kspace), "mps": torch.view_as_real(mps), "mask": mask}
    (image,) = session.run(None, {name: array.numpy() for name, array in arrays.items()})
    return torch.view_as_complex(torch.from_numpy(image))


def error(path: Path, network: Model) -> float:
    """Return the norm of (file's image - network's image) over the network's, on the head phantom.

    Raises
    ------
    ReconError
        If it is more than rounding explains.
    InputError
        If ONNX Runtime is needed and not installed.
    """
    measurement = scan()
    with torch.inference_mode():
        expected = Reconstruction(network)(*measurement)
    found = run(path, *measurement)
    value = float((found - expected).norm() / expected.norm())
    if not value <= LARGEST_ERROR:
        raise ReconError(
            f"{path.name} differs from {network.name} by {value:.1e} of the image: please report it, with the"
            " versions of torch and onnxruntime"
        )
    return value
