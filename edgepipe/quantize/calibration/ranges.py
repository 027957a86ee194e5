"""The range of an activation, chosen from what calibration saw of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.data import Dataset
from edgepipe.events import Emit
from edgepipe.model import Model
from edgepipe.quantize.calibration.extremes import extrapolated_range
from edgepipe.quantize.calibration.histogram import Histogram
from edgepipe.quantize.calibration.observe import Observation, Watch, joined, observe
from edgepipe.quantize.calibration.trial import Candidates, least_harmful
from edgepipe.quantize.grid import Grid, activation_grid

__all__ = [
    "Algorithm",
    "Observation",
    "RangeChoice",
    "Shared",
    "Watch",
    "choose_grid",
    "choose_grids",
    "joined",
    "observe",
]

Algorithm = Literal["extrapolated", "minmax", "average", "percentile", "entropy", "mse"]
RangeChoice = Literal[Algorithm, "auto"]
"""A way for all tensors, or "auto", for each the one that does least harm behind it."""
_TRIED: tuple[Algorithm, ...] = ("extrapolated", "mse")
"""What "auto" chooses from, the one to fall back to first. "percentile" left less SQNR than "minmax" for
every model and draw measured in benchmarks/calibration; "average" and "entropy" left far less."""
_THRESHOLDS = 96
"""Magnitudes at which "entropy" tries to clip, evenly spaced."""
_LEAST_SHARE = 1 / 16
"""The least of them, as a share of the greatest magnitude seen."""
_ABSENT = 1e-4
"""Count that stands for none, so that no logarithm is infinite: as in TensorRT's description."""
_ROUNDS = 24
"""Steps of OCTAV's recursion at most; it converges in about ten."""
_AROUND = (0.7, 0.8, 0.9, 1.0, 1.1, 1.25)
"""Multiples of the ends that OCTAV finds, whose error is then measured on the counts."""


class Shared(msgspec.Struct, frozen=True):
    """Tensors that share one grid.

    Attributes:
        tensors: Their names.
        seen: What calibration saw of all of them, as `joined` gives it.
        bits: Bits of an integer.
    """

    tensors: tuple[str, ...]
    seen: Observation
    bits: int = 8


def choose_grids(
    model: Model,
    data: Dataset,
    shared: Sequence[Shared],
    ranges: RangeChoice,
    *,
    percentile: float,
    symmetric: bool,
    emit: Emit,
) -> tuple[Grid, ...]:
    """The grid of each set of tensors.

    Args:
        model: The float model that was observed; only "auto" runs it again.
        data: The samples that it was observed on.
        shared: The sets.
        ranges: How ranges are chosen: one algorithm of `choose_grid` for all, or "auto".
        percentile: As in `choose_grid`.
        symmetric: Whether zero points must be 0.
        emit: Where progress goes.
    """

    def grid(each: Shared, algorithm: Algorithm) -> Grid:
        return choose_grid(each.seen, algorithm, percentile=percentile, symmetric=symmetric, bits=each.bits)

    if ranges != "auto":
        return tuple(grid(each, ranges) for each in shared)
    grids = {}
    for each in shared:
        # room for further samples must not go because those seen can do without
        has_room = grid(each, "extrapolated") != grid(each, "minmax")
        ways = _TRIED[:1] if has_room else _TRIED
        grids[each.tensors] = tuple(dict.fromkeys(grid(each, way) for way in ways))
    open_ones = [Candidates(tensors, found) for tensors, found in grids.items() if len(found) > 1]
    chosen = {tensors: found[0] for tensors, found in grids.items()}
    if open_ones:
        best = least_harmful(model, open_ones, data, emit)
        chosen.update(zip((each.tensors for each in open_ones), best, strict=True))
    return tuple(chosen[each.tensors] for each in shared)


