"""What calibration adds to a float graph, so that the runtime reduces activations where it has them.

Copying every activation out and reducing it in NumPy costs more than the network itself. Global pools
and depthwise convolutions run inside the runtime, in the blocked layout that its convolutions use, on
values that are still in the cache, on all of its threads; what comes out is small.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.graph import edit
from edgepipe.model import Model

if TYPE_CHECKING:
    import onnx

COUNTED = 1024
"""Values of a tensor and sample that the histogram counts, at most and about: evenly spaced ones."""
_WORTH_POOLING = 1024
"""Elements of a tensor and sample below which copying it out costs less than more nodes."""
_BLOCK = 16
"""Channels that the runtime's convolutions keep side by side; what is no multiple is laid out anew."""
_NON_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs", "Sqrt"})
_SIGN_KEEPING = frozenset({
    "Add", "AveragePool", "Concat", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool",
    "Mul", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Ops whose output has no negative value where no input has one."""


class Part(msgspec.Struct, frozen=True):
    """One output of the session that holds the same figure of several tensors: [samples, channels, 1, 1].

    Attributes:
        output: Its name.
        tensors: The tensors, in the order of their channels.
        starts: First channel of each.
    """

    output: str
    tensors: tuple[str, ...]
    starts: tuple[int, ...]


class Instrumented(msgspec.Struct, frozen=True, kw_only=True):
    """A graph with probes.

    Attributes:
        payload: The ONNX file.
        whole: Tensors that come out as they are, to be reduced by the reader.
        sampled: Output that holds evenly spaced values of a tensor, by tensor, of those reduced inside.
        high: Greatest values of each sample and channel.
        negated_low: The same of the negatives, where a tensor has negative values.
        mean: Means of each sample and channel, where wanted.
        elements: Elements that each tensor has for one sample; 0 where its shape is not known.
    """

    payload: bytes
    whole: tuple[str, ...]
    sampled: Mapping[str, str]
    high: tuple[Part, ...]
    negated_low: tuple[Part, ...]
    mean: tuple[Part, ...]
    elements: Mapping[str, int]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Every name that the session has to return."""
        parts = [part.output for part in (*self.high, *self.negated_low, *self.mean)]
        return tuple(dict.fromkeys([*self.whole, *self.sampled.values(), *parts]))


def instrument(
    model: Model, tensors: Sequence[str], *, histograms: bool, means: Collection[str]
) -> Instrumented:
    """The model's graph with outputs for what calibration wants to know of `tensors`.

    Args:
        model: A float ONNX model.
        tensors: Names of activations.
        histograms: Whether values are counted.
        means: Those whose channel means are wanted along axis 1.
    """
    proto = model.to_onnx()
    writer = _Writer(proto.graph)
    pooled = [name for name in tensors if writer.is_worth_pooling(name)]
    signed = sorted(set(pooled) - _non_negative(proto.graph), key=pooled.index)
    negatives = {name: writer.negative(name) for name in signed}
    graph = Instrumented(
        payload=b"",
        whole=tuple(name for name in tensors if name not in pooled),
        sampled={name: writer.sampled(name) for name in pooled} if histograms else {},
        high=writer.pool("GlobalMaxPool", "high", {name: name for name in pooled}),
        negated_low=writer.pool("GlobalMaxPool", "low", negatives),
        mean=writer.pool("GlobalAveragePool", "mean", {name: name for name in pooled if name in means}),
        elements={name: _size(writer.shapes.get(name, (0, 0))) for name in tensors},
    )
    edit.return_also(proto.graph, graph.outputs)
    return msgspec.structs.replace(graph, payload=proto.SerializeToString())


class _Writer:
    """Adds probes to a graph, in place."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.shapes = _shapes(graph)
        self.inputs = {value.name for value in graph.input}
        self.prefix = "probe"
        taken = {name for node in graph.node for name in (node.name, *node.output)}
        while any(name.startswith(self.prefix) for name in taken):
            self.prefix += "_"

    def is_worth_pooling(self, tensor: str) -> bool:
        shape = self.shapes.get(tensor, ())
        image = tensor not in self.inputs and len(shape) == len("NCHW") and all(shape[1:])
        # few channels are no block, and a depthwise convolution without blocks is slow
        return image and shape[1] >= _BLOCK // 2 and _size(shape) >= _WORTH_POOLING

    def pool(self, op_type: str, suffix: str, sources: Mapping[str, str]) -> tuple[Part, ...]:
        """Pools a source for each tensor, and joins the results: an output each would cost more."""
        parts = []
        for blocked in (True, False):
            tensors = [name for name in sources if (self.shapes[name][1] % _BLOCK == 0) == blocked]
            if tensors:
                pooled = [self._add(op_type, [sources[name]], f"{suffix}.{name}") for name in tensors]
                output = self._add("Concat", pooled, f"{suffix}.{'blocks' if blocked else 'rest'}", axis=1)
                ends = np.cumsum([self.shapes[name][1] for name in tensors]).tolist()
                parts.append(Part(output, tuple(tensors), (0, *ends[:-1])))
        return tuple(parts)

    def negative(self, tensor: str) -> str:
        """``-tensor``, by the one op that negates in the layout of convolutions: a depthwise convolution."""
        return self._depthwise(tensor, "negative", -np.ones((self.shapes[tensor][1], 1, 1, 1), np.float32), 1)

    def sampled(self, tensor: str) -> str:
        """Values at evenly spaced rows and columns, not the outermost ones, which are unlike the rest."""
        shape = self.shapes[tensor]
        stride = _stride(shape)
        if stride == 1:
            return tensor
        weight = np.zeros((shape[1], 1, 3, 3), np.float32)
        weight[:, :, 1, 1] = 1
        return self._depthwise(tensor, "sample", weight, stride)

    def _depthwise(self, tensor: str, suffix: str, weight: NDArray[np.float32], stride: int) -> str:
        from onnx import numpy_helper

        constant = f"{self.prefix}.{suffix}.{tensor}.weight"
        self.graph.initializer.append(numpy_helper.from_array(weight, constant))
        return self._add(
            "Conv", [tensor, constant], f"{suffix}.{tensor}", group=len(weight), strides=[stride, stride]
        )

    def _add(self, op_type: str, inputs: list[str], name: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{self.prefix}.{name}"
        self.graph.node.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[1:]))


def _stride(shape: tuple[int, ...]) -> int:
    """The least odd stride that leaves about `COUNTED` values: odd, to meet even and odd columns alike."""
    stride = 1
    while _size(shape) / stride**2 > COUNTED and stride + 2 <= min(shape[2:]):
        stride += 2
    return stride


def _shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Shapes of float tensors; 0 stands for a size that is not known."""
    return {
        value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
        for value in [*graph.value_info, *graph.input, *graph.output]
        if value.type.tensor_type.elem_type == 1
    }


def _non_negative(graph: onnx.GraphProto) -> set[str]:
    """Tensors that hold no negative value, whatever the input."""
    from onnx import numpy_helper

    constants: Mapping[str, onnx.TensorProto] = {each.name: each for each in graph.initializer}
    found: set[str] = set()
    for node in graph.node:
        if node.op_type == "Clip":
            low = constants.get(node.input[1]) if len(node.input) > 1 else None
            sure = low is not None and bool(numpy_helper.to_array(low) >= 0)
        elif node.op_type in ("Add", "Mul", "Concat"):
            sure = all(name in found for name in node.input)
        else:
            sure = node.op_type in _NON_NEGATIVE or (node.op_type in _SIGN_KEEPING and node.input[0] in found)
        if sure:
            found.update(node.output)
    return found
