"""Second moments of what a linear op takes in the float network and in the quantized one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgepipe.graph import edit
from edgepipe.quantize.layerwise.gptq import Moments
from edgepipe.quantize.layerwise.unfold import count_rows, rows_at, to_matrix

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepipe.quantize.layerwise.walk import Batches

_LEAST_ROWS, _MOST_ROWS = 2048, 8192
_ROWS_PER_INPUT = 4
"""Rows looked at for each input that an output sums over: enough for moments of full rank."""


class Sums:
    """Sums of products of rows, which add up over batches."""

    def __init__(self, inputs: int, groups: int) -> None:
        self.gram: NDArray[np.float64] = np.zeros((groups, inputs, inputs))
        self.cross: NDArray[np.float64] = np.zeros((groups, inputs, inputs))
        self.mean: NDArray[np.float64] = np.zeros((groups, inputs))
        self.float_mean: NDArray[np.float64] = np.zeros((groups, inputs))
        self.rows = 0

    def add(self, real: NDArray[np.float32], quantized: NDArray[np.float32]) -> None:
        """Adds rows of the float and of the quantized network, [groups, rows, inputs]."""
        exact, found = real.astype(np.float64), quantized.astype(np.float64)
        self.gram += found.swapaxes(1, 2) @ found
        self.cross += found.swapaxes(1, 2) @ exact
        self.mean += found.sum(axis=1)
        self.float_mean += exact.sum(axis=1)
        self.rows += found.shape[1]

    def moments(self, *, centered: bool) -> Moments:
        """Their means; `centered` where a bias takes care of the mean of the output."""
        gram, cross = self.gram / self.rows, self.cross / self.rows
        if centered:
            mean, float_mean = self.mean / self.rows, self.float_mean / self.rows
            gram = gram - mean[:, :, None] * mean[:, None, :]
            cross = cross - mean[:, :, None] * float_mean[:, None, :]
        return Moments(gram, cross)


def total(parts: Sequence[Sums]) -> Sums:
    """The sums of several batches together."""
    groups, inputs = parts[0].mean.shape
    together = Sums(inputs, groups)
    for part in parts:
        together.gram += part.gram
        together.cross += part.cross
        together.mean += part.mean
        together.float_mean += part.float_mean
        together.rows += part.rows
    return together


def gather(
    node: ir.Node,
    real: Batches,
    quantized: Batches,
    shapes: Sequence[tuple[int, ...]],
    random: np.random.Generator,
) -> list[Sums]:
    """Sums over a random choice of rows of each batch.

    Args:
        node: The linear op.
        real: Its input in the float network, one array a batch.
        quantized: Its input in the quantized network.
        shapes: Shape of its output for each batch.
        random: Chooses the rows.
    """
    groups, inputs, _ = to_matrix(node, edit.array_at(node, 1)).shape
    counts = [count_rows(node, shape) for shape in shapes]
    wanted = int(np.clip(_ROWS_PER_INPUT * inputs, _LEAST_ROWS, _MOST_ROWS))
    found = []
    for exact, rounded, shape, count in zip(real, quantized, shapes, counts, strict=True):
        share = min(count, -(-wanted * count // sum(counts)))
        places = np.sort(random.choice(count, share, replace=False))
        sums = Sums(inputs, groups)
        sums.add(rows_at(node, exact, places, shape), rows_at(node, rounded, places, shape))
        found.append(sums)
    return found
