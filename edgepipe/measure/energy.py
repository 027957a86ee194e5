"""Energy for each inference, integrated from the raw power samples of a measurement."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.measure.record import Measurement, Series, Window

MIN_WINDOW_NS = 10_000_000_000
MIN_UPDATES = 50
_MJ_PER_MW_NS = 1e-9
_MJ_PER_UJ = 1e-3


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """Energy of one inference, or why there is no figure.

    Attributes:
        source: Name of the power reader, or "none".
        coverage: What the figure includes: "soc", "board", "wall".
        missing: Why there is no figure: "none" without a sensor, "too short", ...; "" if there is one.
        gross_mj: Energy of the window for each inference; None if missing.
        net_mj: The same without what the idle device would have drawn; None without an idle window.
        mean_mw: Mean power in the window.
        idle_mw: Mean power of the idle window; None without one.
        updates: Sensor updates strictly inside the window.
        window_ns: Length of the window.
    """

    source: str
    coverage: str
    missing: str
    gross_mj: float | None = None
    net_mj: float | None = None
    mean_mw: float | None = None
    idle_mw: float | None = None
    updates: int = 0
    window_ns: int = 0


def energy_of(measurement: Measurement) -> Energy:
    """Integrates power over the window, subtracts idle power, and divides by the runs.

    A sensor that samples power is integrated by trapezoids over the samples strictly inside the window,
    with values at its two ends interpolated; an energy counter is read off at both ends, its wrap undone.
    """
    power, window = measurement.power, measurement.window
    found = measurement.series_named("power")
    if power.kind == "none" or window is None or not found:
        return Energy(source=power.source, coverage=power.coverage, missing="none")
    duration_ns = window.duration_ns
    updates = _updates(found[0], window, counter=power.kind == "counter")
    short = updates < MIN_UPDATES or duration_ns < MIN_WINDOW_NS
    energy_mj = energy_in(found[0], window, wrap_uj=power.wrap_uj)
    if short or energy_mj is None:
        return Energy(
            source=power.source,
            coverage=power.coverage,
            missing="too short",
            updates=updates,
            window_ns=duration_ns,
        )
    runs = len(measurement.latencies_ns)
    idle_mw = _mean_mw(found[0], power.idle, power.wrap_uj)
    net_mj = None if idle_mw is None else energy_mj - idle_mw * duration_ns * _MJ_PER_MW_NS
    return Energy(
        source=power.source,
        coverage=power.coverage,
        missing="",
        gross_mj=energy_mj / runs,
        net_mj=None if net_mj is None else net_mj / runs,
        mean_mw=energy_mj / (duration_ns * _MJ_PER_MW_NS),
        idle_mw=idle_mw,
        updates=updates,
        window_ns=duration_ns,
    )


def energy_in(series: Series, window: Window, *, wrap_uj: int = 0) -> float | None:
    """Energy in millijoules that a power series saw within a window.

    Args:
        series: In "mw" (sampled power) or "uj" (a counter).
        window: The span to integrate over.
        wrap_uj: For a counter: it restarts from 0 past this.

    Returns:
        None where fewer than two samples lie strictly inside the window.
    """
    t_ns = np.asarray(series.t_ns, np.int64) - window.start_ns  # small numbers: float64 keeps each ns
    values = np.asarray(series.values, np.float64)
    inside = (t_ns > 0) & (t_ns < window.duration_ns)
    if np.count_nonzero(inside) < 2:
        return None
    ends = np.array([0, window.duration_ns], np.float64)
    if series.unit == "uj":
        first, last = np.interp(ends, t_ns, _unwrap(values, wrap_uj))
        return float(last - first) * _MJ_PER_UJ
    edge_values = np.interp(ends, t_ns, values)
    times = np.concatenate([ends[:1], t_ns[inside], ends[1:]])
    powers = np.concatenate([edge_values[:1], values[inside], edge_values[1:]])
    return float(np.trapezoid(powers, times)) * _MJ_PER_MW_NS


def _unwrap(values: NDArray[np.float64], wrap_uj: int) -> NDArray[np.float64]:
    """The counter without its wraps: each step back means that it started again."""
    wraps = np.concatenate([[0], np.cumsum(np.diff(values) < 0)])
    return values + wraps * float(wrap_uj)


def _updates(series: Series, window: Window, *, counter: bool) -> int:
    """Samples strictly inside the window; of a counter only those that moved it."""
    inside = [
        v for t, v in zip(series.t_ns, series.values, strict=True) if window.start_ns < t < window.end_ns
    ]
    if not counter:
        return len(inside)
    return sum(1 for before, after in pairwise(inside) if before != after)


def _mean_mw(series: Series, window: Window | None, wrap_uj: int) -> float | None:
    if window is None or window.duration_ns <= 0:
        return None
    energy_mj = energy_in(series, window, wrap_uj=wrap_uj)
    return None if energy_mj is None else energy_mj / (window.duration_ns * _MJ_PER_MW_NS)
