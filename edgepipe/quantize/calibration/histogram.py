"""A histogram that grows with its data: the same counts in whatever order and batches samples come.

Bins are ``[k w, (k + 1) w)`` with a width `w` that is a power of two. When values no longer fit, the
width doubles and neighbours merge, which loses nothing; so the result depends on the data alone, and
memory stays constant.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

BINS = 2048
"""Most bins a histogram has: eight for each of the 256 steps of an int8 grid."""
_FINEST = -60
"""Exponent of the least width."""


class Histogram:
    """Counts of values, with their exact extremes.

    Attributes:
        low: Least value seen; 0.0 before any.
        high: Greatest value seen; 0.0 before any.
        exponent: The width of a bin is ``2 ** exponent``.
        first: Index `k` of the first bin.
        counts: int64 [bins], from bin `first` on.
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.exponent = _FINEST
        self.first = 0
        self.counts: NDArray[np.int64] = np.zeros(0, np.int64)
        self._empty = True

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def centers(self) -> NDArray[np.float64]:
        """Middle of each bin, float64 [bins]."""
        return np.asarray((np.arange(len(self.counts)) + self.first + 0.5) * self.width, np.float64)

    def add(self, values: NDArray[np.floating], extremes: tuple[float, float] | None = None) -> None:
        """Counts `values`, of any shape.

        Args:
            values: What to count.
            extremes: Least and greatest of the tensor that `values` are a sample of; their own if None.
        """
        low, high = extremes or (float(values.min()), float(values.max()))
        self._widen(low, high)
        index = np.floor(values.ravel() * np.float32(1 / self.width)).astype(np.int32) - self.first
        self.counts += np.bincount(index, minlength=len(self.counts))

    def merge(self, other: Histogram) -> None:
        """Adds the counts of another histogram, which stays as it is."""
        if other._empty:
            return
        self._widen(other.low, other.high)
        shift = self.exponent - other.exponent
        index = (np.arange(len(other.counts)) + other.first >> shift) - self.first
        np.add.at(self.counts, index, other.counts)

    def _widen(self, low: float, high: float) -> None:
        """Makes room for [low, high]: coarser bins where needed, and bins enough."""
        self.low = low if self._empty else min(self.low, low)
        self.high = high if self._empty else max(self.high, high)
        self._empty = False
        exponent = self.exponent
        while self._span(exponent) > BINS:
            exponent += max(1, math.ceil(math.log2(self._span(exponent) / BINS)) - 1)
        self._coarsen(exponent)
        first, last = self._ends(self.exponent)
        before = self.first - first if len(self.counts) else 0
        counts = np.zeros(last - first + 1, np.int64)
        counts[before : before + len(self.counts)] = self.counts
        self.first, self.counts = first, counts

    def _ends(self, exponent: int) -> tuple[int, int]:
        """First and last bin for all values seen and 0, which keeps the indices below `BINS`."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        return math.floor(math.ldexp(low, -exponent)), math.floor(math.ldexp(high, -exponent))

    def _span(self, exponent: int) -> int:
        first, last = self._ends(exponent)
        return last - first + 1

    def _coarsen(self, exponent: int) -> None:
        """Merges bins until their width is ``2 ** exponent``."""
        shift = exponent - self.exponent
        self.exponent = exponent
        if shift == 0 or len(self.counts) == 0:
            return
        index = np.arange(self.first, self.first + len(self.counts)) >> shift
        self.counts = np.bincount(index - index[0], weights=self.counts).astype(np.int64)
        self.first = int(index[0])
