"""Where a lowering stands: one node, with its inputs and outputs in the right domain (integers or float)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import msgspec
import numpy as np

from edgepipe.convert.tflite.builder import Builder, View, options
from edgepipe.convert.tflite.graph import Grid, Node, Value
from edgepipe.convert.tflite.layout import Layout, plain
from edgepipe.convert.tflite.program import Tensor
from edgepipe.convert.tflite.read import DYNAMIC
from edgepipe.errors import UnsupportedOp
from edgepipe.graph.integers import limits


class Site:
    """A node that is being lowered.

    Attributes:
        node: The node.
        builder: Where its operators go.
        integer: Whether it computes on integers; in float otherwise, with conversions around it.
    """

    def __init__(self, node: Node, builder: Builder, *, integer: bool) -> None:
        self.node = node
        self.builder = builder
        self.integer = integer

    @property
    def bits(self) -> int:
        """Width of the integers that the node writes, where it computes on integers."""
        grid = self.result().grid
        return 8 if grid is None else grid.bits

    @property
    def dynamic(self) -> bool:
        """Whether the node takes floats, and its kernel quantizes them as they come."""
        return not self.integer and bool(self.setting(DYNAMIC)) and self.value(1).grid is not None

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
        """A tensor between the operators of this node: integers where a grid is given."""
        dtype = grid.dtype if grid is not None else "float32"
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
        """A constant scalar: on `grid` if given, on one that holds it exactly, or in float."""
        if not self.integer:
            return self.builder.constant(f"{self.node.outputs[0]}/{suffix}", np.array(number, np.float32))
        grid = grid or exact_grid(number, self.bits)
        data = grid.quantized(np.array(number))
        return self.builder.constant(f"{self.node.outputs[0]}/{suffix}", data, grid)

    def refuse(self, why: str, remedy: str = "") -> UnsupportedOp:
        """The error for a node that cannot be written."""
        return refusal(self.node, why, remedy)

    def _constant_operand(
        self, value: Value, layout: Layout, lead: tuple[int, ...], grid: Grid | None
    ) -> Tensor:
        if prod(value.shape) == 1:
            if self.integer and value.grid is not None and grid is None:
                return self.builder.constant(
                    value.name, np.asarray(value.data).reshape(()), _stored(value.grid)
                )
            return self.scalar("constant", float(value.real().reshape(())), grid)
        keep = layout == plain(len(layout.perm))
        own = _stored(value.grid) if self.integer else None
        data = np.asarray(value.data) if own is not None else value.real().astype(np.float32)
        if own is not None and grid is not None and grid != own:
            data = grid.quantized(value.real())
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
        int16: Whether TFLite has it on int16 as well.
        crosses: Whether what it reads and what it writes may differ in width.
        weights: Constant inputs that the lowering brings onto a grid of its own: biases.
        per_channel: Constant inputs that may have one step for each channel.
        scalars: Inputs that int8 needs to be constant scalars.
        steps: How many steps of the output on int8 one step of what its kernel adds up is.
        most_steps: What LiteRT's kernel takes fewer than.
    """

    lowering: Lowering
    integer: bool = True
    int16: bool = False
    crosses: bool = False
    weights: tuple[int, ...] = ()
    per_channel: tuple[int, ...] = ()
    scalars: tuple[int, ...] = ()
    steps: Callable[[Node, Mapping[str, Value]], float] | None = None
    most_steps: float = 2.0**8


def computes_on_integers(node: Node, rule: Rule, values: Mapping[str, Value]) -> bool:
    """Whether a node computes on integers.

    All that it reads and writes is on per-tensor grids of one width, constants likewise, and the output's
    is not so much finer than its inputs' that the kernel cannot bring the one onto the other.
    """
    if not rule.integer or any(values[name].grid is None for name in node.outputs):
        return False
    if not all(_fits(values[name], index, rule) for index, name in enumerate(node.inputs) if name):
        return False
    flowing = [values[name] for name in (*node.inputs, *node.outputs) if name and values[name].data is None]
    if not (rule.crosses or _has_kernel({value.grid for value in flowing}, rule)):
        return False
    return rule.steps is None or _is_wide(node, values) or rule.steps(node, values) < rule.most_steps


def _is_wide(node: Node, values: Mapping[str, Value]) -> bool:
    grid = values[node.outputs[0]].grid
    return grid is not None and grid.bits == 16


def _has_kernel(grids: set[Grid | None], rule: Rule) -> bool:
    """Whether the op has a kernel for activations of these widths; those of 16 bits know no zero point."""
    widths = {grid.bits for grid in grids if grid is not None}
    centred = not any(grid.zero_point[0] for grid in grids if grid is not None)
    return widths == {8} or (widths == {16} and centred and rule.int16)


def _fits(value: Value, index: int, rule: Rule) -> bool:
    if value.data is not None and (index in rule.weights or value.data.size == 1):
        return True
    if index in rule.scalars:
        return False
    return value.grid is not None and (value.grid.axis is None or index in rule.per_channel)


def steps_of_inputs(node: Node, values: Mapping[str, Value]) -> float:
    """How many steps of the output the greatest step of an input is."""
    return max(map(_step, (values[name] for name in node.inputs))) / _step(values[node.outputs[0]])


def steps_of_products(node: Node, values: Mapping[str, Value]) -> float:
    """How many steps of the output one step of a product of two inputs is."""
    steps = [_step(values[name]) for name in node.inputs]
    return steps[0] * steps[1] / _step(values[node.outputs[0]])


def _step(value: Value) -> float:
    """The step of an operand: that of a constant in float is what `exact_grid` gives it."""
    if value.grid is not None:
        return max(value.grid.scale)
    return exact_grid(float(value.real().reshape(()))).scale[0]


def refusal(node: Node, why: str, remedy: str = "") -> UnsupportedOp:
    """The error for a node that cannot be written."""
    return UnsupportedOp(
        f"TFLite cannot express this {node.op}: {why}",
        where=f"node {node.name}",
        got=node.op,
        remedy=remedy
        or "change this part of the model, or take a target whose runtimes are ONNX Runtime alone",
    )


def _stored(grid: Grid | None) -> Grid | None:
    """The grid of a constant as element-wise kernels read it: none of them unpacks int4."""
    return grid if grid is None or grid.bits >= 8 else msgspec.structs.replace(grid, bits=8)


def exact_grid(number: float, bits: int = 8) -> Grid:
    """A grid on which the number lies exactly, as the greatest step: 127 for 8 bits."""
    step = float(np.float32(abs(number) / limits(bits)[1])) if number else 1.0
    return Grid((step,), (0,), bits=bits)


__all__ = [
    "Lowering",
    "Rule",
    "Site",
    "computes_on_integers",
    "exact_grid",
    "options",
    "refusal",
    "steps_of_inputs",
    "steps_of_products",
]
