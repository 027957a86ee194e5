"""Geometry of the report's charts: raw samples become paths and ticks, which the template draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.evaluate import Estimate
from edgepipe.measure import Measurement
from edgepipe.measure.statistics import RUNS_NEEDED, quantile
from edgepipe.report.view import ResultView
from edgepipe.units import format_ns

WIDTH = 1040
LEFT = 140
RIGHT = 92
ROW = 54
AXIS = 30
BINS = 160
SLICES = 150


class Tick(msgspec.Struct, frozen=True):
    """A labelled position on an axis."""

    at: float
    label: str


class HistogramRow(msgspec.Struct, frozen=True, kw_only=True):
    """The distribution of one artifact's latencies.

    Attributes:
        name: The artifact.
        base: y of the row's ground line.
        area: SVG path of the histogram.
        median: x of the median.
        p90: x of the 90th percentile; None where there are too few runs, or it lies beyond the axis.
        label: The median, for people.
        beyond: Runs slower than the axis shows.
    """

    name: str
    base: float
    area: str
    median: float
    p90: float | None
    label: str
    beyond: int


class Histograms(msgspec.Struct, frozen=True, kw_only=True):
    """Latency distributions above each other, on one axis."""

    rows: tuple[HistogramRow, ...]
    ticks: tuple[Tick, ...]
    height: float
    logarithmic: bool


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact's latencies in the order of the runs.

    Attributes:
        name: The artifact.
        band: SVG path from the 10th to the 90th percentile of each slice.
        line: SVG path of the slices' medians.
        outliers: The slowest run of each slice that stands out, at the upper edge if it lies beyond: (x, y).
        y_ticks: Latencies.
        x_ticks: Seconds since the first timed run.
        height: Of the drawing.
    """

    name: str
    band: str
    line: str
    outliers: tuple[tuple[float, float], ...]
    y_ticks: tuple[Tick, ...]
    x_ticks: tuple[Tick, ...]
    height: float


