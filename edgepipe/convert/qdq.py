"""Rewriting QDQ graphs, of whatever tool: the integer type of activations, and integer ports.

Works on a ModelProto that the caller owns, in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from edgepipe.graph.links import Links

if TYPE_CHECKING:
    import onnx

_WEIGHT_INPUT = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
_LINEAR = _WEIGHT_INPUT.keys() | {"Add", "Mul"}


class PortGrid(msgspec.Struct, frozen=True):
    """Type, scale and zero point of an integer port."""

    dtype: str
    scale: float
    zero_point: int


def set_activation_type(proto: onnx.ModelProto, dtype: Literal["int8", "uint8"]) -> None:
    """Moves every activation, and every constant that meets one in arithmetic, to int8 or to uint8.

    The reals stay the same: integers and zero points shift by 128 together. Weights are left alone.
    """
    links = Links(proto.graph)
    shifted = _Shifted(proto.graph, links, dtype)
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in links.constants:
            takers = links.consumers.get(node.output[0], [])
            if (
                all(taker.op_type == "DequantizeLinear" for taker, _ in takers)
                and node.output[0] not in links.outputs
            ):
                for each in [node, *(taker for taker, _ in takers)]:
                    shifted.replace(each, 2)
        elif node.op_type == "DequantizeLinear" and _is_operand(node, links):
            shifted.replace(node, 0)
            shifted.replace(node, 2)
    for value in proto.graph.value_info:
        if value.name in shifted.retyped:
            value.type.tensor_type.elem_type = shifted.element_type
    shifted.drop_unused()


def _is_operand(node: onnx.NodeProto, links: Links) -> bool:
    """Whether the node dequantizes a constant that is no weight and no bias."""
    if node.input[0] not in links.constants or links.constants[node.input[0]].data_type not in _BYTE_TYPES():
        return False
    takers = links.consumers.get(node.output[0], [])
    return all(_WEIGHT_INPUT.get(taker.op_type) != index for taker, index in takers)


def _BYTE_TYPES() -> tuple[int, int]:  # noqa: N802
    import onnx

    return onnx.TensorProto.INT8, onnx.TensorProto.UINT8


class _Shifted:
    """Makes the shifted copies of constants, one for each."""

    def __init__(self, graph: onnx.GraphProto, links: Links, dtype: str) -> None:
        self.graph = graph
        self.links = links
        self.dtype = dtype
        self.element_type = _element_type(dtype)
        self.retyped: set[str] = set()
        self._copies: dict[str, str] = {}

    def replace(self, node: onnx.NodeProto, index: int) -> None:
        """Puts the shifted constant into an input; an absent zero point becomes explicit."""
        if node.op_type == "QuantizeLinear":
            self.retyped.add(node.output[0])
        name = node.input[index] if index < len(node.input) else ""
        shifted = self._copy(name) if name else self._implicit_zero(node)
        if shifted is None:
            return
        while len(node.input) <= index:
            node.input.append("")
        node.input[index] = shifted

    def _copy(self, name: str) -> str | None:
        import onnx

        tensor = self.links.constants.get(name)
        if tensor is None or tensor.data_type == self.element_type or tensor.data_type not in _BYTE_TYPES():
            return None
        if name not in self._copies:
            integers = onnx.numpy_helper.to_array(tensor).astype(np.int16)
            moved = integers + (128 if self.dtype == "uint8" else -128)
            self._copies[name] = self._add(f"{name}.{self.dtype}", moved.astype(self.dtype))
        return self._copies[name]

    def _implicit_zero(self, node: onnx.NodeProto) -> str | None:
        """A zero point that was left out is a uint8 0, unless the node says another type."""
        stated = [attribute.i for attribute in node.attribute if attribute.name == "output_dtype"]
        if self.dtype == "uint8" or stated not in ([], [_BYTE_TYPES()[1]]):
            return None
        if "" not in self._copies:
            self._copies[""] = self._add("implicit_zero_point.int8", np.array(-128, np.int8))
        return self._copies[""]

    def _add(self, name: str, array: np.ndarray[Any, Any]) -> str:
        import onnx

        while name in self.links.constants or name in self.links.producer:
            name += "_"
        tensor = onnx.numpy_helper.from_array(array, name)
        self.graph.initializer.append(tensor)
        self.links.constants[name] = tensor
        return name

    def drop_unused(self) -> None:
        """Removes the originals that nobody takes any more."""
        used = {name for node in self.graph.node for name in node.input} | {
            value.name for value in self.graph.output
        }
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def widen_int4(proto: onnx.ModelProto) -> None:
    """Puts a Cast to int8 behind every int4 weight.

    ONNX Runtime has no integer kernel for int4 weights, and would dequantize them at each run. A Cast of
    a constant is carried out once, on loading, so that what is fused is an int8 weight.
    """
    import onnx

    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    narrow = {name for name, tensor in constants.items() if tensor.data_type == onnx.TensorProto.INT4}
    casts: dict[str, onnx.NodeProto] = {}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in narrow:
            name = node.input[0]
            node.input[0] = f"{name}.int8"
            casts[name] = onnx.helper.make_node(
                "Cast", [name], [node.input[0]], name=node.input[0], to=onnx.TensorProto.INT8
            )
            zero = constants[node.input[2]] if len(node.input) > 2 else None
            if zero is not None:
                wide = onnx.numpy_helper.to_array(zero).astype(np.int8)
                zero.CopyFrom(onnx.numpy_helper.from_array(wide, zero.name))
    rest = [onnx.NodeProto.FromString(node.SerializeToString()) for node in proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend([*casts.values(), *rest])


def quantize_before_clipping(proto: onnx.ModelProto) -> None:
    """Puts Q and DQ between a linear op and the Relu or Clip after it, where only the latter has them.

    ONNX Runtime fuses an op into an integer kernel only where Q follows it directly; what the function
    clips to is then clipped on the grid of its output. Rounding is monotonic, so the integers that come
    out are the same.
    """
    import onnx

    links = Links(proto.graph)
    placed: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        quantizer = _quantizer_behind_clipping(node, links)
        if quantizer is not None:
            name, parameters = node.input[0], list(quantizer.input[1:])
            integers, real = f"{name}.{node.op_type}.quantized", f"{name}.{node.op_type}.dequantized"
            first = onnx.helper.make_node("QuantizeLinear", [name, *parameters], [integers])
            first.attribute.extend(quantizer.attribute)
            placed += [first, onnx.helper.make_node("DequantizeLinear", [integers, *parameters], [real])]
            node.input[0] = real
        placed.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in placed]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)


def _quantizer_behind_clipping(node: onnx.NodeProto, links: Links) -> onnx.NodeProto | None:
    """The Q that alone takes a Relu or Clip which alone takes a quantized linear op; None elsewhere."""
    if node.op_type not in ("Relu", "Clip"):
        return None
    producer = links.producer.get(node.input[0])
    if producer is None or producer.op_type not in _LINEAR or not _takes_dequantized(producer, links):
        return None
    if len(links.consumers[node.input[0]]) != 1 or {node.input[0], node.output[0]} & links.outputs:
        return None
    takers = links.consumers.get(node.output[0], [])
    return takers[0][0] if len(takers) == 1 and takers[0][0].op_type == "QuantizeLinear" else None


def _takes_dequantized(node: onnx.NodeProto, links: Links) -> bool:
    producers = [links.producer.get(name) for name in node.input if name]
    return all(each is not None and each.op_type == "DequantizeLinear" for each in producers)


def strip_boundary(proto: onnx.ModelProto) -> dict[str, PortGrid]:
    """Lets the graph take and give integers: removes Q behind inputs and DQ before outputs.

    Ports keep their names. A port that is not quantized in one way only stays as it is.

    Returns:
        Type, scale and zero point by name, of the ports that became integers.
    """
    grids = dict[str, PortGrid]()
    for find in (_quantized_inputs, _quantized_outputs):
        for value, node, integers in list(find(proto.graph)):
            grid = _grid(node, Links(proto.graph))
            if grid is not None:
                grids[value.name] = grid
                _replace_by_port(proto.graph, node, integers, value)
                value.type.tensor_type.elem_type = _element_type(grid.dtype)
    return grids


def _replace_by_port(
    graph: onnx.GraphProto, node: onnx.NodeProto, integers: str, port: onnx.ValueInfoProto
) -> None:
    """Removes a Q or DQ; what were its integers goes by the port's name from now on."""
    graph.node.remove(node)
    for other in graph.node:
        for names in (other.input, other.output):
            for index, name in enumerate(names):
                if name == integers:
                    names[index] = port.name
    stale = [value for value in graph.value_info if value.name in (integers, port.name)]
    for value in stale:
        graph.value_info.remove(value)


