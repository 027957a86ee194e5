"""Gelu as exporters write it before op set 20, found in the light graph: TFLite has it as one op."""

from __future__ import annotations

import msgspec
import numpy as np

from edgepipe.convert.tflite.graph import Graph, Node


def fuse_gelus(graph: Graph) -> Graph:
    """Replaces ``x / 2 (1 + erf(x / sqrt(2)))`` by one Gelu, in whatever order its factors stand."""
    makers, private = graph.makers(), graph.private()
    nodes = []
    for node in graph.nodes:
        found = _source(graph, node, makers, private) if node.op == "Mul" else None
        nodes.append(
            node
            if found is None
            else msgspec.structs.replace(node, op="Gelu", inputs=(found,), settings={"approximate": "none"})
        )
    return msgspec.structs.replace(graph, nodes=tuple(nodes)).pruned()


def _source(graph: Graph, node: Node, makers: dict[str, Node], private: set[str]) -> str | None:
    """What a product is the Gelu of; None where it is none."""
    factors, half = _factors(graph, node, makers, private), np.float32(1.0)
    gates, sources = [], []
    for name in factors:
        data = graph.values[name].data
        maker = makers.get(name)
        if data is not None:
            half = half * data.reshape(-1)[0] if data.size == 1 else np.float32(0)
        elif maker is not None and maker.op == "Add" and name in private:
            gates.append(_erf_argument(graph, maker, makers, private))
        else:
            sources.append(name)
    matches = len(gates) == len(sources) == 1 and gates[0] == sources[0]
    return sources[0] if matches and np.isclose(half, 0.5) else None


def _factors(graph: Graph, node: Node, makers: dict[str, Node], private: set[str]) -> list[str]:
    """Names of all that the product multiplies, through products that nothing else reads."""
    found: list[str] = []
    for name in node.inputs:
        maker = makers.get(name)
        inner = maker is not None and maker.op == "Mul" and name in private
        if maker is not None and inner and graph.values[name].grid is None:
            found += maker.inputs
        else:
            found.append(name)
    return found


def _erf_argument(graph: Graph, gate: Node, makers: dict[str, Node], private: set[str]) -> str | None:
    """The x of ``1 + erf(x / sqrt(2))``."""
    one = [graph.values[name].data for name in gate.inputs if graph.values[name].data is not None]
    inner = [makers.get(name) for name in gate.inputs if name in private]
    if len(one) != 1 or one[0] is None or one[0].size != 1 or not np.isclose(one[0].reshape(-1)[0], 1.0):
        return None
    erf = inner[0] if inner else None
    if erf is None or erf.op != "Erf" or erf.inputs[0] not in private:
        return None
    scaling = makers.get(erf.inputs[0])
    if scaling is None or scaling.op not in ("Mul", "Div"):
        return None
    constants = [graph.values[name].data for name in scaling.inputs]
    known = [data for data in constants if data is not None]
    if len(known) != 1 or known[0].size != 1 or (scaling.op == "Div" and constants[1] is None):
        return None
    wanted = np.sqrt(2.0) if scaling.op == "Div" else np.sqrt(0.5)
    if not np.isclose(float(known[0].reshape(-1)[0]), wanted, rtol=1e-4):
        return None
    return scaling.inputs[0] if constants[0] is None else scaling.inputs[1]
