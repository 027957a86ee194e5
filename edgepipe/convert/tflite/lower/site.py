"""Where a lowering stands: one node, with its inputs and outputs in the right domain (int8 or float)."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import msgspec
import numpy as np

from edgepipe.convert.tflite.builder import Builder, View, options
from edgepipe.convert.tflite.graph import Array, Grid, Node, Value
from edgepipe.convert.tflite.layout import Layout, plain
from edgepipe.convert.tflite.program import Tensor
from edgepipe.errors import UnsupportedOp


class Site:
    """A node that is being lowered.

    Attributes:
        node: The node.
        builder: Where its operators go.
        integer: Whether it computes on int8; in float otherwise, with conversions around it.
    """

    def __init__(self, node: Node, builder: Builder, *, integer: bool) -> None:
        self.node = node
        self.builder = builder
        self.integer = integer

    def has(self, index: int) -> bool:
        """Whether the optional input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] != ""

    def value(self, index: int = 0) -> Value:
        """An input."""
        return self.builder.graph.values[self.node.inputs[index]]

    def result(self, index: int = 0) -> Value:
        """An output."""
        return self.builder.graph.values[self.node.outputs[index]]

    def setting(self, key: str, default: Any = None) -> Any:
        """A setting of the node."""
        return self.node.settings.get(key, default)

    def layout(self, index: int = 0) -> Layout:
        """The layout in which the input was written."""
        return self.builder.first(self.node.inputs[index]).layout

    def grid(self, index: int = 0) -> Grid | None:
        """The grid on which the node reads the input: None in float."""
        return self.value(index).grid if self.integer else None

    def step(self, index: int = 0) -> Grid:
        """The grid of the input, where the node is known to compute on int8."""
        grid = self.value(index).grid
        if grid is None:
            raise TypeError(f"{self.node.name} reads a float")
        return grid

    def read(self, index: int = 0, layout: Layout | None = None, grid: Grid | None = None) -> Tensor:
        """The tensor of an input that is no constant.

        Args:
            index: Which input.
            layout: Wanted layout; by default that in which it was written.
            grid: Wanted grid; by default its own.
        """
        view = View(layout or self.layout(index), grid if grid and self.integer else self.grid(index))
        return self.builder.view(self.node.inputs[index], view)

    def define(self, layout: Layout, index: int = 0, grid: Grid | None = None) -> Tensor:
        """The tensor of an output, for an operator to write.

        Args:
            layout: The layout in which it is written.
            index: Which output.
            grid: The grid on which the operator writes it; by default that which the model asks for.
                Readers get it converted where the two differ.
        """
        wanted = (grid or self.result(index).grid) if self.integer else None
        return self.builder.define(self.node.outputs[index], View(layout, wanted))

    def alias(self, layout: Layout, source: Tensor) -> None:
        """Lets the first output be the tensor `source`."""
        self.builder.define(self.node.outputs[0], View(layout, source.grid), source)

    def scratch(self, suffix: str, shape: tuple[int, ...], grid: Grid | None = None) -> Tensor:
        """A tensor between the operators of this node: int8 where a grid is given."""
        dtype = "int8" if grid is not None else "float32"
        return self.builder.tensor(f"{self.node.outputs[0]}/{suffix}", shape, dtype, grid)

    def integers(self, suffix: str, numbers: Any) -> Tensor:
        """A constant int32 tensor of axes, paddings, sizes, ..."""
        return self.builder.constant(f"{self.node.outputs[0]}/{suffix}", np.array(numbers, np.int32))

    def operand(self, index: int, layout: Layout, grid: Grid | None = None) -> Tensor:
        """An input of an element-wise op, constant or not, ready to broadcast in `layout`."""
        value, rank = self.value(index), len(layout.perm)
        lead = (1,) * (rank - len(value.shape))
        if value.data is not None:
            return self._constant_operand(value, layout, lead, grid)
        if not lead:
            return self.read(index, layout, grid)
        tensor = self.read(index, plain(len(value.shape)), grid)
        if layout == plain(rank):
            return tensor
        wide = self.builder.like(tensor, f"{value.name}/wide", (*lead, *value.shape))
        self.builder.reshape(tensor, wide)
        return self.builder.transpose(wide, layout.perm, f"{value.name}/arranged")

    def scalar(self, suffix: str, number: float, grid: Grid | None = None) -> Tensor:
        """A constant scalar: on `grid` if given, on a grid that holds it exactly in int8, or in float."""
        if not self.integer:
            return self.builder.constant(f"{self.node.outputs[0]}/{suffix}", np.array(number, np.float32))
        grid = grid or exact_grid(number)
        steps = np.rint(number / grid.scale[0]) + grid.zero_point[0]
        data = np.clip(steps, -128, 127).astype(np.int8)
        return self.builder.constant(f"{self.node.outputs[0]}/{suffix}", data, grid)

    def refuse(self, why: str, remedy: str = "") -> UnsupportedOp:
        """The error for a node that cannot be written."""
        return refusal(self.node, why, remedy)

    def _constant_operand(
        self, value: Value, layout: Layout, lead: tuple[int, ...], grid: Grid | None
    ) -> Tensor:
        if prod(value.shape) == 1:
            if self.integer and value.grid is not None and grid is None:
                return self.builder.constant(value.name, np.asarray(value.data).reshape(()), value.grid)
            return self.scalar("constant", float(value.real().reshape(())), grid)
        keep = layout == plain(len(layout.perm))
        own = value.grid if self.integer else None
        data = np.asarray(value.data) if own is not None else value.real().astype(np.float32)
        if own is not None and grid is not None and grid != own:
            data = on_grid(value.real(), grid)
            own = grid
        return self.builder.constant(
            value.name, data if keep else layout.arrange(data.reshape(*lead, *value.shape)), own
        )