def choose_grid(
    seen: Observation, algorithm: Algorithm, *, percentile: float, symmetric: bool, bits: int = 8
) -> Grid:
    """The grid of a tensor that was observed.

    Args:
        seen: What calibration saw. An algorithm that reads a histogram takes the extremes where there
            is none.
        algorithm: "minmax" holds every value seen; "extrapolated" those, with room for what the scatter of
            the samples' extremes lets expect of further ones; "average" reaches from the mean of the
            samples' least values to that of their greatest; "percentile" holds all but the outermost share;
            "entropy" clips where the distribution of the integers diverges least from that of the values;
            "mse" where the mean squared error is least.
        percentile: Share of values to hold at each end, in per cent; for "percentile" alone.
        symmetric: Whether the zero point must be 0.
        bits: Bits of an integer. With 16 bits, which have steps to spare, every algorithm but "minmax" is
            "extrapolated".
    """
    low, high = seen.low, seen.high
    if algorithm == "extrapolated" or (bits > 8 and algorithm != "minmax"):
        low, high = extrapolated_range(low, high, seen.reaches, symmetric=symmetric or bits == 16, bits=bits)
    elif algorithm == "average" and seen.typical is not None:
        low, high = seen.typical
    elif seen.histogram is not None and algorithm == "percentile":
        low, high = percentile_range(seen.histogram, percentile)
    elif seen.histogram is not None and algorithm == "entropy":
        low, high = least_divergence_range(seen.histogram, symmetric=symmetric)
    elif seen.histogram is not None and algorithm == "mse":
        low, high = least_error_range(seen.histogram, symmetric=symmetric)
    return activation_grid(low, high, symmetric=symmetric, bits=bits)


