"""One order of nodes and one set of names for graphs whose converter numbers them as it happens to go.

tf2onnx walks sets of objects, whose order is that of their addresses: names and order differ from run
to run of the same file. Here both follow from the graph alone, so that the same source gives the same
bytes. Names of layers stay recognizable, without the converter's counters.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

NOISE = re.compile(r"__\d+|:0$|;.*")
"""What makes a value's name longer but no clearer: counters, port numbers, the ops fused into the first."""


def canonicalize(proto: onnx.ModelProto) -> None:
    """Sorts and renames nodes, values and constants of the graph, in place; ports keep their names.

    Nodes come in depth-first order from the outputs, their inputs in order; nodes that no output needs
    go. A constant is named after its first use: ``Conv2d_0/Relu6/W``. Graphs with subgraphs are left
    alone: their names reach across scopes.
    """
    graph = proto.graph
    if any(
        attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute
    ):
        return
    nodes = _sorted_nodes(graph)
    names = _new_names(graph, nodes)
    ports = {value.name for value in graph.output}
    constants = [tensor for tensor in graph.initializer if tensor.name in names or tensor.name in ports]
    constants.sort(key=lambda tensor: names.get(tensor.name, tensor.name))
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        node.name = node.output[0]
    for tensor in constants:
        tensor.name = names.get(tensor.name, tensor.name)
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    tensors = [type(tensor).FromString(tensor.SerializeToString()) for tensor in constants]
    for field, fresh in ((graph.node, copies), (graph.initializer, tensors)):
        del field[:]
        field.extend(fresh)
    graph.ClearField("value_info")


def _sorted_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    producers = {name: node for node in graph.node for name in node.output if name}
    order: list[onnx.NodeProto] = []
    seen: set[int] = set()
    for output in graph.output:
        pending = [(producers.get(output.name), False)]
        while pending:
            node, ready = pending.pop()
            if node is None:
                continue
            if ready:
                order.append(node)
            elif id(node) not in seen:
                seen.add(id(node))
                pending.append((node, True))
                pending.extend((producers.get(name), False) for name in reversed(node.input))
    return order


def _new_names(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> dict[str, str]:
    """The new name of every constant in use and every value that is no port."""
    ports = {value.name for value in (*graph.input, *graph.output)}
    constants = {tensor.name for tensor in graph.initializer} - ports
    taken = set(ports)
    names: dict[str, str] = {}

    def give(old: str, wanted: str) -> None:
        candidate, number = wanted, 1
        while candidate in taken:
            number += 1
            candidate = f"{wanted}_{number}"
        taken.add(candidate)
        names[old] = candidate

    for node in nodes:
        for output in node.output:
            if output and output not in ports:
                give(output, NOISE.sub("", output) or node.op_type)
        first = names.get(node.output[0], node.output[0])
        for index, source in enumerate(node.input):
            if source in constants and source not in names:
                give(source, f"{first}/{_role(node, index)}")
    return names


def _role(node: onnx.NodeProto, index: int) -> str:
    """What the operator calls its input: "W" for a convolution's weights."""
    import onnx

    if not onnx.defs.has(node.op_type, node.domain):
        return str(index)
    inputs = onnx.defs.get_schema(node.op_type, domain=node.domain).inputs
    return str(inputs[min(index, len(inputs) - 1)].name)
