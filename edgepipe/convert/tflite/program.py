"""A TFLite program as plain records: what the lowering builds and `write` makes a flatbuffer of."""

from __future__ import annotations

from typing import Any

import msgspec

from edgepipe.convert.tflite.graph import Array, Grid


class Tensor(msgspec.Struct, frozen=True, eq=False):
    """A tensor of the program.

    Attributes:
        index: Its place in `Program.tensors`.
        name: Unique in the program.
        shape: In the layout of TFLite.
        dtype: NumPy's name: "float32", "float16", "int8", "int16", "int32"; "int4".
        grid: How it is quantized; `grid.axis` counts in the layout of TFLite. None for a float.
        data: Elements of a constant, in that shape and type, int4 as int8; None otherwise.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    grid: Grid | None = None
    data: Array | None = None


class Options(msgspec.Struct, frozen=True):
    """Options of an operator: the schema's table and the fields that are set, enumerations by name."""

    table: str
    fields: dict[str, Any] = {}


class Operator(msgspec.Struct, frozen=True):
    """An operator: the schema's name, its least sufficient version, indices of tensors (-1: left out)."""

    code: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Options | None = None


class Program(msgspec.Struct, frozen=True):
    """One subgraph with its ports.

    Attributes:
        tensors: By index.
        operators: In execution order.
        inputs: Port name and tensor index.
        outputs: Likewise.
    """

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[str, int], ...]