def percentile_range(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """Ends that leave out ``100 - percentile`` per cent of the values on either side, at most.

    McKinstry et al. 2019 (arXiv 1809.04191), section 3, clip activations at such a percentile.
    """
    shares = np.cumsum(histogram.counts) / histogram.counts.sum()
    outside = 1 - percentile / 100
    first = int(np.searchsorted(shares, outside, side="right"))
    last = int(np.searchsorted(shares, 1 - outside, side="left"))
    low = (histogram.first + first) * histogram.width
    high = (histogram.first + last + 1) * histogram.width
    return max(low, histogram.low), min(high, histogram.high)


def least_divergence_range(histogram: Histogram, *, symmetric: bool) -> tuple[float, float]:
    """Ends that lose least information, as the Kullback-Leibler divergence measures it.

    For a series of magnitudes to clip at: the counts with what is outside added to the outermost bins,
    against the counts inside, spread evenly over the occupied bins of each integer. Migacz, "8-bit
    inference with TensorRT", GTC 2017; here over the integers of the asymmetric grid.
    """
    greatest = max(-histogram.low, histogram.high, 0.0)
    best, ends = np.inf, (histogram.low, histogram.high)
    for magnitude in np.linspace(greatest, greatest * _LEAST_SHARE, _THRESHOLDS):
        trial = max(histogram.low, -magnitude), min(histogram.high, magnitude)
        divergence = _divergence(histogram, activation_grid(*trial, symmetric=symmetric), trial)
        if divergence < best:
            best, ends = divergence, trial
    return ends


def _divergence(histogram: Histogram, grid: Grid, ends: tuple[float, float]) -> float:
    """KL divergence of the clipped counts from what the integers of `grid` tell apart of them."""
    counts, centers = histogram.counts.astype(np.float64), histogram.centers
    first, last = np.searchsorted(centers, ends[0]), np.searchsorted(centers, ends[1], side="right")
    inside = counts[first:last]
    if not inside.size or not inside.sum():
        return np.inf
    clipped = inside.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    steps = np.clip(np.rint(centers[first:last] / grid.scale) + grid.zero_point, grid.first, grid.last)
    index = (steps - grid.first).astype(np.intp)
    occupied = inside > 0
    bins = np.bincount(index, weights=occupied)
    spread = np.bincount(index, weights=inside) / np.maximum(bins, 1)
    reference = _distribution(clipped)
    told_apart = _distribution(np.where(occupied, spread[index], 0.0))
    return float(np.sum(reference * np.log(reference / told_apart)))


def _distribution(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    smooth = np.maximum(counts, _ABSENT)
    return np.asarray(smooth / smooth.sum(), np.float64)


def least_error_range(histogram: Histogram, *, symmetric: bool) -> tuple[float, float]:
    """Ends of the range that make the mean squared quantization error of the counts least.

    OCTAV (Sakr et al. 2022, arXiv 2206.06501, equation 7) finds them by a recursion that weighs
    clipping against rounding noise of ``step ** 2 / 12``; here for two ends, each in turn. As that noise is
    an assumption, multiples of what it finds, and the extremes, are measured on the counts.
    """
    extremes = histogram.low, histogram.high
    low, high = _octav(histogram, symmetric=symmetric)
    trials = [extremes] + [
        (max(low * left, extremes[0]), min(high * right, extremes[1]))
        for left in (_AROUND if low < 0 else (1.0,))
        for right in (_AROUND if high > 0 else (1.0,))
    ]
    grids = [activation_grid(*ends, symmetric=symmetric) for ends in trials]
    return trials[int(np.argmin(_squared_errors(histogram, grids)))]


def _octav(histogram: Histogram, *, symmetric: bool) -> tuple[float, float]:
    """Ends at which both derivatives of the modelled error are zero."""
    centers, counts = histogram.centers, histogram.counts.astype(np.float64)
    if symmetric:
        centers, order = np.abs(centers), np.argsort(np.abs(centers), kind="stable")
        centers, counts = centers[order], counts[order]
    total = max(counts[np.abs(centers) >= histogram.width].sum(), 1.0)  # what rounds to 0 costs nothing
    above, below = _Tails(centers, counts), _Tails(-centers[::-1], counts[::-1])
    noise = total / (3.0 * 4**8) if symmetric else total / (12.0 * 4**8)
    high, low = above.mean(), -below.mean()
    for _ in range(_ROUNDS):
        before = low, high
        high = above.next_end(high, 0.0 if symmetric else low, noise)
        low = -high if symmetric else -below.next_end(-low, -high, noise)
        if np.allclose(before, (low, high), rtol=1e-3, atol=0):
            break
    return low, high


class _Tails:
    """Sums over the values beyond an end, each looked up in sums made once.

    Args:
        centers: float64 [bins], ascending.
        counts: float64 [bins].
    """

    def __init__(self, centers: NDArray[np.float64], counts: NDArray[np.float64]) -> None:
        self._centers = centers
        self._counts = np.append(np.cumsum(counts[::-1])[::-1], 0.0)
        self._sums = np.append(np.cumsum((counts * centers)[::-1])[::-1], 0.0)

    def _beyond(self, end: float) -> tuple[float, float]:
        index = int(np.searchsorted(self._centers, end, side="right"))
        return float(self._counts[index]), float(self._sums[index])

    def mean(self) -> float:
        """Mean of the positive values: below the end that is looked for, as the recursion wants it."""
        count, total = self._beyond(0.0)
        return total / count if count else 0.0

    def next_end(self, end: float, other: float, noise: float) -> float:
        """One step: from ``d/dh [noise (h - other)**2 + sum of (x - h)**2 over x > h] = 0``."""
        count, total = self._beyond(end)
        return max((total + noise * other) / (count + noise), 0.0)


def _squared_errors(histogram: Histogram, grids: list[Grid]) -> NDArray[np.float64]:
    """Sums of squared differences between the counted values and their points on each grid."""
    centers = histogram.centers
    scales = np.array([[grid.scale] for grid in grids])
    zeros = np.array([[grid.zero_point] for grid in grids])
    steps = np.clip(np.rint(centers / scales), grids[0].first - zeros, grids[0].last - zeros)
    return np.asarray(np.square(steps * scales - centers) @ histogram.counts, np.float64)
