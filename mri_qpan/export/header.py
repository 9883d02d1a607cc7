"""A K-bit network as a C99 header: packed weights, scales and scalars, with their decoder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch

from mri_qpan import quantize
from mri_qpan.errors import InputError
from mri_qpan.networks.convolution import Convolution
from mri_qpan.networks.layer import Layer
from mri_qpan.networks.pan import ProximalNetwork

DECODER = Path(__file__).with_name("decoder.h")

LAYOUT = """\
Layer l takes the image of the one before, r, and works (mri_qpan/networks/pan.py, in this order):
  z = D r + carry * (features of layer l - 1), f = H2 relu(H1 z), p = the proximal average of f,
  features = T2 relu(T1 p), image = r + G features; "pan" networks have neither D, G nor carry.
Convolutions stand in the order of a layer's names, layer after layer. Scalars of a layer, as it uses them:
  step: mu (or rho) is log(1 + exp(raw_step)), with powers log(1 + exp(raw_step + far));
  lambda: one threshold a penalty; gamma of MCP, a of SCAD; shares: the penalties' weights in the average,
  where they are not equal; powers, carry and floor: see networks/pan.py."""


def text(network: ProximalNetwork, metadata: dict[str, str]) -> str:
    """Return the header.

    Parameters
    ----------
    network
        K-bit.
    metadata
        Written into the comment at the top; `name` gives the symbols their prefix.

    Raises
    ------
    InputError
        If the network is not quantized.
    """
    bits = network.config.bits
    if bits is None:
        raise InputError(
            f"{metadata['name']} has full-precision weights, a C header holds K-bit ones: export it to .onnx "
            "or .pt2, or choose a 1- to 4-bit model"
        )
    # "q-pan+" and "q-pan++" keep names of their own.
    prefix = re.sub(r"\W+", "_", metadata["name"].replace("+", "p")).strip("_").lower()
    prefix = prefix if prefix[:1].isalpha() else f"qpan_{prefix}"
    tables, rows, scalars = [], [], []
    for index, layer in enumerate(network.layers):
        assert isinstance(layer, Layer)
        for kind, convolution in layer.convolutions.items():
            assert isinstance(convolution, Convolution)
            symbol = f"{prefix}_{index}_{kind}"
            tables += _tables(symbol, convolution, bits)
            outputs, inputs = convolution.weight.shape[:2]
            rows.append(
                f'    {{"layers.{index}.{kind}", {outputs}, {inputs}, {symbol}_packed, {symbol}_scales}},'
            )
        scalars += _scalars(f"{prefix}_{index}", layer)
    if network.config.floor:
        scalars.append(_floats(f"{prefix}_floor", network.floor.tolist()))
    guard = f"MRI_QPAN_{prefix.upper()}_H"
    return "\n".join(
        [
            "/*",
            *(f" * {line}" for line in _comment(metadata)),
            " *",
            *(f" * {line}" for line in LAYOUT.splitlines()),
            " */",
            f"#ifndef {guard}",
            f"#define {guard}",
            "",
            DECODER.read_text(encoding="utf-8"),
            f"#define {prefix.upper()}_BITS {bits}",
            f"#define {prefix.upper()}_LAYERS {len(network.layers)}",
            f"#define {prefix.upper()}_FILTERS {network.config.filters}",
            f"#define {prefix.upper()}_CONVOLUTIONS {len(rows)}",
            "",
            *tables,
            f"static const qpan_convolution {prefix}_convolutions[{len(rows)}] = {{",
            *rows,
            "};",
            "",
            *scalars,
            "",
            "#endif",
            "",
        ]
    )


def _comment(metadata: dict[str, str]) -> list[str]:
    lines = "\n".join(f"{key}: {value}" for key, value in metadata.items())
    # A comment neither ends nor begins in it; "??/" is a backslash in C99.
    return re.sub(r"\*(?=/)|/(?=\*)|\?(?=\?)", r"\g<0> ", lines).splitlines()


def _tables(symbol: str, convolution: Convolution, bits: int) -> list[str]:
    weight, scale = convolution.weight.detach(), convolution.scale
    packed = quantize.pack(quantize.levels(weight, scale, bits), bits).tolist()
    scales = scale.flatten().expand(len(weight)).tolist()
    return [
        f"static const uint8_t {symbol}_packed[{len(packed)}] = {{",
        *_lines(str(byte) for byte in packed),
        "};",
        _floats(f"{symbol}_scales", scales),
    ]


def _scalars(symbol: str, layer: Layer) -> list[str]:
    with torch.no_grad():
        lam, gamma, a = (t.tolist() for t in layer.thresholds())
        shares = layer.shares()
    values = {"raw_step": [layer.raw_step.item()], "lambda": lam, "gamma": [gamma], "a": [a]}
    if shares is not None:
        values["shares"] = shares.tolist()
    values |= {name: getattr(layer, name).tolist() for name in ("powers", "carry") if hasattr(layer, name)}
    return [_floats(f"{symbol}_{name}", numbers) for name, numbers in values.items()]


def _floats(symbol: str, values: list[float]) -> str:
    """Hexadecimal, so that every bit arrives."""
    lines = "\n".join(_lines(f"{value.hex()}f" for value in values))
    return f"static const float {symbol}[{len(values)}] = {{\n{lines}\n}};"


def _lines(items: Iterable[str]) -> list[str]:
    lines, line = [], "   "
    for item in items:
        if len(line) + len(item) > 100:
            lines.append(line)
            line = "   "
        line += f" {item},"
    return [*lines, line]
