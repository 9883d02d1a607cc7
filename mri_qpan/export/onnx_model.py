"""A whole reconstruction as one ONNX model: `networks.pan` once more, in real arithmetic, weights within.

It follows `ProximalNetwork._unfold` and `_advance` line by line; `mri_qpan.export.check` holds the two equal.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from onnx import TensorProto

from mri_qpan import quantize
from mri_qpan.export.encoding import Encoding
from mri_qpan.export.graph import Graph, Value
from mri_qpan.networks.consistency import DAMPING
from mri_qpan.networks.convolution import Convolution
from mri_qpan.networks.floor import SMALLEST_SHARE, SOFT
from mri_qpan.networks.layer import TYPICAL_MISMATCH, Layer
from mri_qpan.networks.pan import ProximalNetwork
from mri_qpan.scaling import LARGEST

EACH = [1, 2, 3]
"""Axes of an image (batch, y, x, 2) within one of the batch."""

TINY = float(torch.finfo(torch.float32).tiny)


def build(network: ProximalNetwork, metadata: dict[str, str]) -> Any:
    """Return the ONNX model of `network`.

    Inputs `kspace` and `mps` (batch, coil, y, x, 2) float32 and `mask` (batch, y, x) bool, output `image`
    (batch, y, x, 2) float32, every size but the 2 free.

    Parameters
    ----------
    network
        For complex images.
    metadata
        The file's own, `name`, `version` and `usage` among them.
    """
    graph = Graph()
    kspace = graph.input("kspace", TensorProto.FLOAT, ["batch", "coil", "y", "x", 2])
    mps = graph.input("mps", TensorProto.FLOAT, ["batch", "coil", "y", "x", 2])
    mask = graph.input("mask", TensorProto.BOOL, ["batch", "y", "x"])
    encoding = Encoding(graph, mps, mask)
    adjoint = encoding.adjoint(kspace)
    scale = _robust_scale(graph, adjoint)
    image = _Unfolding(graph, encoding, network, adjoint / scale).run()
    return graph.model(image * scale, "image", ["batch", "y", "x", 2], metadata)


class _Unfolding:
    """The nodes of one network on an A^H y of unit scale."""

    def __init__(self, graph: Graph, encoding: Encoding, network: ProximalNetwork, target: Value) -> None:
        self._graph = graph
        self._encoding = encoding
        self._network = network
        self._target = target
        self._power = self._dot(target, target)

    def run(self) -> Value:
        graph, config, target = self._graph, self._network.config, self._target
        normal = self._encoding.normal
        x = target
        if config.start:
            x = target / (1 + DAMPING)
            residual = target - normal(x) - x * DAMPING
            x = self._solve(x, residual, graph.constant(np.float32(DAMPING)), config.start, None)
        apart = gain = gain_before = carried = lift = None
        for index, layer in enumerate(self._network.layers):
            assert isinstance(layer, Layer)
            r = x
            if not config.consistency:
                r = x - (normal(x) - target) * float(layer.step())
            if config.adaptive and apart is not None:
                power = float(layer.powers[1])
                gain_before, gain = gain, graph.op("Exp", (apart - TYPICAL_MISMATCH) * power)
                r = r / gain
                if carried is not None:
                    carried = carried * (gain_before / gain if gain_before else _one(graph) / gain)
            x, features = self._proximal_step(layer, f"layers.{index}", r, carried)
            carried = features if config.carry else None
            if gain is not None:
                x = x * gain
            if config.consistency:
                residual = target - normal(x)
                applied = normal(residual)
                apart = self._mismatch(residual)
                conditioned = self._conditioning(residual, applied)
                if config.floor and index + 1 == config.layers:
                    lift = self._floor(residual, conditioned, x)
                mu = self._trust(layer, apart, conditioned)
                x = self._solve(x, residual, mu, config.consistency, applied)
        return x if lift is None else self._lifted(x, lift)

    def _proximal_step(self, layer: Layer, name: str, r: Value, carried: Value | None) -> tuple[Value, Value]:
        graph, config = self._graph, self._network.config
        channels = graph.op("Transpose", r, perm=[0, 3, 1, 2])

        def convolve(x: Value, kind: str) -> Value:
            convolution = layer.convolutions[kind]
            assert isinstance(convolution, Convolution)
            weight = _weight(graph, convolution, f"{name}.{kind}")
            return graph.op("Conv", x, weight, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

        residual = config.layer == "pan+"
        z = convolve(channels, "D") if residual else channels
        if carried is not None:
            gate = layer.carry.detach().numpy().reshape(1, -1, 1, 1)
            z = z + carried * graph.constant(gate, f"{name}.carry")
        features = convolve(graph.op("Relu", convolve(z, "H1")), "H2")
        shrunk = self._proximal_average(layer, features)
        back = convolve(graph.op("Relu", convolve(shrunk, "T1")), "T2")
        image = channels + convolve(back, "G") if residual else back
        return graph.op("Transpose", image, perm=[0, 2, 3, 1]), back

    def _proximal_average(self, layer: Layer, x: Value) -> Value:
        graph, penalties = self._graph, self._network.config.penalties
        thresholds, *shapes = layer.thresholds()
        gamma, a = (float(shape) for shape in shapes)
        magnitude = graph.op("Abs", x)
        total: Value | None = None
        shares = layer.shares()
        weights = [1 / len(penalties)] * len(penalties) if shares is None else shares.tolist()
        for penalty, threshold, weight in zip(penalties, thresholds.tolist(), weights, strict=True):
            part = graph.op("Relu", magnitude - threshold)
            if penalty == "mcp":
                part = graph.op("Min", magnitude, part * (gamma / (gamma - 1)))
            elif penalty == "scad":
                middle = (magnitude * (a - 1) - a * threshold) / (a - 2)
                part = graph.op("Min", magnitude, graph.op("Max", part, middle))
            total = part * weight if total is None else total + part * weight
        assert total is not None
        return total * graph.op("Sign", x)

    def _solve(self, x: Value, residual: Value, mu: Value, iterations: int, applied: Value | None) -> Value:
        """Conjugate gradients on (A^H A + mu) x = ... from x, as `networks.consistency`."""
        tiny = self._power * 1e-12 + TINY
        direction, power = residual, self._dot(residual, residual)
        for iteration in range(iterations):
            if applied is None or iteration:
                applied = self._encoding.normal(direction)
            curvature = self._dot(direction, applied) + mu * self._dot(direction, direction) + tiny
            step = power / curvature
            x = x + step * direction
            if iteration + 1 < iterations:
                residual = residual - step * (applied + mu * direction)
                previous, power = power, self._dot(residual, residual)
                direction = residual + power / (previous + tiny) * direction
        return x

    def _trust(self, layer: Layer, apart: Value, conditioned: Value) -> Value:
        if not self._network.config.adaptive:
            return self._graph.constant(np.float32(float(layer.step())))
        mismatch, _, conditioning = layer.powers.tolist()
        far = (apart - TYPICAL_MISMATCH) * mismatch + conditioned * conditioning
        return self._graph.op("Softplus", far + float(layer.raw_step))

    def _mismatch(self, residual: Value) -> Value:
        ratio = self._dot(residual, residual) / (self._power + TINY)
        return self._graph.op("Log", self._graph.op("Max", ratio, 1e-8)) * 0.5

    def _conditioning(self, residual: Value, applied: Value) -> Value:
        share = (self._dot(residual, applied) + TINY) / (self._dot(residual, residual) + TINY)
        return self._graph.op("Log", self._graph.op("Clip", share, math.exp(-5.0), 1.0))

    def _floor(self, residual: Value, conditioned: Value, image: Value) -> Value:
        graph = self._graph
        factor, power = self._network.floor.tolist()
        size = graph.op("Shape", image, start=1, end=3)
        pixels = graph.op("Cast", graph.op("ReduceProd", size), to=TensorProto.FLOAT)
        share = self._share_acquired(image)
        missing = (_one(graph) - share) / share
        learned = graph.op("Exp", conditioned * power + factor)
        return learned * (self._dot(residual, residual) / pixels) * missing

    def _share_acquired(self, image: Value) -> Value:
        graph = self._graph
        flat = graph.op("Reshape", graph.sum(image * image, [3], keep=False), graph.integers([0, -1]))
        place = graph.op("ArgMax", flat, axis=1, keepdims=0)
        pixels = graph.op("Shape", flat, start=1, end=2)
        on = graph.constant(np.array([0, 1], np.float32))
        point = graph.op("OneHot", place, pixels, on, axis=-1)
        point = graph.op("Reshape", point, graph.op("Shape", image, start=0, end=3))
        point = graph.stack([point, point * 0.0], 3)
        share = self._dot(point, self._encoding.normal(point))
        return graph.op("Clip", share, SMALLEST_SHARE, 1.0)

    def _lifted(self, image: Value, floor: Value) -> Value:
        power = self._graph.sum(image * image, [3])
        ratio = (power + floor + TINY) / (power + floor * SOFT**2 + TINY)
        return image * self._graph.op("Sqrt", ratio)

    def _dot(self, a: Value, b: Value) -> Value:
        return self._graph.sum(a * b, EACH)


def _one(graph: Graph) -> Value:
    return graph.constant(np.float32(1))


def _weight(graph: Graph, convolution: Convolution, name: str) -> Value:
    """Return a weight: K-bit ones as int8 times their scales, so that a runtime sees the integers."""
    weight = convolution.weight.detach()
    if convolution.bits is None:
        return graph.constant(weight.numpy(), name)
    integers = quantize.levels(weight, convolution.scale, convolution.bits).to(torch.int8)
    scale = convolution.scale.flatten().expand(len(weight)).contiguous()
    return graph.op(
        "DequantizeLinear",
        graph.constant(integers.numpy(), f"{name}.integers"),
        graph.constant(scale.numpy(), f"{name}.scale"),
        axis=0,
    )


def _robust_scale(graph: Graph, image: Value) -> Value:
    """Return what `scaling.robust_scale` does, (batch, 1, 1, 1)."""
    # Over the larger part, whose square alone could overflow or vanish.
    larger = graph.op("ReduceMax", graph.op("Abs", image), graph.integers([3]), keepdims=1)
    larger = graph.op("Where", graph.op("Equal", larger, 0.0), 1.0, larger)
    unit = image / larger
    magnitude = larger * graph.op("Sqrt", graph.sum(unit * unit, [3]))
    magnitude = graph.op("Reshape", magnitude, graph.integers([0, -1]))
    pixels = graph.op("Shape", magnitude, start=1, end=2)
    rounded = graph.op("Add", pixels, graph.integers([LARGEST // 2]))
    rank = graph.op("Max", graph.op("Div", rounded, graph.integers([LARGEST])), graph.integers([1]))
    largest, _ = graph.ops("TopK", 2, magnitude, rank, axis=1)
    scale = graph.op("ReduceMin", largest, graph.integers([1]), keepdims=1)
    zero = graph.op("Equal", scale, 0.0)
    scale = graph.op("Where", zero, 1.0, scale)
    return graph.op("Unsqueeze", scale, graph.integers([2, 3]))
