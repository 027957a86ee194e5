"""Constant folding: whatever does not depend on the input's values is computed now.

Two kinds: subgraphs of constants, and shape arithmetic that depends on the batch size alone
(``x.view(x.size(0), -1)`` of PyTorch), whose result becomes the target of a static Reshape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgepipe.graph import edit

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from numpy.typing import NDArray

_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_BATCHES = (2, 3, 5)
"""Batch sizes to try shape arithmetic on: primes, so that a multiple of one is not taken for another."""


def lift_tensors(graph: ir.Graph) -> None:
    """Makes initializers of the Constants that hold a tensor, which are nearly all.

    onnx_ir's own pass, which takes the others, spends most of its time on asking whether each is a tensor.
    """
    import onnx_ir as ir

    for node in edit.nodes(graph, "Constant"):
        result = node.outputs[0]
        if set(node.attributes) != {"value"} or result.is_graph_output() or result.name is None:
            continue
        tensor = node.attributes["value"].value
        tensor.name = result.name
        lifted = ir.Value(
            name=result.name,
            shape=tensor.shape,
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
            metadata_props=dict(result.metadata_props),
        )
        graph.register_initializer(lifted)
        result.replace_all_uses_with(lifted)
        graph.remove(node, safe=True)


def fold_constants(model: ir.Model) -> bool:
    """Replaces every value that depends on no graph input by an initializer; True where it found one."""
    graph = model.graph
    known = {value for value in graph.initializers.values() if edit.constant(value) is not None}
    foldable = [node for node in graph if _is_constant(node, known)]
    wanted = [output for node in foldable for output in node.outputs if _is_frontier(output, known)]
    arrays = evaluate(model, foldable, wanted, {})
    if arrays is None:
        return False
    for value, array in zip(wanted, arrays, strict=True):
        edit.replace_value(graph, value, edit.add_constant(graph, f"{value.name}.folded", array))
    for node in reversed(foldable):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    return bool(foldable)


def _is_constant(node: ir.Node, known: set[ir.Value]) -> bool:
    """Whether the node's outputs never change; if so, they are added to `known`."""
    if (
        node.op_type in _RANDOM
        or node.domain not in ("", "ai.onnx")
        or any(attribute.type.name in ("GRAPH", "GRAPHS") for attribute in node.attributes.values())
    ):
        return False
    if node.op_type == "Shape":
        constant = _static_shape(node) is not None
    else:
        constant = all(value is None or value in known for value in node.inputs)
    if constant:
        known.update(node.outputs)
    return constant


def _is_frontier(value: ir.Value, known: set[ir.Value]) -> bool:
    if value.is_graph_output():
        return True
    return any(not known.issuperset(user.outputs) for user in value.consumers())


def _static_shape(node: ir.Node) -> tuple[int | None, ...] | None:
    """What the Shape node gives, or None where some of the sizes are dynamic."""
    sizes = _shape_slice(node)
    return None if sizes is None or None in sizes else sizes


def _shape_slice(node: ir.Node) -> tuple[int | None, ...] | None:
    sizes = edit.sizes(node.inputs[0])
    if sizes is None:
        return None
    end = node.attributes.get("end")
    return sizes[edit.integer(node, "start", 0) : None if end is None else end.as_int()]


def evaluate(
    model: ir.Model, chosen: list[ir.Node], wanted: list[ir.Value], shapes: dict[ir.Value, NDArray[np.int64]]
) -> list[NDArray[Any]] | None:
    """Runs the nodes `chosen`, all of whose inputs are constants, in ONNX Runtime.

    Args:
        model: The model that they stand in.
        chosen: Nodes in topological order.
        wanted: Outputs of theirs to return.
        shapes: Values to take for the outputs of Shape nodes with dynamic sizes.

    Returns:
        One array for each value wanted; None where the runtime cannot compute one of them.
    """
    if not wanted:
        return []
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    payload = _constants_alone(model, chosen, wanted, shapes).SerializeToString()
    try:
        session = onnxruntime.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
        results = session.run(None, {})
    except Exception:  # noqa: BLE001  a dozen unrelated classes; a node that is not folded is right as it is
        return None
    return list(results) if all(isinstance(each, np.ndarray) for each in results) else None


