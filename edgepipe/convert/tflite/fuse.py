"""Rewrites a Graph before it is lowered: folds what TFLite's ops take in with them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
import numpy as np

from edgepipe.convert.tflite.gelu import fuse_gelus
from edgepipe.convert.tflite.graph import Array, Graph, Grid, Node, Value
from edgepipe.convert.tflite.lower.activation import FUSED, clip_bounds
from edgepipe.graph.moving import FILLING, REARRANGING, SELECTING

# Ops that TFLite fuses an activation behind.
_TAKES_ACTIVATION = frozenset(
    {"Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "MaxPool", "AveragePool"}
)
# Ops whose output may lie on the grid of their input: they make no new number but bounds.
_KEEPS_GRID = REARRANGING | SELECTING | FILLING | {"Resize"}


def fuse(graph: Graph) -> Graph:
    """The same function with fewer nodes: biases, normalizations, pads and activations folded in."""
    steps = (
        _spread_grids,
        _fold_normalizations,
        partial(_merge_pairs, merge=_with_bias),
        partial(_merge_pairs, merge=_with_pads),
        partial(_merge_pairs, merge=_one_slice),
        _fuse_hard_swishes,
        fuse_gelus,
        partial(_merge_pairs, merge=_with_activation),
    )
    for step in steps:
        graph = step(graph)
    return graph.pruned()


def _rewritten(graph: Graph, nodes: list[Node], values: dict[str, Value]) -> Graph:
    return msgspec.structs.replace(graph, nodes=tuple(nodes), values=values)


def _spread_grids(graph: Graph) -> Graph:
    """Gives values that a quantizer left unmarked the grid of the neighbour they only rearrange."""
    values = dict(graph.values)

    def share(source: str, target: str) -> None:
        grid = values[source].grid
        if (
            grid is not None
            and grid.axis is None
            and values[target].grid is None
            and values[target].data is None
        ):
            values[target] = msgspec.structs.replace(values[target], grid=grid)

    if graph.quantized():
        clips = {"Relu", "Clip"}
        for node in graph.nodes:
            if node.op in _KEEPS_GRID | clips:
                for name in node.outputs:
                    share(node.inputs[0], name)
        for node in reversed(graph.nodes):
            if node.op in _KEEPS_GRID:
                share(node.outputs[0], node.inputs[0])
    return _rewritten(graph, list(graph.nodes), values)


def _fold_normalizations(graph: Graph) -> Graph:
    """BatchNormalization into the Conv or Gemm before it, or as a Mul and an Add where none stands there."""
    makers, private, values = graph.makers(), graph.private(), dict(graph.values)
    replaced: dict[str, Node] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        statistics = [values[name] for name in node.inputs[1:5]] if node.op == "BatchNormalization" else []
        if not statistics or any(value.data is None for value in statistics):
            nodes.append(node)
            continue
        scale, bias, mean, variance = (np.asarray(value.real(), np.float64) for value in statistics)
        factor = scale / np.sqrt(variance + node.settings.get("epsilon", 1e-5))
        shift = bias - mean * factor
        maker = makers.get(node.inputs[0])
        if maker is not None and _folds_scale(maker, node.inputs[0], values, private):
            replaced[maker.outputs[0]] = _scaled(maker, node, values, (factor, shift))
        else:
            nodes += _affine(node, values, factor, shift)
    nodes = [replaced.get(node.outputs[0], node) for node in nodes]
    return _rewritten(graph, nodes, values)


def _folds_scale(maker: Node, name: str, values: dict[str, Value], private: set[str]) -> bool:
    constants = [values[source] for source in maker.inputs[1:] if source]
    free = all(value.data is not None and value.grid is None for value in constants)
    plain = all(maker.settings.get(key, 1.0) == 1.0 for key in ("alpha", "beta"))
    return maker.op in {"Conv", "Gemm"} and plain and name in private and values[name].grid is None and free


def _scaled(node: Node, norm: Node, values: dict[str, Value], affine: tuple[Array, Array]) -> Node:
    """The Conv or Gemm with each output channel times a factor, plus a shift: float64 [channels] both."""
    factor, shift = affine
    weight = values[node.inputs[1]].real().astype(np.float64)
    axis = 0 if node.op == "Conv" or node.settings.get("transB", 0) else 1
    weight = weight * factor.reshape([-1 if place == axis else 1 for place in range(weight.ndim)])
    if len(node.inputs) > 2:
        shift = shift + values[node.inputs[2]].real() * factor
    names = (f"{norm.outputs[0]}/weight", f"{norm.outputs[0]}/bias")
    for name, data in zip(names, (weight, shift), strict=True):
        values[name] = _float_constant(name, data)
    return msgspec.structs.replace(node, inputs=(node.inputs[0], *names), outputs=norm.outputs[:1])


def _affine(node: Node, values: dict[str, Value], factor: Array, shift: Array) -> list[Node]:
    result = node.outputs[0]
    broadcast = (-1, *[1] * (len(values[result].shape) - 2))
    names = (f"{result}/factor", f"{result}/shift", f"{result}/scaled")
    values[names[0]] = _float_constant(names[0], factor.reshape(broadcast))
    values[names[1]] = _float_constant(names[1], shift.reshape(broadcast))
    values[names[2]] = msgspec.structs.replace(values[result], name=names[2], grid=None)
    mul = Node("Mul", node.name, (node.inputs[0], names[0]), (names[2],), {}, node.opset)
    return [mul, Node("Add", node.name, (names[2], names[1]), (result,), {}, node.opset)]


def _float_constant(name: str, data: Array) -> Value:
    data = data.astype(np.float32)
    return Value(name, data.shape, "float32", data)


def _merge_pairs(graph: Graph, merge: Callable[[Node, Node, Graph], Node | None]) -> Graph:
    """Replaces each pair of neighbours for which `merge` gives a node: first and second, in order.

    A pair is offered where nothing else reads what the first makes.
    """
    private = graph.private()
    made: dict[str, Node] = {}
    for node in graph.nodes:
        first = made.get(node.inputs[0]) if node.inputs and node.inputs[0] in private else None
        merged = merge(first, node, graph) if first is not None else None
        if first is not None and merged is not None:
            del made[first.outputs[0]]
        for name in (merged or node).outputs:
            made[name] = merged or node
    nodes = list({id(node): node for node in made.values()}.values())
    return _rewritten(graph, nodes, dict(graph.values))


def _with_bias(first: Node, add: Node, graph: Graph) -> Node | None:
    """An Add of one constant for each channel, into the MatMul or Conv before it."""
    values = graph.values
    if add.op != "Add" or first.op not in {"MatMul", "Conv"} or len(first.inputs) > 2:
        return None
    made, weight = values[first.outputs[0]], values[first.inputs[1]]
    bias = values[add.inputs[1]]
    if made.grid is not None or weight.data is None or bias.data is None or bias.grid is not None:
        return None
    if _is_batched(first, values):
        return None
    rank = len(made.shape)
    axis = 1 if first.op == "Conv" else rank - 1
    wide = (1,) * (rank - len(bias.shape)) + bias.shape
    if any(size != (made.shape[axis] if place == axis else 1) for place, size in enumerate(wide)):
        return None
    name = f"{add.outputs[0]}/bias"
    values[name] = Value(name, (bias.data.size,), "float32", bias.data.reshape(-1))
    return msgspec.structs.replace(first, inputs=(*first.inputs, name), outputs=add.outputs)


def _is_batched(node: Node, values: dict[str, Value]) -> bool:
    """Whether the node becomes a BATCH_MATMUL, which takes in neither a bias nor an activation."""
    weight = values[node.inputs[1]] if node.op == "MatMul" else None
    return weight is not None and (weight.data is None or len(weight.shape) != 2)


def _with_pads(pad: Node, conv: Node, graph: Graph) -> Node | None:
    """A Pad with zeros into the Conv behind it, whose pads may then be TFLite's SAME."""
    if pad.op != "Pad" or conv.op != "Conv" or conv.settings.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    source, made = graph.values[pad.inputs[0]], graph.values[pad.outputs[0]]
    value = float(np.asarray(pad.settings.get("value", 0.0)).reshape(()))
    if pad.settings.get("mode", "constant") != "constant" or value or made.grid != source.grid:
        return None
    rank = len(made.shape)
    amounts = np.zeros((2, rank), np.int64)
    axes = [int(axis) for axis in pad.settings.get("axes", range(rank))]
    amounts[:, axes] = np.reshape(pad.settings["pads"], (2, len(axes)))
    if (amounts < 0).any() or amounts[:, :2].any():
        return None
    own = np.reshape(conv.settings.get("pads", [0] * 2 * (rank - 2)), (2, -1))
    settings = {**conv.settings, "pads": (own + amounts[:, 2:]).reshape(-1).tolist()}
    return msgspec.structs.replace(conv, inputs=(pad.inputs[0], *conv.inputs[1:]), settings=settings)


