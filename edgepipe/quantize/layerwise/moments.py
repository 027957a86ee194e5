"""Second moments of what a linear op takes in the float network and in the quantized one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgepipe.quantize.layerwise.gptq import Moments
from edgepipe.quantize.layerwise.unfold import count_rows, inputs_of, rows_at

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepipe.quantize.layerwise.walk import Batches

_LEAST_ROWS, _MOST_ROWS = 2048, 8192
_ROWS_PER_INPUT = 4
"""Rows looked at for each input that an output sums over: enough for moments of full rank."""
_HELD_OUT = 4
"""Every fourth batch, or row, judges."""
_LARGE = 1e15
"""Magnitudes whose products, summed over all rows, float32 might not hold."""


class Sums:
    """Sums of products of rows, which add up over batches.

    Products are taken in float32 about a point near the mean, so that no digits are lost to a large mean;
    of values that are so large that these could overflow, in float64.

    Args:
        origin: That point, float32 [groups, inputs].
    """

    def __init__(self, origin: NDArray[np.float32]) -> None:
        groups, inputs = origin.shape
        self.origin = origin
        self.gram: NDArray[np.float64] = np.zeros((groups, inputs, inputs))
        self.cross: NDArray[np.float64] = np.zeros((groups, inputs, inputs))
        self.mean: NDArray[np.float64] = np.zeros((groups, inputs))
        self.float_mean: NDArray[np.float64] = np.zeros((groups, inputs))
        self.rows = 0

    def add(self, real: NDArray[np.floating], quantized: NDArray[np.floating]) -> None:
        """Adds rows of the float and of the quantized network, [groups, rows, inputs]."""
        if max(_reach(real), _reach(quantized)) > _LARGE:
            real, quantized = real.astype(np.float64), quantized.astype(np.float64)
        exact, found = real - self.origin[:, None], quantized - self.origin[:, None]
        self.gram += found.swapaxes(1, 2) @ found
        self.cross += found.swapaxes(1, 2) @ exact
        self.mean += found.sum(axis=1, dtype=np.float64)
        self.float_mean += exact.sum(axis=1, dtype=np.float64)
        self.rows += found.shape[1]

    def moments(self, *, centered: bool) -> Moments:
        """Their means; `centered` where a bias takes care of the mean of the output."""
        gram, cross = self.gram / self.rows, self.cross / self.rows
        mean, float_mean = self.mean / self.rows, self.float_mean / self.rows
        if centered:
            return Moments(gram - _outer(mean, mean), cross - _outer(mean, float_mean))
        origin = self.origin.astype(np.float64)
        square = _outer(origin, origin)
        return Moments(
            gram + _outer(origin, mean) + _outer(mean, origin) + square,
            cross + _outer(origin, float_mean) + _outer(mean, origin) + square,
        )


def _reach(values: NDArray[np.floating]) -> float:
    """The greatest magnitude."""
    return max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))


def _mean_row(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of rows [groups, rows, inputs], for each group."""
    wide = np.float64 if _reach(rows) > _LARGE else np.float32
    return np.asarray(rows.mean(axis=1, dtype=wide), np.float32)


def _outer(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    return left[:, :, None] * right[:, None, :]


def total(parts: Sequence[Sums]) -> Sums:
    """The sums of several parts about one origin together."""
    together = Sums(parts[0].origin)
    for part in parts:
        together.gram += part.gram
        together.cross += part.cross
        together.mean += part.mean
        together.float_mean += part.float_mean
        together.rows += part.rows
    return together


def rows_wanted(inputs: int) -> int:
    """Rows that say enough about a weight of so many inputs."""
    return int(np.clip(_ROWS_PER_INPUT * inputs, _LEAST_ROWS, _MOST_ROWS))


def gather(
    node: ir.Node,
    real: Batches,
    quantized: Batches,
    shapes: Sequence[tuple[int, ...]],
    random: np.random.Generator,
) -> tuple[Sums, Sums]:
    """Sums over a random choice of rows: those to fit to, and those that judge what was fitted.

    Every fourth batch judges; where there are fewer, every fourth row of each.

    Args:
        node: The linear op.
        real: Its input in the float network, one array a batch.
        quantized: Its input in the quantized network.
        shapes: Shape of its output for each batch.
        random: Chooses the rows.
    """
    counts = [count_rows(node, shape) for shape in shapes]
    wanted = rows_wanted(inputs_of(node))
    parts: tuple[Sums, ...] = ()
    for index, (exact, rounded, shape, count) in enumerate(zip(real, quantized, shapes, counts, strict=True)):
        share = min(count, -(-wanted * count // sum(counts)))
        places = np.sort(random.choice(count, share, replace=False))
        found, expected = (rows_at(node, each, places, shape) for each in (rounded, exact))
        parts = parts or tuple(Sums(_mean_row(found)) for _ in range(2))
        if len(counts) >= _HELD_OUT:
            parts[index % _HELD_OUT == _HELD_OUT - 1].add(expected, found)
        else:
            judge = np.arange(share) % _HELD_OUT == _HELD_OUT - 1
            parts[0].add(expected[:, ~judge], found[:, ~judge])
            parts[1].add(expected[:, judge], found[:, judge])
    return parts[0], parts[1]
