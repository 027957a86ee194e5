"""What quantized models of other tools hold that TFLite does not take, and what becomes of it."""

from __future__ import annotations

import msgspec
import numpy as np

from edgepipe.convert.tflite.graph import Array, Graph, Grid, Node, Value
from edgepipe.convert.tflite.lower import RULES
from edgepipe.convert.tflite.lower.site import computes_on_integers
from edgepipe.convert.tflite.lower.weights import output_axis
from edgepipe.convert.tflite.narrow import widen

_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_NAMED = 5
"""How many layers a note names before it only counts."""


class Settled(msgspec.Struct, frozen=True):
    """A graph that the integer kernels take, and what that cost.

    Attributes:
        graph: The graph.
        notes: A sentence for each thing that is not as the model says, for people.
    """

    graph: Graph
    notes: tuple[str, ...]


class _Rounded(msgspec.Struct, frozen=True):
    """A weight on symmetric grids: its value, and the greatest change as a share of its step."""

    value: Value
    change: float


def settle(graph: Graph) -> Settled:
    """Moves weights with a zero point onto symmetric grids, and says which ops are left in float.

    A channel whose integers fit int8 once the zero point is taken off keeps its very scale and reals. Any
    other gets the least scale that holds it, and its weights are rounded again.

    Weights of 4 bits that would make a convolution slow are widened, as `widen` tells.

    Args:
        graph: A graph that is ready to be lowered.
    """
    if not graph.quantized():
        return Settled(graph, ())
    values = dict(graph.values)
    changes: dict[str, float] = {}
    for node in graph.nodes:
        axis = _asymmetric_axis(node, values)
        if axis is not None:
            rounded = _symmetric(values[node.inputs[1]], axis)
            values[node.inputs[1]] = rounded.value
            changes[node.name] = rounded.change
    widened = widen(msgspec.structs.replace(graph, values=values))
    graph = widened.graph
    notes = [
        _float_note(graph),
        _coarse_note(graph),
        _wide_note(graph),
        _slow_note([node.name for node in widened.slow]),
        _weight_note({name: part for name, part in changes.items() if part}),
    ]
    return Settled(graph, tuple(note for note in notes if note))


def _asymmetric_axis(node: Node, values: dict[str, Value]) -> int | None:
    """Axis of the output channels of a weight of 8 bits that has a zero point; None for any other."""
    if node.op not in _LINEAR or len(node.inputs) < 2:
        return None
    weight = values[node.inputs[1]]
    grid = weight.grid
    if weight.data is None or grid is None or grid.bits != 8 or not any(grid.zero_point):
        return None
    axis = output_axis(node, weight)
    # One channel axis of a grouped transposed convolution holds several outputs: left to be refused.
    grouped = node.op == "ConvTranspose" and node.settings.get("group", 1) != 1
    return None if grouped or grid.axis not in (None, axis) else axis


def _symmetric(weight: Value, axis: int) -> _Rounded:
    if weight.grid is None or weight.data is None:
        raise TypeError(f"{weight.name} is not quantized")
    channels = weight.shape[axis]
    zero_points = np.resize(np.array(weight.grid.zero_point, np.int64), channels)
    scales = np.resize(np.array(weight.grid.scale), channels)
    flat: Array = np.moveaxis(weight.data, axis, 0).reshape(channels, -1).astype(np.int64)
    steps = flat - zero_points[:, None]
    low, high = steps.min(axis=1, initial=0), steps.max(axis=1, initial=0)
    fits = (low >= -128) & (high <= 127)
    wider = (scales * np.maximum(-low, high) / 127).astype(np.float32).astype(np.float64)
    own = np.where(fits, scales, wider)
    ratio = np.divide(scales, own, out=np.ones(channels), where=own > 0)
    rounded = np.clip(np.rint(steps * ratio[:, None]), -128, 127)
    errors = np.abs(rounded - steps * ratio[:, None]).max(axis=1, initial=0.0)
    moved = (channels, *np.moveaxis(weight.data, axis, 0).shape[1:])
    data = np.ascontiguousarray(np.moveaxis(rounded.astype(np.int8).reshape(moved), 0, axis))
    grid = Grid(tuple(map(float, own)), (0,) * channels, axis)
    change = float((errors * ~fits).max(initial=0.0))
    return _Rounded(msgspec.structs.replace(weight, data=data, grid=grid), change)


def _slow_note(names: list[str]) -> str:
    if not names:
        return ""
    return (
        f"{_count(names, 'convolution')} on int4 weights, which LiteRT computes as slowly as in float, some "
        "outputs a step too high; weight_bits = 8 takes about a third of the time and twice the bytes: "
        f"{_listed(names)}"
    )


def _weight_note(changes: dict[str, float]) -> str:
    if not changes:
        return ""
    return (
        f"weights of {_count(list(changes), 'layer')} with a zero point, which TFLite does not know: rounded "
        f"again to symmetric int8, by up to {max(changes.values()):.2f} of a step: {_listed(list(changes))}"
    )


def _float_note(graph: Graph) -> str:
    """Which ops compute in float though TFLite has them on integers: the model quantizes too little."""
    left = [
        f"{node.op} {node.name}"
        for node in graph.nodes
        if node.op in RULES
        and RULES[node.op].integer
        and not _is_integer(node, graph)
        and not _is_wide(node, graph)
        and not _is_coarse(node, graph)
    ]
    if not left:
        return ""
    return (
        f"{_count(left, 'op')} in float in TFLite, as the model does not quantize all that goes in and out: "
        f"{_listed(left)}"
    )


def _is_coarse(node: Node, graph: Graph) -> bool:
    """Whether it is the steps of its grids alone that keep a node from integers."""
    rule = RULES.get(node.op)
    if rule is None or rule.steps is None or _is_integer(node, graph):
        return False
    return computes_on_integers(node, msgspec.structs.replace(rule, steps=None), graph.values)


def _coarse_note(graph: Graph) -> str:
    """Which ops compute in float because what they add up is too coarse for their output."""
    left = [f"{node.op} {node.name}" for node in graph.nodes if _is_coarse(node, graph)]
    if not left:
        return ""
    return (
        f"{_count(left, 'op')} in float in TFLite, as the steps of the output are finer than its kernels "
        f"bring those of the inputs onto: {_listed(left)}"
    )


def _wide_note(graph: Graph) -> str:
    """What activations of 16 bits cost in TFLite."""
    wide = [node for node in graph.nodes if _is_wide(node, graph)]
    if not wide:
        return ""
    left = [f"{node.op} {node.name}" for node in wide if not _is_integer(node, graph)]
    text = (
        f"{_count([node.name for node in wide], 'op')} on 16 bits, which LiteRT computes with its reference "
        "kernels: on a CPU many times slower than in float, which keep_float gives"
    )
    return f"{text}; without such a kernel, and in float: {_listed(left)}" if left else text


def _is_wide(node: Node, graph: Graph) -> bool:
    grid = graph.values[node.outputs[0]].grid
    return grid is not None and grid.bits == 16


def _is_integer(node: Node, graph: Graph) -> bool:
    """Whether a node computes on integers, or on nothing that a quantizer is concerned with."""
    if all(graph.values[name].dtype != "float32" for name in node.outputs):
        return True
    rule = RULES.get(node.op)  # an op without one is refused when it comes to writing it
    return rule is not None and computes_on_integers(node, rule, graph.values)


def _count(names: list[str], noun: str) -> str:
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