def _element_type(dtype: str) -> int:
    import onnx

    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _quantized_inputs(graph: onnx.GraphProto) -> Iterator[tuple[onnx.ValueInfoProto, onnx.NodeProto, str]]:
    links = Links(graph)
    for value in graph.input:
        takers = links.consumers.get(value.name, [])
        if len(takers) == 1 and takers[0][0].op_type == "QuantizeLinear" and value.name not in links.outputs:
            yield value, takers[0][0], takers[0][0].output[0]


def _quantized_outputs(graph: onnx.GraphProto) -> Iterator[tuple[onnx.ValueInfoProto, onnx.NodeProto, str]]:
    links = Links(graph)
    inputs = {value.name for value in graph.input}
    for value in graph.output:
        node = links.producer.get(value.name)
        alone = value.name not in links.consumers
        if node is None or node.op_type != "DequantizeLinear" or not alone:
            continue
        if node.input[0] in links.producer and node.input[0] not in inputs | links.outputs:
            yield value, node, node.input[0]


def _grid(node: onnx.NodeProto, links: Links) -> PortGrid | None:
    """Scale and zero point of a Q or DQ with one of each, in constants."""
    import onnx

    scale = links.constants.get(node.input[1])
    if scale is None or int(np.prod(scale.dims)) != 1:
        return None
    step = float(onnx.numpy_helper.to_array(scale).reshape(()))
    if len(node.input) < 3 or not node.input[2]:
        return PortGrid("uint8", step, 0)
    zero_point = links.constants.get(node.input[2])
    if zero_point is None:
        return None
    array = onnx.numpy_helper.to_array(zero_point)
    return PortGrid(array.dtype.name, step, int(array.reshape(())))