def _one_slice(first: Node, second: Node, graph: Graph) -> Node | None:
    """Two Slices of different axes into one: torch cuts axis by axis."""
    if (first.op, second.op) != ("Slice", "Slice"):
        return None
    between, after = graph.values[first.outputs[0]], graph.values[second.outputs[0]]
    if between.grid != after.grid:
        return None
    rank = len(between.shape)
    cuts = [_cuts(node, rank) for node in (first, second)]
    if set(cuts[0]) & set(cuts[1]):
        return None
    both = cuts[0] | cuts[1]
    starts, ends, steps = zip(*both.values(), strict=True)
    settings = {"axes": list(both), "starts": starts, "ends": ends, "steps": steps}
    return msgspec.structs.replace(first, outputs=second.outputs, settings=settings)


def _cuts(node: Node, rank: int) -> dict[int, tuple[int, int, int]]:
    """Start, end and step for each axis that a Slice cuts."""
    starts, ends = node.settings["starts"], node.settings["ends"]
    axes = node.settings.get("axes", range(len(starts)))
    steps = node.settings.get("steps", [1] * len(starts))
    bounds = zip(starts, ends, steps, strict=True)
    return {
        int(axis) % rank: (int(start), int(end), int(step))
        for axis, (start, end, step) in zip(axes, bounds, strict=True)
    }