class ForestRow(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact's difference to the float model with its interval, as x positions."""

    name: str
    y: float
    low: float
    value: float
    high: float


class Forest(msgspec.Struct, frozen=True, kw_only=True):
    """Differences in accuracy to the float model, in percentage points."""

    rows: tuple[ForestRow, ...]
    ticks: tuple[Tick, ...]
    zero: float
    height: float


def histograms(views: Sequence[ResultView]) -> Histograms | None:
    """Distributions of every artifact that has a median; None without any."""
    shown = [(view.name, _latencies(view.result.measurement)) for view in views if _timed(view)]
    if not shown:
        return None
    low = min(float(values.min()) for _, values in shown)
    high = max(*(_reach(values) for _, values in shown), low * 1.05)
    logarithmic = high / low > 4
    place = _scale(low * 0.98, high, logarithmic=logarithmic)
    rows = tuple(_histogram_row(name, values, index, place) for index, (name, values) in enumerate(shown))
    marks = _tick_values(low, high, logarithmic=logarithmic)
    ticks = tuple(
        Tick(float(at), format_ns(value)) for at, value in zip(place(np.array(marks)), marks, strict=True)
    )
    return Histograms(rows=rows, ticks=ticks, height=len(rows) * ROW + AXIS, logarithmic=logarithmic)


def traces(views: Sequence[ResultView], *, height: float = 96) -> tuple[Trace, ...]:
    """Latencies over time of every artifact that has a median."""
    return tuple(
        _trace(view.name, _latencies(view.result.measurement), height) for view in views if _timed(view)
    )


def forest(differences: Sequence[tuple[str, Estimate]]) -> Forest | None:
    """Differences of accuracy with their intervals; None without any.

    Args:
        differences: By artifact, as shares; drawn in percentage points.
    """
    if not differences:
        return None
    reach = max(1.0, *(100 * max(abs(each.low), abs(each.high)) for _, each in differences)) * 1.08
    span = WIDTH - LEFT - RIGHT

    def place(points: float) -> float:
        return round(LEFT + span * (points + reach) / (2 * reach), 2)

    rows = tuple(
        ForestRow(
            name=name,
            y=26 * index + 16,
            low=place(100 * each.low),
            value=place(100 * each.value),
            high=place(100 * each.high),
        )
        for index, (name, each) in enumerate(differences)
    )
    step = _nice_step(2 * reach / 7)
    count = math.floor(reach / step)
    values = [step * index for index in range(-count, count + 1)]
    ticks = tuple(Tick(place(value), f"{value:+g}".replace("-", "−") if value else "0") for value in values)
    return Forest(rows=rows, ticks=ticks, zero=place(0), height=26 * len(rows) + AXIS)


def _reach(values: NDArray[np.float64]) -> float:
    """Where the axis may end: past the 90th percentile, but not at the end of a long tail of slow runs."""
    middle, p90, p99 = (quantile(values, share) for share in (0.5, 0.9, 0.99))
    return max(1.15 * p90, min(1.04 * p99, 2 * middle))


def _timed(view: ResultView) -> bool:
    return view.latency is not None and view.latency.median_ns is not None


def _latencies(measurement: Measurement | None) -> NDArray[np.float64]:
    return np.asarray(measurement.latencies_ns if measurement else (), np.float64)


def _scale(
    low: float, high: float, *, logarithmic: bool
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Where latencies lie on the x axis, all at once: there may be a million."""
    span = WIDTH - LEFT - RIGHT
    if logarithmic:
        low, high = math.log(low), math.log(high)

    def place(values: NDArray[np.float64]) -> NDArray[np.float64]:
        positions = np.log(values) if logarithmic else values
        return np.round(LEFT + span * (positions - low) / (high - low), 2)

    return place


def _histogram_row(
    name: str,
    values: NDArray[np.float64],
    index: int,
    place: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> HistogramRow:
    base = (index + 1) * ROW - 6
    positions = place(values)
    edges = np.linspace(LEFT, WIDTH - RIGHT, BINS + 1)
    counts = np.histogram(positions, edges)[0]
    heights = counts / max(counts.max(), 1) * (ROW - 14)
    steps = [f"M{LEFT} {base}"]
    for left, right, height in zip(edges, edges[1:], heights, strict=False):
        steps.append(f"L{left:.1f} {base - height:.1f}L{right:.1f} {base - height:.1f}")
    middle = quantile(values, 0.5)
    median_at, p90_at = place(np.array([middle, quantile(values, 0.9)])).tolist()
    return HistogramRow(
        name=name,
        base=base,
        area="".join(steps) + f"L{WIDTH - RIGHT} {base}Z",
        median=median_at,
        p90=p90_at if len(values) >= RUNS_NEEDED[0.9] and p90_at <= WIDTH - RIGHT else None,
        label=format_ns(middle),
        beyond=int(np.count_nonzero(positions > WIDTH - RIGHT)),
    )


def _trace(name: str, values: NDArray[np.float64], height: float) -> Trace:
    slices = np.array_split(values, min(SLICES, len(values)))
    starts_s = np.cumsum(values) / 1e9
    total_s = float(starts_s[-1])
    bounds = np.cumsum([len(each) for each in slices]) - 1
    low, middle, high = np.array([np.quantile(each, (0.1, 0.5, 0.9)) for each in slices]).T
    top = max(float(np.quantile(high, 0.95)) * 1.15, float(middle.max()) * 1.1)
    bottom = float(values.min()) * 0.98
    ground = height - AXIS + 8

    def x(seconds: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * seconds / total_s, 1)

    def y(latency_ns: float) -> float:
        share = (min(latency_ns, top) - bottom) / (top - bottom) if top > bottom else 0.5
        return round(ground - (ground - 8) * share, 1)

    at = [x(float(starts_s[bound])) for bound in bounds]
    upper = [f"{a} {y(v)}" for a, v in zip(at, high, strict=True)]
    lower = [f"{a} {y(v)}" for a, v in zip(at, low, strict=True)]
    slowest = [float(each.max()) for each in slices]
    return Trace(
        name=name,
        band="M" + "L".join(upper + lower[::-1]) + "Z",
        line="M" + "L".join(f"{a} {y(v)}" for a, v in zip(at, middle, strict=True)),
        outliers=tuple((a, y(v)) for a, v, limit in zip(at, slowest, high, strict=True) if v > 1.1 * limit),
        y_ticks=tuple(Tick(y(v), format_ns(v)) for v in _linear_ticks(bottom, top, 3)),
        x_ticks=tuple(Tick(x(v), f"{v:g} s") for v in _linear_ticks(0, total_s, 6)),
        height=height,
    )


def _tick_values(low: float, high: float, *, logarithmic: bool) -> list[float]:
    if not logarithmic:
        return _linear_ticks(low, high, 6)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 5)]
    return [value for value in values if low <= value <= high]


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Round values between both ends, about `count` of them."""
    step = _nice_step((high - low) / count)
    first = math.ceil(low / step)
    last = math.floor(high / step)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def _nice_step(rough: float) -> float:
    """The least of 1, 2, 5, 10 times a power of ten that is not below `rough`."""
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next((digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * 0.999), 10 * power)
