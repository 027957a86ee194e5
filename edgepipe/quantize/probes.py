"""What calibration adds to a float graph, so that the runtime reduces activations where it has them.

Copying every activation out and reducing it in NumPy costs more than the network itself. Global pools
and depthwise convolutions run inside the runtime, in the blocked layout that its convolutions use, on
values that are still in the cache, on all of its threads; what comes out is small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgepipe.model import Model

if TYPE_CHECKING:
    import onnx

COUNTED = 2048
"""Values of a tensor and sample that the histogram counts, about: every `stride`-th row and column."""
_WORTH_POOLING = 1024
"""Elements of a tensor and sample below which copying it out costs less than more nodes."""
_NON_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs", "Sqrt"})
_SIGN_KEEPING = frozenset({
    "Add", "AveragePool", "Concat", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool",
    "Mul", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Ops whose output has no negative value where no input has one."""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """How one tensor is watched: the names under which its parts come out of the session.

    Attributes:
        tensor: Name of the tensor.
        values: Output that holds its values, all or a sample of them; None where nothing is counted.
        high: Output that holds the greatest value of each sample and channel; None where `values` are
            all that is needed.
        negated_low: The same of the tensor's negative; None where nothing in it is negative.
        mean: The mean of each sample and channel.
    """

    tensor: str
    values: str | None
    high: str | None = None
    negated_low: str | None = None
    mean: str | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Every name that the session returns for this tensor."""
        names = (self.values, self.high, self.negated_low, self.mean)
        return tuple(name for name in names if name is not None)


class Instrumented(msgspec.Struct, frozen=True):
    """A graph with probes.

    Attributes:
        payload: The ONNX file.
        probes: One for each tensor, in the order asked for.
        elements: Elements that the tensors have for one sample, all together.
    """

    payload: bytes
    probes: tuple[Probe, ...]
    elements: int


def instrument(model: Model, tensors: tuple[str, ...], *, histograms: bool) -> Instrumented:
    """The model's graph with outputs for what calibration wants to know of `tensors`.

    Args:
        model: A float ONNX model.
        tensors: Names of activations.
        histograms: Whether values are counted.
    """
    proto = model.to_onnx()
    writer = _Writer(proto, histograms=histograms)
    probes = tuple(writer.probe(name) for name in tensors)
    elements = sum(int(np.prod(writer.shapes.get(name, (0, 0))[1:])) for name in tensors)
    writer.add_outputs(probes)
    return Instrumented(proto.SerializeToString(), probes, elements)


class _Writer:
    """Adds probes to a graph, in place."""

    def __init__(self, proto: onnx.ModelProto, *, histograms: bool) -> None:
        self.graph = proto.graph
        self.histograms = histograms
        self.shapes = _shapes(self.graph)
        self.inputs = {value.name for value in self.graph.input}
        self.non_negative = _non_negative(self.graph)
        self.prefix = "probe"
        while any(
            name.startswith(self.prefix)
            for node in self.graph.node
            for name in [*node.output, *node.input, node.name]
        ):
            self.prefix += "_"

    def probe(self, tensor: str) -> Probe:
        shape = self.shapes.get(tensor, ())
        if tensor in self.inputs or len(shape) != 4 or not all(shape[1:]) or _size(shape) < _WORTH_POOLING:  # noqa: PLR2004
            return Probe(tensor=tensor, values=tensor)
        signed = tensor not in self.non_negative
        return Probe(
            tensor=tensor,
            values=self._sampled(tensor, shape) if self.histograms else None,
            high=self._add("GlobalMaxPool", tensor, "high"),
            negated_low=self._add("GlobalMaxPool", self._negative(tensor, shape), "low") if signed else None,
            mean=self._add("GlobalAveragePool", tensor, "mean"),
        )

    def add_outputs(self, probes: tuple[Probe, ...]) -> None:
        from onnx import helper

        present = {value.name for value in self.graph.output} | self.inputs
        wanted = dict.fromkeys(name for probe in probes for name in probe.outputs)
        self.graph.output.extend(
            helper.make_empty_tensor_value_info(name) for name in wanted if name not in present
        )

    def _add(self, op_type: str, tensor: str, suffix: str) -> str:
        from onnx import helper

        name = f"{self.prefix}.{suffix}.{tensor}"
        self.graph.node.append(helper.make_node(op_type, [tensor], [name], name=name))
        return name

    def _negative(self, tensor: str, shape: tuple[int, ...]) -> str:
        """``-tensor``, as the one op that negates in the layout of convolutions: a depthwise convolution."""
        return self._depthwise(tensor, "negative", np.full((shape[1], 1, 1, 1), -1, np.float32), stride=1)

    def _sampled(self, tensor: str, shape: tuple[int, ...]) -> str:
        """Values at evenly spaced rows and columns; the centres of tiles, as borders are unlike the rest."""
        stride = _stride(shape)
        if stride == 1:
            return tensor
        weight = np.zeros((shape[1], 1, stride, stride), np.float32)
        weight[:, :, stride // 2, stride // 2] = 1
        return self._depthwise(tensor, "sample", weight, stride=stride)

    def _depthwise(self, tensor: str, suffix: str, weight: np.ndarray, *, stride: int) -> str:
        from onnx import helper, numpy_helper

        name = f"{self.prefix}.{suffix}.{tensor}"
        self.graph.initializer.append(numpy_helper.from_array(weight, f"{name}.weight"))
        node = helper.make_node(
            "Conv", [tensor, f"{name}.weight"], [name], name=name, group=len(weight), strides=[stride, stride]
        )
        self.graph.node.append(node)
        return name


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[1:]))


def _stride(shape: tuple[int, ...]) -> int:
    """The least odd stride that leaves about `COUNTED` values: odd, to meet even and odd columns alike."""
    limit = min(shape[2:])
    stride = 1
    while _size(shape) / stride**2 > COUNTED and stride + 2 <= limit:
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
