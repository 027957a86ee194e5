"""Matrix products with a constant matrix, written as Gemm: the form of a dense layer that has a bias.

A dense layer of a transformer works on every position of a sequence. As Gemm between two Reshapes, which
move nothing, it is the same op to every quantizer and kernel as the last layer of a classifier: its bias
becomes int32, and nothing is rounded between product and bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepipe.graph import edit

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray


def products_to_gemms(graph: ir.Graph) -> None:
    """Writes each MatMul with a constant matrix as a Gemm, with the vector that is added after it, if any."""
    for node in edit.nodes(graph, "MatMul"):
        weight, sizes = edit.constant_input(node, 1), edit.sizes(node.inputs[0])
        if weight is None or weight.ndim != 2 or weight.dtype != np.float32 or sizes is None:
            continue
        if len(sizes) == 2:
            _replace(graph, node, node, None)
        elif len(sizes) > 2 and None not in sizes[1:]:
            add = _bias_behind(node)
            _replace(graph, node, add or node, None if add is None else _vector(add, weight.shape[1]))


def _bias_behind(node: ir.Node) -> ir.Node | None:
    """The Add of a constant vector behind a product that nothing else reads."""
    result = node.outputs[0]
    users = list(result.uses())
    if len(users) != 1 or result.is_graph_output() or users[0][0].op_type != "Add":
        return None
    add, index = users[0]
    array, rank = edit.constant_input(add, 1 - index), len(edit.sizes(result) or ())
    if array is None or array.ndim > rank or array.size != (array.shape or (1,))[-1]:
        return None
    return add


def _vector(add: ir.Node, width: int) -> NDArray[np.float32]:
    array = next(found for index in (0, 1) if (found := edit.constant_input(add, index)) is not None)
    return np.broadcast_to(array.reshape(-1), (width,)).astype(np.float32)


def _replace(graph: ir.Graph, product: ir.Node, last: ir.Node, bias: NDArray[np.float32] | None) -> None:
    """Puts a Gemm in the place of the ops from `product` to `last`."""
    import onnx_ir as ir

    source, result = product.inputs[0], last.outputs[0]
    sizes, width = edit.sizes(source) or (), edit.array_at(product, 1).shape[1]
    name = str(result.name)
    added = []
    if len(sizes) > 2:
        rows = edit.add_constant(graph, f"{name}.rows_shape", np.array([-1, sizes[-1]], np.int64))
        added.append(_named(graph, ir.node("Reshape", [source, rows]), f"{name}.rows", result))
        source = added[-1].outputs[0]
    constants = [
        product.inputs[1],
        *([] if bias is None else [edit.add_constant(graph, f"{name}.bias", bias)]),
    ]
    gemm = ir.node("Gemm", [source, *constants], name=product.name)
    added.append(_named(graph, gemm, f"{name}.gemm", result))
    if len(sizes) > 2:
        count = None if sizes[0] is None else int(np.prod(sizes[:-1]))  # type: ignore[arg-type]
        added[0].outputs[0].shape, gemm.outputs[0].shape = (
            ir.Shape([count, sizes[-1]]),
            ir.Shape([count, width]),
        )
        shape = edit.add_constant(graph, f"{name}.shape", np.array([-1, *sizes[1:-1], width], np.int64))
        added.append(_named(graph, ir.node("Reshape", [gemm.outputs[0], shape]), f"{name}.product", result))
    added[-1].outputs[0].shape = result.shape
    graph.insert_before(last, added)
    edit.replace_value(graph, result, added[-1].outputs[0])
    graph.remove([last, product] if last is not product else [product], safe=True)


def _named(graph: ir.Graph, node: ir.Node, name: str, like: ir.Value) -> ir.Node:
    node.outputs[0].name, node.outputs[0].type = edit.unused_name(graph, name), like.type
    return node
