"""Builds a Program: hands out tensors for values, converting layout and grid where a reader needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from edgepipe.convert.tflite.graph import Array, Graph, Grid
from edgepipe.convert.tflite.layout import Layout, moves_nothing, plain
from edgepipe.convert.tflite.program import Operator, Options, Program, Tensor
from edgepipe.convert.tflite.versions import Use, lowest_version

# Halving fewer weights than these saves hardly more bytes than the DEQUANTIZE operator costs.
_LEAST_FLOAT16 = 256


_MOST_AXES = 4
"""Axes of a tensor that is multiplied by 1 to change its grid; with more it was not tried."""


class View(msgspec.Struct, frozen=True):
    """One form in which a value exists as a tensor."""

    layout: Layout
    grid: Grid | None


class Builder:
    """Collects tensors and operators; one for each emission.

    Every value has a first view, that in which its op wrote it, and gets further ones (another grid,
    float, another layout) when a reader asks for them: an operator is written once for each.
    """

    def __init__(self, graph: Graph, *, float16: bool = False) -> None:
        self.graph = graph
        self._float16 = float16
        self._tensors: list[Tensor] = []
        self._operators: list[Operator] = []
        self._names: dict[str, int] = {}
        self._views: dict[str, dict[View, Tensor]] = {}
        self._first: dict[str, View] = {}
        self._constants: dict[tuple[object, ...], Tensor] = {}

    def tensor(self, name: str, shape: tuple[int, ...], dtype: str, grid: Grid | None = None) -> Tensor:
        """A new tensor that is no constant."""
        return self._add(name, shape, dtype, grid, None)

    def constant(self, name: str, data: Array, grid: Grid | None = None) -> Tensor:
        """A constant in the layout of TFLite; the same elements, type and grid give the same tensor.

        Float weights become float16 with a DEQUANTIZE behind where the emission is float16 and no
        weight is out of its range.
        """
        data = np.ascontiguousarray(data).reshape(data.shape)
        key = (data.dtype.name, data.shape, grid, data.tobytes())
        if key not in self._constants:
            half = self._float16 and data.dtype == np.float32 and data.size >= _LEAST_FLOAT16
            if half and np.abs(data).max() <= np.finfo(np.float16).max:
                stored = self._add(f"{name}/float16", data.shape, "float16", None, data.astype(np.float16))
                full = self.tensor(name, data.shape, "float32")
                self.operator("DEQUANTIZE", [stored], [full], Options("DequantizeOptions"))
                self._constants[key] = full
            else:
                dtype = data.dtype.name if grid is None else grid.dtype
                self._constants[key] = self._add(name, data.shape, dtype, grid, data)
        return self._constants[key]

    def operator(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor],
        options: Options | None = None,
    ) -> None:
        """Appends an operator."""
        given = tuple(tensor for tensor in inputs if tensor is not None)
        version = lowest_version(Use(code, given, outputs[0], options.fields if options else {}))
        sources = tuple(-1 if tensor is None else tensor.index for tensor in inputs)
        self._operators.append(Operator(code, version, sources, tuple(t.index for t in outputs), options))

    def define(self, name: str, view: View, tensor: Tensor | None = None) -> Tensor:
        """The tensor in which the value is first written: a new one, or `tensor` that holds it already."""
        if tensor is None:
            value = self.graph.values[name]
            dtype = view.grid.dtype if view.grid is not None else value.dtype
            tensor = self.tensor(name, view.layout.shape(value.shape), dtype, view.grid)
        self._first[name] = view
        self._views[name] = {view: tensor}
        return tensor

    def first(self, name: str) -> View:
        """The view in which the value was written."""
        return self._first[name]

    def view(self, name: str, wanted: View) -> Tensor:
        """The value in the wanted view, converted if need be.

        A quantized value is always read through its own grid, also by a reader that wants a float or
        another grid: that is what its Q/DQ pair says.
        """
        own = self.graph.values[name].grid
        current = self._first[name]
        if own is not None and current.grid != own:
            settled = View(current.layout, own)
            # From here on, the tensor that the op wrote is no view of the value: it is not rounded yet.
            self._views[name] = {settled: self._convert(name, current, settled)}
            self._first[name] = current = settled
        for step in (View(current.layout, wanted.grid), wanted):
            if step not in self._views[name]:
                self._views[name][step] = self._convert(name, current, step)
            current = step
        return self._views[name][wanted]

    def program(self, inputs: tuple[tuple[str, int], ...], outputs: tuple[tuple[str, int], ...]) -> Program:
        """What was built, with its ports; their tensors get the ports' names where those are free."""
        for name, index in outputs:
            if name not in self._names:
                self._names[name] = 1
                self._tensors[index] = msgspec.structs.replace(self._tensors[index], name=name)
        return Program(tuple(self._tensors), tuple(self._operators), inputs, outputs)

    def reshape(self, source: Tensor, result: Tensor) -> None:
        """Writes a RESHAPE between two tensors of the same grid."""
        shape = self.constant(f"{result.name}/shape", np.array(result.shape, np.int32))
        self.operator(
            "RESHAPE", [source, shape], [result], Options("ReshapeOptions", {"newShape": result.shape})
        )

    def like(self, source: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
        """A new tensor of the type and grid of `source`."""
        return self.tensor(name, shape, source.dtype, source.grid)

    def transpose(self, source: Tensor, perm: tuple[int, ...], name: str) -> Tensor:
        """The tensor with its axes permuted: a RESHAPE where only axes of size 1 move."""
        result = self.like(source, name, tuple(source.shape[axis] for axis in perm))
        if moves_nothing(source.shape, perm):
            self.reshape(source, result)
        else:
            axes = self.constant(f"{name}/perm", np.array(perm, np.int32))
            self.operator("TRANSPOSE", [source, axes], [result], Options("TransposeOptions"))
        return result

    def _convert(self, name: str, current: View, wanted: View) -> Tensor:
        source = self._views[name][current]
        if current.grid != wanted.grid:
            dtype = "float32" if wanted.grid is None else wanted.grid.dtype
            suffix = "dequantized" if wanted.grid is None else "quantized"
            result = self.tensor(f"{name}/{suffix}", source.shape, dtype, wanted.grid)
            if len(source.shape) <= _MOST_AXES and _scales_exactly(current.grid, wanted.grid):
                one = self.constant(f"{name}/one", np.array(1, np.int8), Grid((1.0,), (0,)))
                self.operator("MUL", [source, one], [result], Options("MulOptions"))
                return result
            code = "DEQUANTIZE" if wanted.grid is None else "QUANTIZE"
            table = "DequantizeOptions" if wanted.grid is None else "QuantizeOptions"
            self.operator(code, [source], [result], Options(table))
            return result
        return self._relayout(name, source, current.layout, wanted.layout)

    def _relayout(self, name: str, source: Tensor, current: Layout, wanted: Layout) -> Tensor:
        shape = self.graph.values[name].shape
        if current.sizes:
            lead = source.shape[:-1]
            split = self.like(
                source, f"{name}/split", (*lead, *(current.sizes[axis] for axis in current.order))
            )
            self.reshape(source, split)
            back = tuple(len(lead) + current.order.index(axis) for axis in range(len(current.order)))
            source = self.transpose(split, (*range(len(lead)), *back), f"{name}/ordered")
            current = plain(len(shape))
            if current == wanted:
                result = self.like(source, f"{name}/flat", shape)
                self.reshape(source, result)
                return result
        perm = tuple(current.perm.index(axis) for axis in wanted.perm)
        return self.transpose(source, perm, f"{name}/transposed")

    def _add(
        self, name: str, shape: tuple[int, ...], dtype: str, grid: Grid | None, data: Array | None
    ) -> Tensor:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        unique = f"{name}_{count}" if count else name
        tensor = Tensor(len(self._tensors), unique, shape, dtype, grid, data)
        self._tensors.append(tensor)
        return tensor


def _scales_exactly(current: Grid | None, wanted: Grid | None) -> bool:
    """Whether a product with 1 brings 8-bit integers onto another grid: within the factors XNNPACK takes.

    It gives the integers that QuantizeLinear names. QUANTIZE, which is made for this, has a coarser factor
    in XNNPACK: 6 % of its outputs are one step off.
    """
    if current is None or wanted is None or current.bits != 8 or wanted.bits != 8:
        return False
    return 2.0**-16 <= current.scale[0] / wanted.scale[0] < 2.0**8


def options(table: str, **fields: Any) -> Options:
    """Options of the schema's table of that name: ``options("Pool2DOptions", padding="SAME")``."""
    return Options(table, fields)
