"""A quantized graph beside the float graph that it was made from: where both compute the same tensor.

A junction is a tensor of the float graph that the quantized graph computes too, rounded. Between
junctions each graph has its own nodes; at junctions they can be joined, so that any layer of one
runs inside the other (`edgepipe.quantize.explain.splice`).

Works on the QDQ form of any tool: a tensor is recognized by its name, which quantizers keep, with what
some append to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.errors import ModelError
from edgepipe.graph.links import Links
from edgepipe.graph.moving import MOVING
from edgepipe.graph.opset import standard_opset
from edgepipe.model import Model
from edgepipe.quantize.grid import Grid

if TYPE_CHECKING:
    import onnx

CLIPPING = ("Relu", "Clip")
_SUFFIX = re.compile(r"(_QuantizeLinear_Input|_QuantizeInput|_output_quantized|\.float|\.kept_float)$")
"""What quantizers, and artifacts, append to the name of a tensor on its way into QuantizeLinear."""


class Constant(msgspec.Struct, frozen=True, kw_only=True):
    """A weight as the quantized graph holds it.

    Attributes:
        integers: Of any integer type and shape.
        scales: float32 [channels], or [1].
        zero_points: Shaped as the scales.
        axis: Axis of the channels.
        real: The float weight, shaped as the integers; None where it is not known.
    """

    integers: NDArray[np.integer]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.integer]
    axis: int
    real: NDArray[np.float32] | None

    def dequantized(self) -> NDArray[np.float32]:
        """The weights that the integers stand for."""
        shape = [1] * self.integers.ndim
        if self.scales.size > 1:
            shape[self.axis] = -1
        steps = self.integers.astype(np.float32) - self.zero_points.reshape(shape).astype(np.float32)
        return np.asarray(steps * self.scales.reshape(shape), np.float32)


class Junction(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that both graphs compute.

    Attributes:
        name: Its name in the float graph.
        source: What is rounded, in the quantized graph; the same as `rounded` where no grid follows.
        rounded: What the quantized graph's next layers take.
        layer: The layer that computes it, as overrides name it.
        op: The ONNX type of that layer; "Input" for a graph input.
        grid: None where it stays in float.
        weight: The layer's weight; None where it has no quantized one.
        readers: The layers that read it, as overrides name them, also behind ops that only move elements.
    """

    name: str
    source: str
    rounded: str
    layer: str
    op: str
    grid: Grid | None
    weight: Constant | None
    readers: tuple[str, ...]


class Pairing(msgspec.Struct, frozen=True):
    """Two graphs and their junctions.

    Attributes:
        reference: The float graph.
        quantized: The quantized graph, in the same opset.
        junctions: In order of computation.
    """

    reference: Any
    quantized: Any
    junctions: tuple[Junction, ...]


def pair(reference: Model, quantized: Model) -> Pairing:
    """Finds the junctions of a quantized model with its float model.

    Args:
        reference: Float ONNX.
        quantized: The same model in QDQ form, by any tool.

    Raises:
        ModelError: No tensor of the one is recognized in the other.
    """
    first, second = reference.to_onnx(), quantized.to_onnx()
    first = _in_opset_of(second, first)
    plain, links = Links(first.graph), Links(second.graph)
    junctions = tuple(_junctions(second.graph, links, plain))
    if not junctions:
        raise ModelError(
            "the quantized model shares no tensor with the float model",
            where=quantized.name,
            got=f"tensors such as {', '.join(list(links.producer)[:3])}",
            remedy="name the float model that it was made from",
        )
    return Pairing(first, second, junctions)


