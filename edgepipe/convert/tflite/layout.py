"""Layouts: how the tensor in TFLite lies relative to the value in ONNX.

A layout is only a note on a value, so an ONNX Transpose writes nothing: it changes the note. A real
TRANSPOSE is written only where an op needs another layout than its input has.
"""

from __future__ import annotations

from collections import deque
from math import prod

import msgspec
import numpy as np

from edgepipe.convert.tflite.graph import Array, Graph, Node

# Ops that TFLite computes channels-last only; their first input tells what layout a graph input wants.
SPATIAL = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Resize",
        "DepthToSpace",
        "SpaceToDepth",
    }
)


class Layout(msgspec.Struct, frozen=True):
    """``tensor = value.transpose(perm)``, and how the last axis lies inside where it flattens several.

    Attributes:
        perm: Axes of the value in the order of the tensor's.
        sizes: Sizes that the value's last axis flattens, in ONNX order; () where it lies in order.
        order: Positions of `sizes` in the order in which the tensor flattens them.
    """

    perm: tuple[int, ...]
    sizes: tuple[int, ...] = ()
    order: tuple[int, ...] = ()

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor's shape, given the value's."""
        return tuple(shape[axis] for axis in self.perm)

    def axis(self, axis: int) -> int:
        """The tensor's axis, given the value's (which may be negative)."""
        return self.perm.index(axis % len(self.perm))

    def arrange(self, array: Array) -> Array:
        """The tensor's elements, given the value's; axes of size 1 may stand for any size."""
        if self.sizes and array.shape[-1] > 1:
            split = array.reshape(*array.shape[:-1], *self.sizes)
            lead = tuple(range(array.ndim - 1))
            array = split.transpose(*lead, *(array.ndim - 1 + axis for axis in self.order)).reshape(
                array.shape
            )
        return array.transpose(self.perm)

    def transposed(self, perm: tuple[int, ...]) -> Layout:
        """The layout of ``value.transpose(perm)`` for the same tensor."""
        return Layout(tuple(perm.index(axis) for axis in self.perm))

    def reduced(self, axes: tuple[int, ...]) -> Layout:
        """The layout after the value's `axes` are dropped."""
        kept = [axis for axis in range(len(self.perm)) if axis not in axes]
        return Layout(tuple(kept.index(axis) for axis in self.perm if axis not in axes))

    def reshaped(self, old: tuple[int, ...], new: tuple[int, ...]) -> Layout | None:
        """The layout of the value reshaped from `old` to `new`, if the same elements in the same order do.

        None where the elements would have to move.
        """
        groups = _factor_groups(old, new)
        if self.sizes or groups is None:
            return None
        left = [axis for axis in self.perm if old[axis] > 1]
        found: list[int] = []
        while left:
            sources, targets = next(group for group in groups if left[0] in group[0])
            head, left = left[: len(sources)], left[len(sources) :]
            if head != sources:
                return self._flattened(old, new, head, sources, targets)
            found += targets
        return Layout(_with_units(tuple(found), new, channels_last=self == channels_last(len(old))))

    def gathered(self, old: tuple[int, ...], new: tuple[int, ...]) -> Layout:
        """The nearest layout from which the value can be reshaped from `old` to `new` without a move.

        Axes that the reshape joins or splits together stand together, in order; the rest stays.
        """
        groups = _factor_groups(old, new)
        if self.sizes or groups is None:
            return plain(len(old))
        joined = {axis: sources for sources, _ in groups for axis in sources}
        placed: list[int] = []
        for axis in self.perm:
            placed += [source for source in joined.get(axis, [axis]) if source not in placed]
        return Layout(tuple(placed))

    def _flattened(
        self,
        old: tuple[int, ...],
        new: tuple[int, ...],
        head: list[int],
        sources: list[int],
        targets: list[int],
    ) -> Layout | None:
        """All of the value flattened into its last axis, in the order that the tensor has."""
        if sorted(head) != sources or targets != [len(new) - 1] or prod(new[:-1]) != 1:
            return None
        sizes = tuple(old[axis] for axis in sources)
        return Layout(tuple(range(len(new))), sizes, tuple(sources.index(axis) for axis in head))


