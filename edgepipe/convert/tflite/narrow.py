"""Which weights of 4 bits take 8 in the file, for the kernels' sake: the integers are the same.

LiteRT has fast kernels for int4 weights of dense layers and pointwise convolutions. Other convolutions on
int4 go to its builtin kernel, which takes several times as long as XNNPACK's on int8, and gives some outputs
a step too high. docs/decisions/0007-int4-convolutions-in-tflite.md has the figures.
"""

from __future__ import annotations

from math import prod

import msgspec

from edgepipe.convert.tflite.graph import Graph, Node, Value

MOST_GROWTH = 1 / 8
"""How much larger the constants of a file may become for it."""


class Widened(msgspec.Struct, frozen=True):
    """A graph with the weights at the widths that they are stored in.

    Attributes:
        graph: The graph.
        slow: The convolutions whose weights stay int4 though their kernel is slow.
    """

    graph: Graph
    slow: tuple[Node, ...]


def widen(graph: Graph) -> Widened:
    """Lets convolutions that int4 makes slow have int8, as long as the file grows little by it.

    Those with the largest outputs come first: they gain the most time for a byte.

    Args:
        graph: A graph that is ready to be lowered.
    """
    found = [node for node in graph.nodes if _is_slow(node, graph.values)]
    order = sorted(found, key=lambda node: -prod(graph.values[node.outputs[0]].shape[2:]))
    room = MOST_GROWTH * sum(_stored_bytes(value) for value in graph.values.values())
    values, slow = dict(graph.values), list[Node]()
    for node in order:
        weight = values[node.inputs[1]]
        if weight.grid is None or weight.grid.bits != 4:  # that of another convolution too, and done
            continue
        cost = _stored_bytes(weight)
        if cost <= room:
            room -= cost
            wide = msgspec.structs.replace(weight.grid, bits=8)
            values[weight.name] = msgspec.structs.replace(weight, grid=wide)
        else:
            slow.append(node)
    return Widened(msgspec.structs.replace(graph, values=values), tuple(slow))


def _is_slow(node: Node, values: dict[str, Value]) -> bool:
    """Whether a node is a CONV_2D on int4: depthwise, grouped and pointwise ones are written otherwise."""
    if node.op != "Conv" or node.settings.get("group", 1) != 1:
        return False
    source, weight, made = (values[name] for name in (*node.inputs[:2], node.outputs[0]))
    if weight.data is None or weight.grid is None or weight.grid.bits != 4:
        return False
    pointwise = prod(weight.shape[2:]) == 1 and source.shape[2:] == made.shape[2:]
    return not pointwise and made.grid is not None and made.grid.bits == 8


def _stored_bytes(value: Value) -> float:
    if value.data is None:
        return 0.0
    return value.data.size * (value.grid.bits / 8 if value.grid is not None else value.data.itemsize)
