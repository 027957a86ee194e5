"""Gelu as exporters write it before op set 20: a chain of ops around an error function."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepipe.graph import edit

if TYPE_CHECKING:
    import onnx_ir as ir


def gelu_chains(graph: ir.Graph) -> set[ir.Node]:
    """All ops of chains ``x / 2 (1 + erf(x / sqrt(2)))``: runtimes compute each chain as one op.

    Hendrycks and Gimpel 2016 (arXiv 1606.08415), section 2. Whoever quantizes values inside of a chain
    breaks it up for the runtimes, and rounds many times what could be rounded once.
    """
    found: set[ir.Node] = set()
    for erf in edit.nodes(graph, "Erf"):
        found |= _chain(erf)
    return found


def _chain(erf: ir.Node) -> set[ir.Node]:
    scaling, gate = _maker(erf.inputs[0]), _reader(erf, "Add")
    if scaling is None or gate is None or scaling.op_type not in ("Mul", "Div"):
        return set()
    product = _reader(gate, "Mul")
    source = next((value for value in scaling.inputs if edit.constant(value) is None), None)
    if product is None or source is None or not np.isclose(_scalar(gate), 1.0):
        return set()
    chain = {scaling, erf, gate, product}
    for value in product.inputs:  # x / 2 on its own
        half = _maker(value)
        if half is not None and half.op_type == "Mul" and source in half.inputs and _is_half(half):
            return chain | {half}
    last = _reader(product, "Mul")
    if last is None or not ((source in last.inputs and _is_half(product)) or _is_half(last)):
        return set()
    return chain | {last} if source in (*product.inputs, *last.inputs) else set()


def _maker(value: ir.Value | None) -> ir.Node | None:
    """What computes a value that nothing else reads."""
    alone = value is not None and len(value.uses()) == 1 and not value.is_graph_output()
    return value.producer() if value is not None and alone else None


def _reader(node: ir.Node, op_type: str) -> ir.Node | None:
    """The one op that reads what a node computes, if it is of this type."""
    users = list(node.outputs[0].consumers())
    alone = len(users) == 1 and not node.outputs[0].is_graph_output()
    return users[0] if alone and users[0].op_type == op_type else None


def _is_half(node: ir.Node) -> bool:
    return bool(np.isclose(_scalar(node), 0.5))


def _scalar(node: ir.Node) -> float:
    """The one constant number among a node's inputs; NaN where there is no such."""
    arrays = [array for value in node.inputs if (array := edit.constant(value)) is not None]
    return float(arrays[0].reshape(-1)[0]) if len(arrays) == 1 and arrays[0].size == 1 else float("nan")
