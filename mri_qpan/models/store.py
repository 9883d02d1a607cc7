"""Model files: safetensors with packed K-bit weights and a JSON header; nothing is unpickled.

Layout. The safetensors metadata hold one key, "mri_qpan": a JSON object with `format` (1), `name`,
`config` (the configuration's `to_dict`), `card` (training data, recipe, figures, licence terms), `digest`,
the SHA-256 over all tensors, and `config_digest`, that over `config` (the first files have none). A
full-precision convolution is stored as `<layer>.<name>.weight`; a K-bit one as `.packed` (uint8, K bits a
weight, see `quantize.pack`) and `.scale`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from mri_qpan import quantize
from mri_qpan.engines import Engine, choose, dtype_of, keep_compiled_code
from mri_qpan.errors import ModelError
from mri_qpan.networks import Network, build, config_from_dict
from mri_qpan.networks.convolution import Convolution

FORMAT = 1
CARD_FIELDS: dict[str, type] = {"data": list, "figures": dict, "licence": str, "training": dict}
MAX_BYTES = 256 * 2**20
"""A file larger than this is no model of ours; it is not read."""


Model = Network[Any]
"""A trained network with its card."""


def save(path: Path, network: Model, name: str, card: dict[str, Any]) -> None:
    """Write `network` to `path` (through a temporary file).

    Raises
    ------
    ValueError
        If the card lacks one of its fields, or one is of another kind.
    """
    if wrong := _wrong_in(card):
        raise ValueError(f"the model card {wrong}")
    tensors = _to_tensors(network)
    header = {
        "format": FORMAT,
        "name": name,
        "config": network.config.to_dict(),
        "card": card,
        "digest": _digest(tensors),
        "config_digest": _config_digest(network.config.to_dict()),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(serialize(tensors, {"mri_qpan": json.dumps(header)}))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_header(path: Path) -> dict[str, Any]:
    """Return a model file's header without building the network.

    Raises
    ------
    ModelError
        If the file is missing or not one of ours.
    """
    return _read(path)[0]


def load(path: Path, device: torch.device | str = "cpu", engine: Engine = "auto") -> Model:
    """Build the network stored at `path`, ready for inference on `device`.

    Raises
    ------
    ModelError
        If the file is missing, truncated, changed, of a newer format, or does not hold exactly the tensors
        that its configuration asks for.
    ValueError
        If `engine` cannot run it there.
    """
    header, tensors = _read(path)
    try:
        config = config_from_dict(header["config"])
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error
    if header["digest"] != _digest(tensors):
        raise ModelError(
            f"{path}: the weights do not match their digest; the file is damaged, fetch it again"
        )
    if header.get("config_digest") not in (None, _config_digest(header["config"])):
        raise ModelError(f"{path}: its configuration was changed; the file is damaged, fetch it again")
    engine = choose(engine, config, device)
    with _plain():
        model = build(config, dtype_of(engine, device))
    _from_tensors(path, model, tensors)
    model.name = header["name"]
    model.card = header["card"]
    model.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    model.engine = engine
    if engine == "fused":
        model.fuse(device)
    if engine == "compiled":
        keep_compiled_code()
        model.compile_step()
    return model.eval().requires_grad_(False).to(device)


@contextmanager
def _plain() -> Iterator[None]:
    """Have parameters made in float32, and leave the caller's random numbers as they were."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_default_dtype(usual)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise ModelError(f"{path}: no such model file")
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(f"{path}: larger than any model of mri-qpan ({path.stat().st_size} bytes)")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a safetensors file or truncated ({error})") from error
    try:
        header = json.loads(metadata["mri_qpan"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: has no mri-qpan header; it is not a model of this package") from error
    expected: dict[str, type] = {"format": int, "name": str, "config": dict, "card": dict, "digest": str}
    if not isinstance(header, dict) or any(not isinstance(header.get(k), t) for k, t in expected.items()):
        raise ModelError(f"{path}: its header is damaged")
    if wrong := _wrong_in(header["card"]):
        raise ModelError(f"{path}: its card {wrong}")
    if header["format"] != FORMAT:
        raise ModelError(
            f"{path}: model format {header['format']}, this version reads {FORMAT}; update mri-qpan"
        )
    return header, tensors


def _wrong_in(card: dict[str, Any]) -> str:
    """Return what is wrong with a card's fields, "" for nothing."""
    missing = [field for field in CARD_FIELDS if field not in card]
    if missing:
        return f"lacks {', '.join(missing)}"
    for field, kind in CARD_FIELDS.items():
        if not isinstance(card[field], kind):
            return f"has no {kind.__name__} under {field}"
    if not all(isinstance(values, dict) for values in card["figures"].values()):
        return "has figures that are no dict of numbers"
    return ""


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return digest.hexdigest()


def _config_digest(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _convolutions(network: Model) -> dict[str, Convolution]:
    return {name: m for name, m in network.named_modules() if isinstance(m, Convolution)}


def _to_tensors(network: Model) -> dict[str, Tensor]:
    tensors = {name: p.detach().cpu().clone() for name, p in network.named_parameters()}
    for name, convolution in _convolutions(network).items():
        if convolution.bits is None:
            continue
        weight = tensors.pop(f"{name}.weight")
        scale = convolution.scale.detach().cpu().clone()
        tensors[f"{name}.scale"] = scale
        tensors[f"{name}.packed"] = quantize.pack(
            quantize.levels(weight, scale, convolution.bits), convolution.bits
        )
    return tensors


def _from_tensors(path: Path, network: Model, tensors: dict[str, Tensor]) -> None:
    expected = _to_tensors(network)
    if set(expected) != set(tensors):
        odd = ", ".join(sorted(set(expected) ^ set(tensors))[:3])
        raise ModelError(f"{path}: its tensors are not those of its configuration ({odd}, …)")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise ModelError(f"{path}: {name} is {tensor.dtype} {tuple(tensor.shape)}, not as configured")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{path}: {name} holds values that are not finite")
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, convolution in _convolutions(network).items():
            if convolution.bits is None:
                continue
            scale = tensors[f"{name}.scale"]
            if not bool((scale > 0).all()):
                raise ModelError(f"{path}: {name}.scale is not positive")
            weight = convolution.weight
            integers = quantize.unpack(tensors[f"{name}.packed"], convolution.bits, weight.numel())
            convolution.scale.copy_(scale)
            weight.copy_(scale * integers.reshape(weight.shape))
        for name, tensor in tensors.items():
            if name in parameters:
                parameters[name].copy_(tensor)
