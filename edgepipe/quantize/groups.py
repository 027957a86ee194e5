"""Which activations share a grid.

Ops that only move elements tie their output to their input. Concat, Max and Min want all their inputs
on the grid of their output; an input that other ops read too, and whose own range is much narrower,
keeps a grid of its own and is rounded once more on its way into them: one more integer op, for the
bits that every other reader would lose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgepipe.graph.moving import JOINING
from edgepipe.quantize.plan import Plan, activations

if TYPE_CHECKING:
    import onnx_ir as ir

    Range = tuple[float, float]

MOST_WIDENING = 2.0
"""How many times as wide as its own a shared range may be: a factor of 2 costs one bit of eight."""


class _Groups:
    """Disjoint sets of values, each with the range that all of it spans."""

    def __init__(self, ranges: Mapping[ir.Value, Range]) -> None:
        self.leader = {value: value for value in ranges}
        self.range = {value: (min(low, 0.0), max(high, 0.0)) for value, (low, high) in ranges.items()}
        self.members = {value: [value] for value in ranges}
        self.narrowest = dict.fromkeys(ranges, 0.0)

    def find(self, value: ir.Value) -> ir.Value:
        while self.leader[value] is not value:
            value = self.leader[value]
        return value

    def together(self, first: ir.Value, second: ir.Value) -> Range:
        (low, high), (other_low, other_high) = self.range[first], self.range[second]
        return min(low, other_low), max(high, other_high)

    def unite(self, first: ir.Value, second: ir.Value) -> None:
        first, second = self.find(first), self.find(second)
        if first is second:
            return
        self.range[first] = self.together(first, second)
        self.members[first] += self.members.pop(second)
        self.narrowest[first] = min(self.narrowest[first], self.narrowest[second])
        self.leader[second] = first

    def settle(self) -> None:
        """From now on, `narrowest` remembers what each group spanned at this moment."""
        self.narrowest = {value: _width(self.range[value]) for value in self.members}


def share_grids(plan: Plan, ranges: Mapping[ir.Value, Range]) -> tuple[tuple[ir.Value, ...], ...]:
    """Sets of the plan's tensors that share one grid, each in order of computation.

    Every tensor is in exactly one; those with a fixed grid stay alone.

    Args:
        plan: The plan.
        ranges: Least and greatest value of each of its tensors.
    """
    groups = _Groups({value: ranges[value] for value in plan.tensors})
    for node in plan.keeping:
        if node.op_type not in JOINING:
            linked = _free(plan, [*activations(node), *node.outputs])
            for value in linked[1:]:
                groups.unite(linked[0], value)
    groups.settle()
    for node in plan.keeping:
        result = node.outputs[0]
        if node.op_type in JOINING and _free(plan, [result]):
            for value in _free(plan, activations(node)):
                _join(groups, node, value, result)
    found: dict[ir.Value, list[ir.Value]] = {}
    for value in plan.tensors:
        found.setdefault(groups.find(value), []).append(value)
    return tuple(tuple(group) for group in found.values())


def _free(plan: Plan, values: list[ir.Value]) -> list[ir.Value]:
    tensors = set(plan.tensors)
    return [value for value in values if value in tensors and value not in plan.fixed]


def _join(groups: _Groups, node: ir.Node, value: ir.Value, result: ir.Value) -> None:
    """Unites an input of a joining op with its output, if no other reader loses much by it."""
    inner, outer = groups.find(value), groups.find(result)
    if inner is outer:
        return
    unread = _has_no_other_reader(groups.members[inner], node)
    narrowest = groups.narrowest[outer]
    if not unread:
        narrowest = min(narrowest, groups.narrowest[inner])
    if unread or _width(groups.together(inner, outer)) <= MOST_WIDENING * narrowest:
        groups.unite(outer, inner)
        groups.narrowest[outer] = narrowest


def _has_no_other_reader(group: list[ir.Value], node: ir.Node) -> bool:
    """Whether all of a group leads to `node` alone."""
    inside = set(group)
    return not any(
        value.is_graph_output()
        or any(user is not node and inside.isdisjoint(user.outputs) for user in value.consumers())
        for value in group
    )


def _width(span: Range) -> float:
    return span[1] - span[0]
