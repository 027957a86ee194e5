"""Versions of TFLite's builtin operators: the lowest that expresses an op, and the runtime that it needs.

Source: TensorFlow's versioning tools, ``op_version.cc`` (which version expresses what) and
``runtime_version.cc`` (which release brought it), as of TensorFlow 2.23.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from edgepipe.convert.tflite.graph import Grid
from edgepipe.convert.tflite.program import Operator, Tensor

# Version with int8 data, where that is not 1.
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
    "SPLIT": 2,
    "STRIDED_SLICE": 2,
    "SUB": 2,
    "SUM": 2,
    "TANH": 2,
    "TRANSPOSE": 2,
    "TRANSPOSE_CONV": 2,
}

# Release of TensorFlow that brought the version, where it is later than `_FLOOR`.
_RELEASES = {
    ("CONV_2D", 6): (2, 9),
    ("GELU", 1): (2, 9),
    ("GELU", 2): (2, 9),
    ("PAD", 4): (2, 6),
    ("PADV2", 4): (2, 6),
    ("TRANSPOSE", 6): (2, 12),
    ("TRANSPOSE_CONV", 4): (2, 13),
}
# The first tflite-runtime on PyPI; everything else that is emitted is older.
_FLOOR = (2, 5)


def lowest_version(
    code: str, inputs: Iterable[Tensor | None], output: Tensor, fields: dict[str, object]
) -> int:
    """The lowest version of a builtin operator that expresses this use of it.

    Args:
        code: The schema's name of the operator.
        inputs: Its input tensors, None where left out.
        output: Its first output tensor.
        fields: The options that are set.
    """
    tensors = [tensor for tensor in inputs if tensor is not None]
    int8 = any(tensor.dtype == "int8" for tensor in tensors)
    version = _INT8.get(code, 1) if int8 else 1
    rank = max((len(tensor.shape) for tensor in tensors), default=0)
    if code == "MUL" and output.grid is not None and _gain(tensors, output.grid) >= 1:
        return 3
    return max(version, _special_version(code, tensors, fields, rank))


def _gain(tensors: list[Tensor], grid: Grid) -> float:
    return prod(tensor.grid.scale[0] for tensor in tensors if tensor.grid is not None) / grid.scale[0]


def _special_version(code: str, tensors: list[Tensor], fields: dict[str, object], rank: int) -> int:
    match code:
        case "CONV_2D" if tensors[0].shape[-1] != tensors[1].shape[-1]:
            return 6  # grouped
        case "DEPTHWISE_CONV_2D" if (fields["dilationHFactor"], fields["dilationWFactor"]) != (1, 1):
            return 2
        case "FULLY_CONNECTED" if fields["keepNumDims"]:
            return 5
        case "DEQUANTIZE" if tensors[0].dtype == "float16":
            return 3
        case "RESIZE_BILINEAR" | "RESIZE_NEAREST_NEIGHBOR" if any(fields.values()):
            return 3
        case "TRANSPOSE" | "PAD" | "PADV2" | "STRIDED_SLICE" if rank > 4:
            return 6 if code == "TRANSPOSE" and rank > 5 else 4
        case "TRANSPOSE_CONV" if len(tensors) == 4:
            return 3
    return 1


def least_runtimes(operators: Iterable[Operator]) -> dict[str, str]:
    """The least version of each runtime package that knows every operator: {"litert": "1.0", ...}.

    ai-edge-litert split off TensorFlow at release 2.17, so its first version knows them all.
    """
    release = max((_RELEASES.get((op.code, op.version), _FLOOR) for op in operators), default=_FLOOR)
    return {"litert": "1.0", "tflite-runtime": f"{release[0]}.{release[1]}"}
