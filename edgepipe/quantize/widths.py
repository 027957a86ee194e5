"""Where integers of 8 and 16 bits and floats meet: as few conversions as the schemes of the layers allow.

A tensor is as wide as the op that makes it. An op of another width reads it through an Identity, which
has a grid of its own as any op has; in the QDQ graph nothing is left of it but the second pair of
QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from edgepipe.graph import edit
from edgepipe.graph.opset import INTEGERS_OF_ALL_WIDTHS
from edgepipe.quantize.plan import CLIPPING, KEEPING, activations, is_clip_of_linear, is_quantizable, width
from edgepipe.quantize.scheme import Override, Scheme

INT4_BITS = 4
"""Most bits of a weight that is stored as int4."""

if TYPE_CHECKING:
    import onnx_ir as ir

    Schemes = dict[ir.Node, Scheme]


def least_opset(default: Scheme, overrides: Sequence[Override]) -> int:
    """The first opset whose QDQ form holds the widths that are asked for; 0 where any does."""
    weights = [default.weight_bits, *(each.weight_bits or default.weight_bits for each in overrides)]
    inputs = [default.activation_bits, *(each.activation_bits for each in overrides)]
    return INTEGERS_OF_ALL_WIDTHS if min(weights) <= INT4_BITS or 16 in inputs else 0


def settle(graph: ir.Graph, schemes: Mapping[ir.Node, Scheme]) -> Schemes:
    """Makes the schemes of neighbours fit each other.

    What only moves or clips the elements of floats, for ops that take floats, computes in float as well.
    An activation function that belongs to the op before it is as wide as that op. Where widths differ,
    an Identity goes onto the edge, one for all readers of that width.

    Args:
        graph: A simplified float graph; it gets the Identities.
        schemes: How each of its nodes is to be quantized, as `scheme.assign` gives them.

    Returns:
        The schemes of all nodes, those of the new ones among them.
    """
    settled = dict(schemes)
    for node in _float_movers(graph, settled):
        settled[node] = msgspec.structs.replace(settled[node], keep_float=True)
    _widen_clips(settled)
    _separate(graph, settled)
    return settled


def _is_float(node: ir.Node | None, schemes: Schemes) -> bool:
    return node is not None and (node not in schemes or schemes[node].keep_float or not is_quantizable(node))


def _float_movers(graph: ir.Graph, schemes: Schemes) -> set[ir.Node]:
    """Ops that move or clip what only float ops make, for readers that want floats."""
    found: set[ir.Node] = set()
    for node in edit.nodes(graph, *sorted(KEEPING | CLIPPING)):
        makers = [value.producer() for value in activations(node)]
        if makers and all(maker in found or _is_float(maker, schemes) for maker in makers):
            found.add(node)
    for node in reversed(list(graph)):
        readers = [reader for value in node.outputs for reader in value.consumers()]
        clips_alone = node.op_type in CLIPPING and is_clip_of_linear(node)
        wanted = clips_alone or all(reader in found or _is_float(reader, schemes) for reader in readers)
        if node in found and not wanted:
            found.remove(node)
    return found


def _widen_clips(schemes: Schemes) -> None:
    for node in schemes:
        if node.op_type not in CLIPPING or not is_clip_of_linear(node):
            continue
        maker = node.inputs[0].producer()  # type: ignore[union-attr]
        if maker in schemes:
            bits = max(schemes[each].activation_bits for each in (node, maker))
            for each in (node, maker):
                schemes[each] = msgspec.structs.replace(schemes[each], activation_bits=bits)


def _separate(graph: ir.Graph, schemes: Schemes) -> None:
    """Puts an Identity between a tensor and its readers of another width."""
    import onnx_ir as ir

    for value in [*graph.inputs, *(output for node in list(graph) for output in node.outputs)]:
        bits = width(value, schemes)
        readers = [
            node
            for node in dict.fromkeys(value.consumers())
            if not _is_float(node, schemes) and value in activations(node)
        ]
        for other in sorted({schemes[node].activation_bits for node in readers} - {bits}):
            identity = ir.node("Identity", [value], name=edit.unused_name(graph, f"{value.name}.int{other}"))
            result = identity.outputs[0]
            result.name, result.type, result.shape = identity.name, value.type, value.shape
            for node in readers:
                if schemes[node].activation_bits == other:
                    _reconnect(node, value, result)
            producer = value.producer()
            if producer is None:
                graph.insert_before(graph[0], identity)
            else:
                graph.insert_after(producer, identity)
            schemes[identity] = Scheme(activation_bits=other)


def _reconnect(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    for index, current in enumerate(node.inputs):
        if current is old:
            node.replace_input_with(index, new)