def plain(rank: int) -> Layout:
    """The layout of ONNX itself."""
    return Layout(tuple(range(rank)))


def channels_last(rank: int) -> Layout:
    """NHWC for an NCHW value, and likewise for other ranks from 3 up."""
    return Layout((0, *range(2, rank), 1)) if rank > 2 else plain(rank)


def input_layouts(graph: Graph) -> dict[str, Layout]:
    """The layout that each graph input should have, so that its first spatial reader finds channels last."""
    readers = graph.readers()
    found: dict[str, Layout] = {}
    for name in graph.inputs:
        rank = len(graph.values[name].shape)
        last = channels_last(rank)
        wants_last = rank > 2 and _reaches_spatial(graph, readers, name, last)
        found[name] = last if wants_last else plain(rank)
    return found


def _reaches_spatial(graph: Graph, readers: dict[str, list[Node]], name: str, layout: Layout) -> bool:
    """Whether the first spatial op behind `name` would find its input channels last."""
    pending = deque([(name, layout)])
    while pending:
        passed, current = pending.popleft()
        shape = graph.values[passed].shape
        for node in readers[passed]:
            if node.op in SPATIAL:
                return current == channels_last(len(shape))
            after = _after(graph, node, current, shape)
            if after is not None:
                pending.append((node.outputs[0], after))
    return False


def _after(graph: Graph, node: Node, layout: Layout, shape: tuple[int, ...]) -> Layout | None:
    """The layout of the node's output, where the node follows that of its input."""
    result = graph.values[node.outputs[0]].shape
    if node.op == "Transpose":
        return layout.transposed(transposition(node, len(shape)))
    if node.op in {"Reshape", "Squeeze", "Unsqueeze", "Flatten"}:
        return layout.reshaped(shape, result)
    return layout if len(result) == len(shape) else None


def transposition(node: Node, rank: int) -> tuple[int, ...]:
    """The permutation of a Transpose node; reversed axes where it names none."""
    return tuple(int(axis) for axis in node.settings.get("perm", reversed(range(rank))))


def _factor_groups(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]] | None:
    """Smallest runs of axes (sizes over 1) of both shapes that hold the same elements."""
    sources = [axis for axis, size in enumerate(old) if size > 1]
    targets = [axis for axis, size in enumerate(new) if size > 1]
    groups: list[tuple[list[int], list[int]]] = []
    while sources and targets:
        group = ([sources.pop(0)], [targets.pop(0)])
        while (many := prod(old[a] for a in group[0])) != (wanted := prod(new[a] for a in group[1])):
            if many < wanted and sources:
                group[0].append(sources.pop(0))
            elif many > wanted and targets:
                group[1].append(targets.pop(0))
            else:
                return None
        groups.append(group)
    return None if sources or targets else groups


def _with_units(order: tuple[int, ...], shape: tuple[int, ...], *, channels_last: bool) -> tuple[int, ...]:
    """Completes an order of the axes over 1 with the axes of size 1, in a usual layout if one fits."""
    rank = len(shape)
    usual = [tuple(range(rank))]
    if rank > 2:
        usual.insert(0 if channels_last or rank == 4 else 1, (0, *range(2, rank), 1))
    for perm in usual:
        if tuple(axis for axis in perm if shape[axis] > 1) == order:
            return perm
    placed = list(order)
    for axis in range(rank):
        if shape[axis] == 1:
            placed.insert(placed.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(placed)


def moves_nothing(shape: tuple[int, ...], perm: tuple[int, ...]) -> bool:
    """Whether transposing a tensor of that shape only shifts axes of size 1."""
    moved = [axis for axis in perm if shape[axis] > 1]
    return bool(np.all(np.diff(moved) > 0))