def _constants_alone(
    model: ir.Model, chosen: list[ir.Node], wanted: list[ir.Value], shapes: dict[ir.Value, NDArray[np.int64]]
) -> onnx.ModelProto:
    """A model without inputs that computes `wanted`."""
    import onnx
    import onnx_ir as ir

    body: list[onnx.NodeProto] = []
    arrays: dict[str, NDArray[Any]] = {}
    for node in chosen:
        if node.op_type == "Shape":
            sizes = shapes.get(node.outputs[0], np.asarray(_static_shape(node) or (), np.int64))
            tensor = onnx.numpy_helper.from_array(sizes)
            body.append(onnx.helper.make_node("Constant", [], [str(node.outputs[0].name)], value=tensor))
            continue
        body.append(ir.serde.serialize_node(node))
        for value in node.inputs:
            if value is not None and value.const_value is not None:
                arrays[str(value.name)] = value.const_value.numpy()
    graph = onnx.helper.make_graph(
        body,
        "constants",
        [],
        [onnx.helper.make_empty_tensor_value_info(str(value.name)) for value in wanted],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=model.ir_version)


def fold_batch_reshapes(model: ir.Model) -> bool:
    """Gives a static target to every Reshape whose target depends on the batch size alone.

    The target is computed for several batch sizes: what stays is a constant, and the one size that is
    the batch itself becomes 0 (Reshape's "as in the input") or -1. True where it changed a node.
    """
    graph = model.graph
    changed = False
    for node in edit.nodes(graph, "Reshape"):
        if edit.constant_input(node, 1) is not None:
            continue
        target = _batch_target(model, node)
        if target is not None:
            node.replace_input_with(1, edit.add_constant(graph, f"{node.outputs[0].name}.target", target))
            changed = True
    return changed


def _batch_target(model: ir.Model, node: ir.Node) -> NDArray[np.int64] | None:
    chosen = _ancestors(node.inputs[1])
    symbol = _leading(model.graph.inputs[0]) if model.graph.inputs else ""
    if chosen is None or not symbol or symbol.isdecimal():
        return None
    targets = []
    for size in _BATCHES:
        shapes = _shapes_at(chosen, symbol, size)
        found = None if shapes is None else evaluate(model, chosen, [node.inputs[1]], shapes)  # type: ignore[list-item]
        if found is None:
            return None
        targets.append(found[0])
    fixed = np.all(np.equal(targets[0], targets), axis=0)
    follows_batch = np.flatnonzero(~fixed)
    if len(follows_batch) == 0:
        return np.asarray(targets[0], np.int64)
    if len(follows_batch) > 1:
        return None
    result = np.asarray(targets[0], np.int64)
    if -1 not in result:
        result[follows_batch[0]] = -1
        return result
    kept = (
        follows_batch[0] == 0
        and _leading(node.inputs[0]) == symbol
        and not edit.integer(node, "allowzero", 0)
    )
    result[0] = 0
    return result if kept else None


def _leading(value: ir.Value | None) -> str:
    """Name of the first dimension, or its size in digits; "" where there is none."""
    return str(value.shape[0]) if value is not None and value.shape is not None and len(value.shape) else ""


def _ancestors(value: ir.Value | None) -> list[ir.Node] | None:
    """Nodes that compute `value` from constants and shapes, in topological order; None where data enters."""
    order: list[ir.Node] = []
    seen: set[ir.Node] = set()

    def visit(current: ir.Value | None) -> bool:
        if current is None or edit.constant(current) is not None:
            return True
        node = current.producer()
        if node is None or node.op_type in _RANDOM:
            return False
        if node not in seen:
            seen.add(node)
            if node.op_type != "Shape" and not all(visit(earlier) for earlier in node.inputs):
                return False
            order.append(node)
        return True

    return order if visit(value) else None


def _shapes_at(chosen: list[ir.Node], symbol: str, size: int) -> dict[ir.Value, NDArray[np.int64]] | None:
    """What the Shape nodes give at one batch size; None where another size is dynamic too."""
    shapes = {}
    for node in chosen:
        if node.op_type != "Shape":
            continue
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if shape is None or any(not isinstance(each, int) and str(each) != symbol for each in shape):
            return None
        sizes = np.array([each if isinstance(each, int) else size for each in shape], np.int64)
        end = node.attributes.get("end")
        shapes[node.outputs[0]] = sizes[
            edit.integer(node, "start", 0) : None if end is None else end.as_int()
        ]
    return shapes
