"""Trained networks for other software: ONNX, `torch.export` and a C header."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from mri_qpan._version import __version__
from mri_qpan.errors import InputError
from mri_qpan.models import load_model
from mri_qpan.models.store import Model
from mri_qpan.networks.pan import ProximalNetwork

SUFFIXES = (".onnx", ".pt2", ".h")

USAGE = {
    ".onnx": "Inputs: kspace and mps, float32 (batch, coil, y, x, 2), real and imaginary part last (the"
    " memory of complex64); mask, bool (batch, y, x), true where a sample was acquired. Output: image,"
    " float32 (batch, y, x, 2), at the scale of kspace.",
    ".pt2": "Load with torch.export.load(FILE).module(); call with kspace and mps, complex64 (batch, coil, y,"
    " x), and mask, bool (batch, y, x), true where a sample was acquired. Returns the image, complex64"
    " (batch, y, x), at the scale of kspace. y and x from 32.",
    ".h": "Include it; qpan_integer and qpan_weight decode the weights of the table at its end.",
}
CONVENTION = (
    " k-space is centred: the zero frequency at index n // 2, orthonormal DFT. mps are coil sensitivities"
    " with sum_c |S_c|^2 of at most 1. No medical device."
)


def export(model: str, path: Path) -> Model:
    """Write a model for other software, in the format that the suffix of `path` names.

    Parameters
    ----------
    model
        A shipped model's name or the path of a model file.
    path
        .onnx: the reconstruction in ONNX; .pt2: the same as a `torch.export` program; .h: packed K-bit
        weights with their decoder in C99. ONNX holds K-bit weights as int8 integers and their scales.

    Returns
    -------
    Model
        The network that was written, in float32, which `check.error` compares a file with.

    Raises
    ------
    InputError
        If the suffix is another, the network cannot be written so, or `onnx` is not installed.
    ModelError
        If the model cannot be used.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"cannot export to {path.name}: choose a name in {', '.join(SUFFIXES)}")
    network = load_model(model, engine="float32")
    if not isinstance(network, ProximalNetwork) or network.config.channels != 2:
        raise InputError(
            f"cannot export {network.name}: only PAN networks (ISTA-Net among them) for complex images are"
        )
    about = metadata(network, path.suffix)
    if path.suffix == ".h":
        from mri_qpan.export import header

        path.write_text(header.text(network, about), encoding="utf-8")
    elif path.suffix == ".pt2":
        from mri_qpan.export import program

        program.save(program.build(network), path, about)
    else:
        require("onnx")
        from mri_qpan.export import onnx_model

        path.write_bytes(onnx_model.build(network, about).SerializeToString())
    return network


def metadata(network: Model, suffix: str) -> dict[str, str]:
    """Return what every exported file says of itself."""
    convention = "" if suffix == ".h" else CONVENTION
    return {
        "name": network.name,
        "sha256": network.sha256,
        "version": __version__,
        "configuration": json.dumps(network.config.to_dict()),
        "licence": str(network.card["licence"]),
        "usage": USAGE[suffix] + convention,
    }


def require(package: str) -> Any:
    """Return a module of the `export` extra.

    Raises
    ------
    InputError
        If it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise InputError(f"ONNX files need the package {package}: pip install 'mri-qpan[export]'")
    return importlib.import_module(package)
