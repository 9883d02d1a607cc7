"""A = P F S as ONNX nodes: real arithmetic, the centred DFT as products with orthogonal matrices.

Every runtime and accelerator has matrix products, few have ONNX's DFT; sizes stay free, and the matrix of the
inverse DFT is the transpose. A complex array is its real view, (..., 2), as it lies in memory.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from mri_qpan.export.graph import Graph, Value


class Encoding:
    """A^H and A^H A of one graph.

    Parameters
    ----------
    graph
        Where the nodes go.
    mps
        (batch, coil, y, x, 2).
    mask
        (batch, y, x) bool.
    """

    def __init__(self, graph: Graph, mps: Value, mask: Value) -> None:
        self._graph = graph
        sizes = [graph.op("Gather", graph.op("Shape", mask), graph.integers([i])) for i in (1, 2)]
        self._y, self._x = (_dft(graph, size) for size in sizes)
        # S z = z Re S + i z Im S, where i z is z with its parts exchanged and the first one's sign changed.
        self._exchanged = graph.integers([1, 0])
        parts = (graph.op("Gather", mps, graph.integers([i]), axis=4) for i in (0, 1))
        self._real, imaginary = parts
        self._turned = imaginary * graph.constant(np.array([-1, 1], np.float32))
        self._acquired = graph.op("Unsqueeze", mask, graph.integers([1, 4]))
        # Between the two DFTs an array is (batch, coil, x, y).
        weights = graph.op("Transpose", graph.op("Cast", mask, to=TensorProto.FLOAT), perm=[0, 2, 1])
        rows = graph.op("Reshape", graph.stack([weights, weights], 3), graph.integers([0, 0, -1]))
        self._weights = graph.op("Unsqueeze", rows, graph.integers([1]))
        self._flat = graph.integers([0, 0, 0, -1])
        self._pairs = graph.integers([0, 0, 0, -1, 2])

    def adjoint(self, kspace: Value) -> Value:
        """Return A^H y, (batch, y, x, 2)."""
        # Not times the weights: 0 times NaN is NaN.
        acquired = self._graph.op("Where", self._acquired, kspace, 0.0)
        return self._backward(self._rows(self._turn(acquired)))

    def normal(self, image: Value) -> Value:
        """Return A^H A x of (batch, y, x, 2)."""
        graph = self._graph
        image = graph.op("Unsqueeze", image, graph.integers([1]))
        coils = image * self._real + self._exchange(image) * self._turned
        along_x = graph.op("Reshape", self._rows(coils) @ self._x[0], self._pairs)
        return self._backward((self._rows(self._turn(along_x)) @ self._y[0]) * self._weights)

    def _backward(self, kspace: Value) -> Value:
        """Return the image of samples (batch, coil, x, 2 y), zero where none were acquired."""
        graph = self._graph
        along_y = graph.op("Reshape", kspace @ self._y[1], self._pairs)
        coils = graph.op("Reshape", self._rows(self._turn(along_y)) @ self._x[1], self._pairs)
        return graph.sum(coils * self._real - self._exchange(coils) * self._turned, [1], keep=False)

    def _rows(self, x: Value) -> Value:
        return self._graph.op("Reshape", x, self._flat)

    def _turn(self, x: Value) -> Value:
        return self._graph.op("Transpose", x, perm=[0, 1, 3, 2, 4])

    def _exchange(self, x: Value) -> Value:
        return self._graph.op("Gather", x, self._exchanged, axis=-1)


def _dft(graph: Graph, size: Value) -> tuple[Value, Value]:
    """Return the centred orthonormal DFT of `size` (1,) points, and its inverse.

    Each is a matrix (2 size, 2 size) that rows of interleaved real and imaginary parts are multiplied with.
    Angles are reduced as integers: float32 would lose digits at large ones.
    """
    n = graph.op("Squeeze", size)
    half = graph.op("Div", n, graph.integers(2))
    index = graph.op("Sub", graph.op("Range", graph.integers(0), n, graph.integers(1)), half)
    column, row = (graph.op("Unsqueeze", index, graph.integers([axis])) for axis in (1, 0))
    turns = graph.op("Sub", graph.op("Mod", graph.op("Add", column * row, half), n), half)
    points = graph.op("Cast", n, to=TensorProto.FLOAT)
    angle = graph.op("Cast", turns, to=TensorProto.FLOAT) * (2 * math.pi) / points
    root = graph.op("Sqrt", points)
    cosine, sine = graph.op("Cos", angle) / root, graph.op("Sin", angle) / root
    from_real = graph.stack([cosine, graph.op("Neg", sine)], 2)
    from_imaginary = graph.stack([sine, cosine], 2)
    twice = graph.op("Mul", size, graph.integers([2]))
    shape = graph.op("Concat", twice, twice, axis=0)
    matrix = graph.op("Reshape", graph.stack([from_real, from_imaginary], 1), shape)
    return matrix, graph.op("Transpose", matrix, perm=[1, 0])
