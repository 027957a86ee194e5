"""Raw tensors without NumPy: sizes, values and comparison.

Files are little-endian and so is every device that the runtimes exist for.
"""

import array
import math
import struct
import sys
from typing import List, NamedTuple, Optional, Sequence

from device_agent.records import OutputDifference, Port

_TYPECODES = {
    "int8": "b",
    "uint8": "B",
    "bool": "B",
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "int64": "q",
    "uint64": "Q",
    "float32": "f",
    "float64": "d",
}
_SIZES = {"float16": 2}


class TensorMismatch(ValueError):
    """A tensor that is not of its port's type and size."""


def check_size(tensor: bytes, port: Port, where: str) -> None:
    """Holds a raw tensor to its port.

    Raises:
        TensorMismatch: The dtype is unknown, or the size is not that of the shape.
    """
    if port.dtype in _TYPECODES:
        itemsize = array.array(_TYPECODES[port.dtype]).itemsize
    elif port.dtype in _SIZES:
        itemsize = _SIZES[port.dtype]
    else:
        raise TensorMismatch("port {} has the unknown type {!r}".format(port.name, port.dtype))
    size = itemsize
    for dimension in port.shape:
        size *= dimension
    if len(tensor) != size:
        raise TensorMismatch(
            "{}: {} bytes, but port {} is {} {} of {} bytes".format(
                where, len(tensor), port.name, port.dtype, list(port.shape), size
            )
        )


def values_of(tensor: bytes, dtype: str) -> Sequence[float]:
    """The numbers of a raw little-endian tensor."""
    if dtype == "float16":
        return struct.unpack("<{}e".format(len(tensor) // 2), tensor)
    values = array.array(_TYPECODES[dtype])
    values.frombytes(tensor)
    return values


class Difference(NamedTuple):
    """How one tensor differs from another of the same port."""

    elements: int
    differing: int
    worst: float
    range: float
    argmax_equal: bool
    not_finite: int


def difference(got: bytes, expected: bytes, port: Port) -> Difference:
    """Compares element by element; where the host too has NaN or infinity, bit-equal is equal.

    `worst` is taken over the elements that are finite on both sides, `range` is max - min of the
    expected ones (the greatest magnitude where that is 0, and 1 where that is 0 too).
    """
    wanted = values_of(expected, port.dtype)
    if got == expected:
        return Difference(len(wanted), 0, 0.0, _range(wanted), True, 0)
    found = values_of(got, port.dtype)
    differing = not_finite = 0
    worst = 0.0
    for mine, theirs in zip(found, wanted):
        if mine == theirs or (math.isnan(mine) and math.isnan(theirs)):
            continue
        differing += 1
        if math.isfinite(mine) and math.isfinite(theirs):
            worst = max(worst, float(abs(mine - theirs)))
        else:
            not_finite += 1
    return Difference(
        len(wanted), differing, worst, _range(wanted), _argmax(found) == _argmax(wanted), not_finite
    )


def _range(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 1.0
    low, high = min(finite), max(finite)
    return float(high - low) or float(abs(high)) or 1.0


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__) if len(values) else -1


class Comparison:
    """Gathers the differences of one output port over all samples."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._differences: List[Difference] = []

    def add(self, got: bytes, expected: bytes) -> None:
        """Compares the port's output for the next sample."""
        self._differences.append(difference(got, expected, self._port))

    def summary(self) -> OutputDifference:
        """The worst of all samples."""
        worst = _finite(max(each.worst for each in self._differences))
        return OutputDifference(
            name=self._port.name,
            elements=sum(each.elements for each in self._differences),
            differing=sum(each.differing for each in self._differences),
            worst_steps=self._steps(worst),
            worst_absolute=worst,
            worst_relative=_finite(max(each.worst / each.range for each in self._differences)),
            worst_sample=max(range(len(self._differences)), key=lambda i: self._differences[i].worst),
            argmax_equal=sum(each.argmax_equal for each in self._differences),
            not_finite=sum(each.not_finite for each in self._differences),
        )

    def _steps(self, worst: float) -> Optional[float]:
        if self._port.scale is None:
            return None
        is_integer = "int" in self._port.dtype
        return worst if is_integer else _finite(worst / self._port.scale)


def _finite(value: float) -> float:
    """The greatest float instead of infinity, which JSON cannot say."""
    return min(value, sys.float_info.max)
