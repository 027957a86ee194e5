"""Versions of TFLite's builtin operators: the lowest that expresses an op, and the runtime that it needs.

Source: TensorFlow's versioning tools, ``op_version.cc`` (which version expresses what) and
``runtime_version.cc`` (which release brought it), as of TensorFlow 2.23.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import msgspec

from edgepipe.convert.tflite.program import Operator, Program, Tensor


class Use(msgspec.Struct, frozen=True):
    """One use of an operator: its code, the inputs that are given, its first output, its options."""

    code: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    fields: dict[str, Any]

    @property
    def rank(self) -> int:
        """The highest rank among the inputs."""
        return max((len(tensor.shape) for tensor in self.inputs), default=0)

    @property
    def dilated(self) -> bool:
        """Whether the taps of a window stand apart."""
        return (self.fields["dilationHFactor"], self.fields["dilationWFactor"]) != (1, 1)

    @property
    def gain(self) -> float:
        """Product of the inputs' steps over the output's; 0 in float."""
        if self.output.grid is None:
            return 0.0
        return prod(t.grid.scale[0] for t in self.inputs if t.grid is not None) / self.output.grid.scale[0]


# Version with int8 data, where that is not 1. The converter of TensorFlow writes DEPTH_TO_SPACE as version 2,
# which LiteRT 2.3 does not register; its kernel takes int8 as version 1.
_INT8 = {
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "BATCH_MATMUL": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEQUANTIZE": 2,
    "FULLY_CONNECTED": 4,
    "GATHER": 2,
    "GELU": 2,
    "LOGISTIC": 2,
    "LOG_SOFTMAX": 2,
    "MAXIMUM": 2,
    "MAX_POOL_2D": 2,
    "MEAN": 2,
    "MINIMUM": 2,
    "MIRROR_PAD": 2,
    "MUL": 2,
    "PAD": 2,
    "PADV2": 2,
    "REDUCE_MAX": 2,
    "REDUCE_MIN": 2,
    "RELU": 2,
    "RELU6": 2,
    "RESIZE_BILINEAR": 2,
    "RESIZE_NEAREST_NEIGHBOR": 2,
    "SLICE": 2,
    "SOFTMAX": 2,
    "SPACE_TO_DEPTH": 2,
    "SPLIT": 2,
    "STRIDED_SLICE": 2,
    "SUB": 2,
    "SUM": 2,
    "TANH": 2,
    "TRANSPOSE": 2,
    "TRANSPOSE_CONV": 2,
}

# Version with int16 data, likewise.
_INT16 = {
    "ADD": 3,
    "AVERAGE_POOL_2D": 3,
    "BATCH_MATMUL": 3,
    "CONCATENATION": 3,
    "CONV_2D": 4,
    "DEPTHWISE_CONV_2D": 5,
    "DEQUANTIZE": 3,
    "FULLY_CONNECTED": 7,
    "GATHER": 4,
    "LEAKY_RELU": 2,
    "LOGISTIC": 3,
    "MAXIMUM": 4,
    "MAX_POOL_2D": 3,
    "MEAN": 3,
    "MINIMUM": 4,
    "MIRROR_PAD": 3,
    "MUL": 4,
    "PAD": 3,
    "PADV2": 3,
    "REDUCE_MAX": 3,
    "REDUCE_MIN": 3,
    "RELU": 3,
    "RELU6": 3,
    "RESIZE_BILINEAR": 4,
    "RESIZE_NEAREST_NEIGHBOR": 4,
    "SOFTMAX": 3,
    "SPLIT_V": 2,
    "STRIDED_SLICE": 4,
    "SUB": 5,
    "TANH": 3,
    "TRANSPOSE": 5,
    "TRANSPOSE_CONV": 3,
}
# Version with weights that have 4 bits, and activations that have 8.
_INT4 = {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 10}

# Release of TensorFlow that brought the version, where it is later than `_FLOOR`.
_RELEASES = {
    ("CONV_2D", 6): (2, 9),
    ("CONV_2D", 7): (2, 11),
    ("DEPTHWISE_CONV_2D", 7): (2, 11),
    ("FULLY_CONNECTED", 10): (2, 11),
    ("FULLY_CONNECTED", 12): (2, 17),
    ("MIRROR_PAD", 3): (2, 12),
    ("GELU", 1): (2, 9),
    ("GELU", 2): (2, 9),
    ("PAD", 4): (2, 6),
    ("PADV2", 4): (2, 6),
    ("TRANSPOSE", 6): (2, 12),
    ("TRANSPOSE_CONV", 4): (2, 13),
}
# No version of FULLY_CONNECTED says that its weights have a scale for each channel, and old kernels would
# compute nonsense without a word: this is the oldest release whose kernels were tried and are right.
_DENSE_PER_CHANNEL = (2, 14)
# The same on int4 weights, which 2.14 refuses, and on int16 activations, where it may err.
_DENSE_PER_CHANNEL_OF_OTHERS = (2, 17)
# Kernels that quantize floats themselves: 2.14 lacks some and computes nonsense with others.
_HYBRID = (2, 17)
# The first tflite-runtime on PyPI; everything else that is emitted is older.
_FLOOR = (2, 5)


# Uses of an operator that take a later version than its data type does.
_SPECIAL: tuple[tuple[frozenset[str], Callable[[Use], bool], int], ...] = (
    (frozenset({"CONV_2D"}), lambda use: use.inputs[0].shape[-1] != use.inputs[1].shape[-1], 6),
    (frozenset({"DEPTHWISE_CONV_2D"}), lambda use: use.dilated, 2),
    (frozenset({"DEQUANTIZE"}), lambda use: use.inputs[0].dtype == "float16", 3),
    (frozenset({"FULLY_CONNECTED"}), lambda use: bool(use.fields["keepNumDims"]), 5),
    (frozenset({"MUL"}), lambda use: use.gain >= 1, 3),
    (frozenset({"PAD", "PADV2", "STRIDED_SLICE", "TRANSPOSE"}), lambda use: use.rank > 4, 4),
    (frozenset({"TRANSPOSE"}), lambda use: use.rank > 5, 6),
    (frozenset({"RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"}), lambda use: any(use.fields.values()), 3),
    (frozenset({"TRANSPOSE_CONV"}), lambda use: len(use.inputs) > 3, 3),
)  # fmt: skip


def lowest_version(use: Use) -> int:
    """The lowest version of a builtin operator that expresses this use of it."""
    types = [tensor.dtype for tensor in use.inputs[:2]]
    if types == ["float32", "int8"]:
        return _hybrid_version(use)
    table = _INT16 if "int16" in types else _INT4 if "int4" in types else _INT8 if "int8" in types else {}
    usual = table.get(use.code, 1)
    if use.code == "QUANTIZE" and use.output.dtype == "int16":
        usual = 2
    special = (version for codes, applies, version in _SPECIAL if use.code in codes and applies(use))
    return max(usual, *special, 1)


def _hybrid_version(use: Use) -> int:
    """Version of an op that takes floats and int8 weights, and quantizes the floats itself."""
    grid = use.inputs[1].grid
    per_channel = grid is not None and grid.axis is not None
    if use.code == "FULLY_CONNECTED":
        return 12 if per_channel else 9
    first = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 4}[use.code]
    special = 6 if use.code == "CONV_2D" and use.inputs[0].shape[-1] != use.inputs[1].shape[-1] else 0
    return max({"CONV_2D": 5, "DEPTHWISE_CONV_2D": 6}[use.code] if per_channel else first, special)


def least_runtimes(program: Program) -> dict[str, str]:
    """The least version of each runtime package that knows every operator: {"litert": "1.0", ...}.

    ai-edge-litert split off TensorFlow at release 2.17, so its first version knows them all.
    """
    releases = [_release(program, operator) for operator in program.operators]
    major, minor = max(releases, default=_FLOOR)
    return {"litert": "1.0", "tflite-runtime": f"{major}.{minor}"}


def _release(program: Program, operator: Operator) -> tuple[int, int]:
    least = _RELEASES.get((operator.code, operator.version), _FLOOR)
    if [program.tensors[index].dtype for index in operator.inputs[:2]] == ["float32", "int8"]:
        return max(least, _HYBRID)
    if operator.code == "FULLY_CONNECTED":
        source, weight = (program.tensors[index] for index in operator.inputs[:2])
        if weight.grid is not None and len(weight.grid.scale) > 1:
            plain = weight.dtype == "int8" and source.dtype == "int8"
            return max(least, _DENSE_PER_CHANNEL if plain else _DENSE_PER_CHANNEL_OF_OTHERS)
    return least
