"""An ONNX graph written as arithmetic on named values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 8
"""Of the file: the oldest that holds `OPSET`, so that older runtimes read it too."""


@dataclass(frozen=True)
class Value:
    """A tensor of a graph: arithmetic on it adds nodes, broadcasting as NumPy does."""

    graph: Graph
    name: str

    def __add__(self, other: Value | float) -> Value:
        return self.graph.op("Add", self, other)

    def __sub__(self, other: Value | float) -> Value:
        return self.graph.op("Sub", self, other)

    def __mul__(self, other: Value | float) -> Value:
        return self.graph.op("Mul", self, other)

    def __truediv__(self, other: Value | float) -> Value:
        return self.graph.op("Div", self, other)

    def __matmul__(self, other: Value) -> Value:
        return self.graph.op("MatMul", self, other)


class Graph:
    """Nodes and constants of an ONNX graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: int, shape: list[str | int]) -> Value:
        """Declare an input; names in `shape` are sizes that a call may choose."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return Value(self, name)

    def op(self, kind: str, *inputs: Value | float, **attributes: Any) -> Value:
        """Add a node of one output; a number among `inputs` becomes a float32 constant."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: Value | float, **attributes: Any) -> list[Value]:
        """Add a node of several outputs."""
        names = [x.name if isinstance(x, Value) else self.constant(np.float32(x)).name for x in inputs]
        made = [f"{kind}_{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, made, name=made[0], **attributes))
        return [Value(self, name) for name in made]

    def constant(self, array: NDArray[Any] | np.generic, name: str = "") -> Value:
        """Return a constant; equal nameless ones are kept once."""
        array = np.asarray(array)
        if not name:
            content = "_".join(str(n) for n in array.flatten()) or "none"
            name = f"{array.dtype}_{'x'.join(str(n) for n in array.shape)}_{content}"
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(array, name)
        return Value(self, name)

    def integers(self, values: ArrayLike) -> Value:
        """Return an int64 constant: axes, shapes, indices."""
        return self.constant(np.asarray(values, np.int64))

    def sum(self, x: Value, axes: list[int], keep: bool = True) -> Value:
        """Return the sum along `axes`."""
        return self.op("ReduceSum", x, self.integers(axes), keepdims=int(keep))

    def stack(self, parts: list[Value], axis: int) -> Value:
        """Join `parts` along a new axis."""
        new = [self.op("Unsqueeze", part, self.integers([axis])) for part in parts]
        return self.op("Concat", *new, axis=axis)

    def model(self, output: Value, name: str, shape: list[str | int], metadata: dict[str, str]) -> Any:
        """Return the checked model whose one output is `output`, called `name`."""
        self.nodes.append(helper.make_node("Identity", [output.name], [name], name=name))
        graph = helper.make_graph(
            self.nodes,
            metadata["name"],
            self.inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
            list(self.constants.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        model.producer_name, model.producer_version = "mri-qpan", metadata["version"]
        model.doc_string = metadata["usage"]
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model
