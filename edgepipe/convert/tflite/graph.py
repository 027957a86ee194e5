"""The light graph between ONNX and TFLite: nodes over named values, quantization as a note on a value.

QuantizeLinear and DequantizeLinear do not exist here: a value that passes through such a pair carries
their scale and zero point, as a TFLite tensor does.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.graph.integers import limits

Array = NDArray[Any]


class Grid(msgspec.Struct, frozen=True):
    """The integers that stand for reals: ``real = (q - zero_point) * scale``.

    Attributes:
        scale: Step; one for the whole tensor, or one for each index of `axis`. Exact float32 values.
        zero_point: The integer that stands for 0.0, likewise.
        axis: Axis along which there is one step each; None for one step in all.
        bits: 8 or 16; 4 for narrow weights, 32 or 64 for biases.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None
    bits: int = 8

    @property
    def dtype(self) -> str:
        """Name of the integers' type: "int8"."""
        return f"int{self.bits}"

    @property
    def first(self) -> int:
        """The least integer: -128 for 8 bits."""
        return limits(self.bits)[0]

    @property
    def last(self) -> int:
        """The greatest integer: 127 for 8 bits."""
        return limits(self.bits)[1]

    @property
    def low(self) -> float:
        """The least real of a per-tensor grid."""
        return (self.first - self.zero_point[0]) * self.scale[0]

    @property
    def high(self) -> float:
        """The greatest real of a per-tensor grid."""
        return (self.last - self.zero_point[0]) * self.scale[0]

    def saturates_at(self, low: float, high: float) -> bool:
        """Whether clipping to [low, high] changes no integer of this per-tensor grid."""
        steps_below = np.rint(np.float64(low) / self.scale[0]) + self.zero_point[0]
        steps_above = np.rint(np.float64(high) / self.scale[0]) + self.zero_point[0]
        return bool(steps_below <= self.first and steps_above >= self.last)

    def quantized(self, real: Array) -> Array:
        """The nearest integers, half to even and saturated, as QuantizeLinear has them: of the same shape."""
        scale, zero_point = self.along(real.ndim)
        steps = np.rint(real / np.where(scale > 0, scale, 1)) + zero_point
        return np.asarray(
            np.clip(steps, self.first, self.last).astype("int8" if self.bits < 8 else self.dtype)
        )

    def along(self, rank: int) -> tuple[Array, Array]:
        """Scale (float64) and zero point (int64), shaped to broadcast against a tensor of that rank."""
        shape = [1] * rank
        if self.axis is not None:
            shape[self.axis] = -1
        return np.array(self.scale).reshape(shape), np.array(self.zero_point).reshape(shape)


class Value(msgspec.Struct, frozen=True, eq=False):
    """What flows along an edge of the graph, or a constant.

    Attributes:
        name: Unique in the graph.
        shape: Dimensions in the ONNX layout, batch size 1.
        dtype: NumPy's name of what it stands for: "float32" also where it is quantized.
        data: Of a constant: its elements; integers where `grid` is set, int8 for 4 bits. None otherwise.
        grid: How it is quantized; None for a float.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: Array | None = None
    grid: Grid | None = None

    def real(self) -> Array:
        """The elements of a constant as it stands for them: float64 where quantized.

        Raises:
            TypeError: It is no constant.
        """
        if self.data is None:
            raise TypeError(f"{self.name} is no constant")
        if self.grid is None:
            return self.data
        scale, zero_point = self.grid.along(self.data.ndim)
        return np.asarray((self.data.astype(np.int64) - zero_point) * scale)


class Node(msgspec.Struct, frozen=True, eq=False):
    """One op.

    Attributes:
        op: ONNX's name of the op.
        name: For people; where ONNX gave none, that of the first output.
        inputs: Names of values; "" where an optional input is left out.
        outputs: Names of values.
        settings: Attributes, and what ONNX passes as constant inputs of shape kind (axes, pads, ...).
        opset: Version of the ONNX op set, where meanings changed between versions.
        activation: TFLite's name of the activation that was fused behind it.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: dict[str, Any]
    opset: int
    activation: str = "NONE"


class Graph(msgspec.Struct, frozen=True, eq=False):
    """A model with batch size 1, constants folded, in topological order.

    Attributes:
        nodes: In an order in which inputs precede their readers.
        values: Every value by name.
        inputs: Names of the values that the caller gives.
        outputs: Port name and value name of each result.
    """

    nodes: tuple[Node, ...]
    values: dict[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, str], ...]

    def readers(self) -> dict[str, list[Node]]:
        """The nodes that read each value, in order."""
        found: dict[str, list[Node]] = {name: [] for name in self.values}
        for node in self.nodes:
            for name in node.inputs:
                if name:
                    found[name].append(node)
        return found

    def makers(self) -> dict[str, Node]:
        """The node that makes each value."""
        return {name: node for node in self.nodes for name in node.outputs}

    def private(self) -> set[str]:
        """Values that exactly one node reads once and that are no result: free to be fused away."""
        results = {value for _, value in self.outputs}
        return {name for name, nodes in self.readers().items() if len(nodes) == 1 and name not in results}

    def quantized(self) -> bool:
        """Whether any value that is no constant is quantized."""
        return any(value.grid is not None and value.data is None for value in self.values.values())

    def pruned(self) -> Graph:
        """Without the nodes and values that no result depends on."""
        needed = {value for _, value in self.outputs}
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                kept.append(node)
                needed.update(name for name in node.inputs if name)
        kept.reverse()
        made = {name for node in kept for name in node.outputs}
        values = {
            name: value
            for name, value in self.values.items()
            if name in needed or name in made or name in self.inputs
        }
        return msgspec.structs.replace(self, nodes=tuple(kept), values=values)
