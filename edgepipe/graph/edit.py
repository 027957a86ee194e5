"""Reading and editing an onnx_ir graph: the few verbs that onnx_ir itself leaves to its callers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgepipe.graph import shapes
from edgepipe.model import Model, onnx_model

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_ir as ir
    from numpy.typing import NDArray


def open_graph(model: Model) -> ir.Model:
    """Parses `model` into an onnx_ir model that the caller owns, with every shape inferred."""
    import onnx_ir as ir

    return ir.from_proto(shapes.infer(model.to_onnx()))


def freeze(graph_model: ir.Model, name: str) -> Model:
    """Serializes an edited model, its shapes inferred anew, deterministically."""
    import onnx_ir as ir

    return onnx_model(shapes.infer(ir.to_proto(graph_model)), name)


def freeze_tidied(graph_model: ir.Model, name: str) -> Model:
    """As `freeze`, after an edit that leaves unused nodes and constants, or may have given a name twice."""
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(graph_model)
    common.NameFixPass()(graph_model)
    return freeze(graph_model, name)


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array that `value` always holds, or None where it depends on the graph's inputs."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def constant_input(node: ir.Node, index: int) -> NDArray[Any] | None:
    """The constant at input `index`, or None where that is absent or not constant."""
    return constant(node.inputs[index]) if index < len(node.inputs) else None


def array_at(node: ir.Node, index: int) -> NDArray[Any]:
    """The constant at input `index`, which the caller knows to be one.

    Raises:
        ValueError: It is not.
    """
    array = constant_input(node, index)
    if array is None:
        raise ValueError(f"input {index} of {node.op_type} {node.name} is not constant")
    return array


def sizes(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Dimensions of `value`, None for each that is dynamic; None where not even the rank is known."""
    if value is None or value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def nodes(graph: ir.Graph, *op_types: str) -> Iterator[ir.Node]:
    """Nodes of the standard ONNX domain with one of these types (all, where none is given), in order."""
    for node in list(graph):
        if node.domain in ("", "ai.onnx") and (not op_types or node.op_type in op_types):
            yield node


def ints(node: ir.Node, name: str, default: Sequence[int] = ()) -> list[int]:
    """The integers of attribute `name`, or `default`."""
    attribute = node.attributes.get(name)
    return list(default) if attribute is None else list(attribute.as_ints())


def integer(node: ir.Node, name: str, default: int) -> int:
    """The integer of attribute `name`, or `default`."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def real(node: ir.Node, name: str, default: float) -> float:
    """The float of attribute `name`, or `default`."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def text(node: ir.Node, name: str, default: str) -> str:
    """The string of attribute `name`, or `default`."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


class Names:
    """Names of a graph's values, looked up once for many additions.

    Args:
        graph: Whose names are taken.
    """

    def __init__(self, graph: ir.Graph) -> None:
        made = (output.name for node in graph for output in node.outputs)
        self._taken = {*graph.initializers, *(value.name for value in graph.inputs), *made}

    def unused(self, name: str) -> str:
        """`name`, or `name` with the first number that makes it unique; it is taken from now on."""
        unique, number = name, 0
        while unique in self._taken:
            number += 1
            unique = f"{name}.{number}"
        self._taken.add(unique)
        return unique


def add_constant(
    graph: ir.Graph, name: str, array: NDArray[np.generic], names: Names | None = None
) -> ir.Value:
    """Registers `array` as an initializer under `name`, or under `name` with a number where that is taken.

    Args:
        graph: Where to.
        name: The name wanted.
        array: What it holds.
        names: The graph's, where many are added; else they are looked up.
    """
    import onnx_ir as ir

    unique = (names or Names(graph)).unused(name)
    value = ir.Value(
        name=unique,
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        shape=ir.Shape(array.shape),
        const_value=ir.Tensor(array, name=unique),
    )
    graph.register_initializer(value)
    return value


def unused_name(graph: ir.Graph, name: str) -> str:
    """`name`, or `name` with the first number that makes it unique among the graph's values."""
    return Names(graph).unused(name)


def replace_value(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Lets every consumer of `old` take `new`; a graph output keeps its name.

    Where `old` is a graph output and `new` is a graph input or constant, an Identity carries the name.
    """
    import onnx_ir as ir

    if old.is_graph_output():
        name = old.name
        old.name = unused_name(graph, f"{name}.before")
        producer = old.producer()
        if new.is_graph_input() or new.is_initializer() or new.is_graph_output():
            identity = ir.node("Identity", [new])
            if producer is None:
                raise ValueError("a graph input cannot be replaced")
            graph.insert_after(producer, identity)
            carrier = identity.outputs[0]
        else:
            carrier = new
        carrier.name, carrier.type, carrier.shape = name, old.type, old.shape
        old.replace_all_uses_with(carrier, replace_graph_outputs=True)
        return
    old.replace_all_uses_with(new)


def return_also(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    """Lets a graph return more of its tensors; its inputs and what it returns already are left out."""
    import onnx

    present = {value.name for value in [*graph.output, *graph.input]}
    graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in present
    )


def is_quantized(model: Model) -> bool:
    """True for an ONNX model that quantizes activations already (QDQ, or ops on integers)."""
    return quantizes_activations(model.to_onnx().graph)


def quantizes_activations(graph: onnx.GraphProto) -> bool:
    """Whether a graph computes on integers; weights alone that are stored so do not count."""
    kinds = {
        "QuantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    }
    constants = {tensor.name for tensor in graph.initializer}
    return any(node.op_type in kinds and node.input[0] not in constants for node in graph.node)