def _in_opset_of(other: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    versions = [standard_opset(proto) for proto in (other, model)]
    if versions[0] <= versions[1]:
        return model
    try:
        return onnx.version_converter.convert_version(model, versions[0])
    except Exception as error:  # the converter raises what it likes
        raise ModelError(
            "the float model cannot be brought to the opset of the quantized one",
            got=f"opset {versions[1]}, not {versions[0]}: {str(error).splitlines()[0]}",
            remedy=f"export the float model with opset {versions[0]}",
        ) from error


def _junctions(graph: onnx.GraphProto, links: Links, plain: Links) -> list[Junction]:
    known = plain.producer.keys() | plain.inputs
    found: list[Junction] = []
    taken: set[str] = set()
    for node in graph.node:
        source, rounded, grid = _rounding(node, links)
        if not source or source in taken:
            continue
        name = _name_in(known, rounded, source)
        origin = _origin(source, links)
        if name is None or (origin is None and source not in links.inputs):
            continue
        taken |= {source, rounded}
        weight = None if origin is None else _weight(origin, links, plain, name)
        if grid is None and weight is None:
            continue
        found.append(
            Junction(
                name=name,
                source=source,
                rounded=rounded,
                layer=source if origin is None else _layer_name(origin, plain, name),
                op="Input" if origin is None else origin.op_type,
                grid=grid,
                weight=weight,
                readers=_readers(plain, name),
            )
        )
    return found


def _rounding(node: onnx.NodeProto, links: Links) -> tuple[str, str, Grid | None]:
    """What is rounded and what comes out, for a DequantizeLinear of an activation or an op without one."""
    if node.op_type != "DequantizeLinear":
        quantized = any(
            taker.op_type == "QuantizeLinear" or taker.op_type in CLIPPING
            for taker in _takers_behind_copies(node.output[0], links)
        )
        return ("", "", None) if quantized else (node.output[0], node.output[0], None)
    producer = links.producer.get(node.input[0])
    if producer is None or producer.op_type != "QuantizeLinear" or _is_inner(node, links):
        return "", "", None
    if producer.input[0] in links.constants or _is_dequantized(producer.input[0], links):
        return "", "", None
    return producer.input[0], node.output[0], _grid(node, links)


def _is_copy(node: onnx.NodeProto) -> bool:
    """Whether a node is the Max that stands in artifacts behind what is to stay in float."""
    return node.op_type == "Max" and len(node.input) == 1


def _takers_behind_copies(name: str, links: Links) -> list[onnx.NodeProto]:
    takers = []
    for taker in links.takers(name):
        takers += _takers_behind_copies(taker.output[0], links) if _is_copy(taker) else [taker]
    return takers


def _is_dequantized(name: str, links: Links) -> bool:
    """Whether a tensor was rounded already: what follows moves it to another grid for one reader."""
    producer = links.producer.get(name)
    return producer is not None and producer.op_type == "DequantizeLinear"


def _is_inner(node: onnx.NodeProto, links: Links) -> bool:
    """Whether rounding stands before an activation function, which is followed by the same rounding."""
    grid, takers = _grid(node, links), links.takers(node.output[0])
    quantizer = links.producer.get(node.input[0])
    return (
        node.output[0] not in links.outputs
        and bool(takers)
        and (quantizer is None or quantizer.input[0] not in links.inputs)  # there, no layer comes before
        and all(
            taker.op_type in CLIPPING
            and [(each.op_type, _grid(each, links)) for each in links.takers(taker.output[0])]
            == [("QuantizeLinear", grid)]
            for taker in takers
        )
    )


def _grid(node: onnx.NodeProto, links: Links) -> Grid | None:
    scale = links.array(node.input[1])
    zero_point = links.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if scale is None or scale.size != 1:
        return None
    kind = np.dtype(np.uint8) if zero_point is None else zero_point.dtype
    bits = 8 * kind.itemsize
    # The same grid, told in signed integers.
    shift = 1 << bits - 1 if kind.kind == "u" else 0
    point = 0 if zero_point is None else int(zero_point.reshape(()))
    return Grid(float(scale.reshape(())), point - shift, bits)


def _name_in(known: set[str], *names: str) -> str | None:
    for name in names:
        for candidate in (name, _SUFFIX.sub("", name)):
            if candidate in known:
                return candidate
    return None


def _origin(source: str, links: Links) -> onnx.NodeProto | None:
    """The op that computes a tensor, behind activation functions and the rounding before them."""
    node: onnx.NodeProto | None = links.producer.get(source)
    while node is not None:
        if node.op_type == "DequantizeLinear":
            behind = links.producer.get(node.input[0])
            node = None if behind is None else links.producer.get(behind.input[0])
        elif _is_copy(node):
            node = links.producer.get(node.input[0])
        elif node.op_type in CLIPPING and node.input[0] in links.producer:
            before = links.producer[node.input[0]]
            if before.op_type == "DequantizeLinear" and not _is_inner(before, links):
                return node
            node = before
        else:
            return node
    return None


def _weight(node: onnx.NodeProto, links: Links, plain: Links, name: str) -> Constant | None:
    """The weight of a linear op, with the float weight of the op that computes the same junction."""
    if node.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"} or len(node.input) < 2:
        return None
    dequantizer = links.producer.get(node.input[1])
    if dequantizer is None or dequantizer.op_type not in {"DequantizeLinear", "Mul"}:
        return None
    integers, scales = links.array(dequantizer.input[0]), links.array(dequantizer.input[1])
    if integers is None or scales is None or integers.dtype.kind == "f":
        return None
    points = None
    if len(dequantizer.input) > 2 and dequantizer.input[2]:
        points = links.array(dequantizer.input[2])
    axis = next((each.i for each in dequantizer.attribute if each.name == "axis"), 1)
    if dequantizer.op_type == "Mul" and scales.ndim == integers.ndim:
        axis = int(np.argmax(scales.shape))
    if scales.size == 1:
        axis = _channel_axis(node, integers.ndim)
    return Constant(
        integers=integers.astype(np.int32),  # from int4 too, which NumPy itself does not know
        scales=scales.reshape(-1),
        zero_points=np.zeros(scales.size, np.int32)
        if points is None
        else points.reshape(-1).astype(np.int32),
        axis=axis,
        real=_float_weight(plain, name, node.op_type, integers.shape),
    )


def _channel_axis(node: onnx.NodeProto, rank: int) -> int:
    """Axis of the output channels in a weight that has one scale for all of them."""
    transposed = any(each.name == "transB" and each.i for each in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else min(1, rank - 1)


def _float_origin(plain: Links, name: str) -> onnx.NodeProto | None:
    """The op of the float graph that computes a junction, behind activation functions."""
    node: onnx.NodeProto | None = plain.producer.get(name)
    while node is not None and node.op_type in CLIPPING and node.input[0] in plain.producer:
        node = plain.producer[node.input[0]]
    return node


def _layer_name(origin: onnx.NodeProto, plain: Links, name: str) -> str:
    """What overrides call a layer: its name in the float graph, or that of its first output there."""
    node = _float_origin(plain, name)
    known = node if node is not None and node.op_type == origin.op_type else origin
    return str(known.name or known.output[0])


def _readers(plain: Links, name: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    waiting = [name]
    while waiting:
        for node in plain.takers(waiting.pop(0)):
            label = str(node.name or node.output[0])
            if label not in found and (node.op_type in MOVING or node.op_type in CLIPPING):
                waiting += list(node.output)
            found[label] = None
    return tuple(found)


def _float_weight(
    plain: Links, name: str, op_type: str, shape: tuple[int, ...]
) -> NDArray[np.float32] | None:
    node = _float_origin(plain, name)
    if node is None or node.op_type != op_type:
        return None
    array = plain.array(node.input[1])
    return array if array is not None and array.shape == shape else None


def rounds_nothing(junction: Junction, grids: Mapping[str, Grid | None], inputs: list[str]) -> bool:
    """Whether a layer only moves elements that are on its grid already, or cuts them off."""
    return (junction.op in MOVING or junction.op in CLIPPING) and all(
        grids.get(name) == junction.grid for name in inputs
    )


def same_decisions(first: Pairing, second: Pairing) -> bool:
    """Whether two quantized graphs have the same grids and integer weights, whatever form they are in."""
    ours, theirs = ({each.name: each for each in pairing.junctions} for pairing in (first, second))
    return ours.keys() == theirs.keys() and all(
        each.grid == theirs[name].grid and _same_weight(each.weight, theirs[name].weight)
        for name, each in ours.items()
    )


def same_grids(first: Pairing, second: Pairing) -> bool:
    """Whether two quantized graphs put the same tensors on the same grids."""
    ours, theirs = ({each.name: each.grid for each in pairing.junctions} for pairing in (first, second))
    return ours == theirs


def _same_weight(first: Constant | None, second: Constant | None) -> bool:
    if first is None or second is None:
        return first is second
    return np.array_equal(first.integers, second.integers) and np.array_equal(first.scales, second.scales)