def _fuse_hard_swishes(graph: Graph) -> Graph:
    """``x * HardSigmoid(x)`` with slope 1/6 into HardSwish, unless a grid is asked for in between."""
    makers, private = graph.makers(), graph.private()
    nodes = []
    for node in graph.nodes:
        factors = [node.inputs, node.inputs[::-1]] if node.op == "Mul" else []
        swish = None
        for name, other in factors:
            gate = makers.get(name)
            if gate is not None and _gates(gate, other, graph.values, private):
                swish = msgspec.structs.replace(node, op="HardSwish", inputs=(other,), settings={})
        nodes.append(swish or node)
    return _rewritten(graph, nodes, dict(graph.values)).pruned()


def _gates(gate: Node, source: str, values: dict[str, Value], private: set[str]) -> bool:
    alpha, beta = gate.settings.get("alpha", 0.2), gate.settings.get("beta", 0.5)
    slope = gate.op == "HardSigmoid" and np.isclose(alpha, 1 / 6) and np.isclose(beta, 0.5)
    made = gate.outputs[0]
    return bool(slope and gate.inputs[0] == source and made in private and values[made].grid is None)


def _with_activation(first: Node, clip: Node, graph: Graph) -> Node | None:
    """A Relu or Clip that TFLite has as a fused activation, into the op before it."""
    if clip.op not in {"Relu", "Clip"} or first.op not in _TAKES_ACTIVATION or first.activation != "NONE":
        return None
    if _is_batched(first, graph.values):
        return None
    bounds = (0.0, np.inf) if clip.op == "Relu" else clip_bounds(clip.settings)
    between, after = graph.values[first.outputs[0]].grid, graph.values[clip.outputs[0]].grid
    if between is not None and (after is None or not _covers(between, after)):
        return None
    if bounds in FUSED:
        activation = FUSED[bounds]
    elif after is not None and after.saturates_at(*bounds):
        activation = "NONE"
    else:
        return None
    return msgspec.structs.replace(first, outputs=clip.outputs, activation=activation)


def _covers(between: Grid, after: Grid) -> bool:
    """Whether leaving out the first grid clips as before, to within the step that its ends are rounded by."""
    step = between.scale[0]
    return between.low <= after.low + step and between.high >= after.high - step