Lowering = Callable[[Site], None]


class Rule(msgspec.Struct, frozen=True):
    """How an op is lowered.

    Attributes:
        lowering: Writes the operators of a node.
        integer: Whether TFLite has it on int8; it is computed in float otherwise.
        weights: Constant inputs that the lowering brings onto a grid of its own: biases.
        per_channel: Constant inputs that may have one step for each channel.
        scalars: Inputs that int8 needs to be constant scalars.
    """

    lowering: Lowering
    integer: bool = True
    weights: tuple[int, ...] = ()
    per_channel: tuple[int, ...] = ()
    scalars: tuple[int, ...] = ()


def computes_on_integers(node: Node, rule: Rule, values: dict[str, Value]) -> bool:
    """Whether all that the node reads and writes is on per-tensor int8 grids, constants likewise."""
    if not rule.integer or any(values[name].grid is None for name in node.outputs):
        return False
    return all(_fits(values[name], index, rule) for index, name in enumerate(node.inputs) if name)


def _fits(value: Value, index: int, rule: Rule) -> bool:
    if value.data is not None and (index in rule.weights or value.data.size == 1):
        return True
    if index in rule.scalars:
        return False
    return value.grid is not None and (value.grid.axis is None or index in rule.per_channel)


def refusal(node: Node, why: str, remedy: str = "") -> UnsupportedOp:
    """The error for a node that cannot be written."""
    return UnsupportedOp(
        f"TFLite cannot express this {node.op}: {why}",
        where=f"node {node.name}",
        got=node.op,
        remedy=remedy
        or "change this part of the model, or take a target whose runtimes are ONNX Runtime alone",
    )


def exact_grid(number: float) -> Grid:
    """An int8 grid on which the number lies exactly, as 127 steps."""
    step = float(np.float32(abs(number) / 127)) if number else 1.0
    return Grid((step,), (0,))


def on_grid(real: Array, grid: Grid) -> Array:
    """Rounds onto a per-tensor int8 grid, half to even, saturating."""
    steps = np.rint(real / grid.scale[0]) + grid.zero_point[0]
    return np.asarray(np.clip(steps, -128, 127).astype(np.int8))


__all__ = ["Lowering", "Rule", "Site", "computes_on_integers", "exact_grid", "on_grid", "options", "refusal"]
