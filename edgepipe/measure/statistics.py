"""Statistics of raw latencies, computed whenever they are read and never stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepipe.measure.record import Measurement

RUNS_NEEDED = {0.5: 11, 0.9: 64, 0.99: 662}
"""Fewest runs for a quantile to be quoted: LoadGen's early stopping (`runs_needed`, 99 % confidence)."""

MAX_BATCHES = 50
MIN_BATCH = 15
MAX_EXACT = 1000

Values = Sequence[float] | NDArray[np.float64]
"""A series of figures; an array of float64 is taken as it is, anything else is copied into one."""


class Interval(msgspec.Struct, frozen=True):
    """A figure with its confidence interval.

    Attributes:
        value: The figure.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics of one measurement's latencies, in nanoseconds.

    Attributes:
        runs: Number of timed runs.
        median_ns: With a distribution-free 95 % interval (`steady_interval`); None below 11 runs.
        p90_ns: None below 64 runs.
        p99_ns: None below 662 runs.
        min_ns: The fastest run.
        max_ns: The slowest run.
        mean_ns: Arithmetic mean.
        stdev_ns: Standard deviation (n - 1); 0 for a single run.
        mad_ns: Median absolute deviation from the median, not scaled.
        throughput_hz: Inferences per second: runs over the sum of their latencies.
    """

    runs: int
    median_ns: Interval | None
    p90_ns: float | None
    p99_ns: float | None
    min_ns: float
    max_ns: float
    mean_ns: float
    stdev_ns: float
    mad_ns: float
    throughput_hz: float


def latency_of(measurement: Measurement) -> Latency | None:
    """Statistics of a measurement's latencies; None where it has none."""
    values = np.asarray(measurement.latencies_ns, np.float64)
    if not len(values):
        return None
    n = len(values)
    middle = quantile(values, 0.5)
    return Latency(
        runs=n,
        median_ns=steady_interval(values) if n >= RUNS_NEEDED[0.5] else None,
        p90_ns=quantile(values, 0.9) if n >= RUNS_NEEDED[0.9] else None,
        p99_ns=quantile(values, 0.99) if n >= RUNS_NEEDED[0.99] else None,
        min_ns=float(values.min()),
        max_ns=float(values.max()),
        mean_ns=float(values.mean()),
        stdev_ns=float(values.std(ddof=1)) if n > 1 else 0.0,
        mad_ns=float(np.median(np.abs(values - middle))),
        throughput_hz=float(n / (values.sum() / 1e9)) if values.sum() else 0.0,
    )


def quantile(values: Values, share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed: one that was measured."""
    return float(np.quantile(np.asarray(values, np.float64), share, method="inverted_cdf"))


def median_interval(values: Values, confidence: float = 0.95) -> Interval:
    """The median between two order statistics that enclose it whatever the distribution.

    Conover, "Practical Nonparametric Statistics", 3rd edition, section 3.2: with n values and
    ``P(Binomial(n, 1/2) <= k) <= (1 - confidence) / 2``, the (k+1)-th smallest and (k+1)-th largest
    enclose the median. The values must be independent. With too few for the confidence, the extremes.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n = len(ordered)
    rank = max(0, _tosses_below(n, (1 - confidence) / 2))
    return Interval(float(ordered[(n - 1) // 2]), float(ordered[rank]), float(ordered[n - 1 - rank]))


def steady_interval(values: Values, confidence: float = 0.95) -> Interval:
    """The median of a series whose neighbours resemble each other, as runs on a device do.

    Other load and clock changes last for many runs, so that single runs are no independent witnesses.
    The interval is that of the medians of up to 50 consecutive batches (the method of batch means, Law,
    "Simulation Modeling and Analysis", 5th edition, section 9.5.3, with medians); below 11 batches of
    15 runs, that of the runs themselves.
    """
    series = np.asarray(values, np.float64)
    found = median_interval(series, confidence)
    batches = min(MAX_BATCHES, len(series) // MIN_BATCH)
    if batches < RUNS_NEEDED[0.5]:
        return found
    medians = [float(np.median(batch)) for batch in np.array_split(series, batches)]
    between = median_interval(medians, confidence)
    return Interval(found.value, min(found.low, between.low), max(found.high, between.high))


def ratio_of_medians(first: Values, second: Values) -> Interval:
    """Median of `first` over that of `second`, with an interval of at least 95 % confidence.

    Each median is enclosed at 97.5 % (`steady_interval`); by Bonferroni's inequality, both are at 95 %.
    """
    above, below = steady_interval(first, 0.975), steady_interval(second, 0.975)
    return Interval(above.value / below.value, above.low / below.high, above.high / below.low)


def runs_needed(share: float, confidence: float = 0.99) -> int:
    """Fewest runs after which one run above the quantile still lets LoadGen stop.

    The least n with ``P(Binomial(n, 1 - share) <= 1) <= 1 - confidence``: MLPerf Inference rules,
    appendix "Early stopping criterion", with one over-latency run.
    """
    n = 2
    while share**n + n * (1 - share) * share ** (n - 1) > 1 - confidence:
        n += 1
    return n


def drift(values: Values) -> tuple[float, float]:
    """Change from the first third of the runs to the last, and how likely chance alone makes it.

    Returns:
        The last third's median over the first's, minus 1; and the two-sided p value of Mann and
        Kendall's trend test (Mann 1945, Econometrica 13, 245-259, normal approximation with ties)
        over the medians of up to 60 blocks, since neighbouring runs are not independent.
    """
    series = np.asarray(values, np.float64)
    third = len(series) // 3
    if not third:
        return 0.0, 1.0
    before, after = float(np.median(series[:third])), float(np.median(series[-third:]))
    blocks = np.array([np.median(block) for block in np.array_split(series, min(60, len(series)))])
    return (after / before - 1 if before else 0.0), _mann_kendall(blocks.tolist())


def _mann_kendall(values: list[float]) -> float:
    series = np.asarray(values)
    n = len(series)
    score = int(np.sum(np.sign(np.triu(series[None, :] - series[:, None], 1))))
    ties = np.unique(series, return_counts=True)[1]
    variance = (n * (n - 1) * (2 * n + 5) - int(np.sum(ties * (ties - 1) * (2 * ties + 5)))) / 18
    if variance <= 0 or score == 0:
        return 1.0
    z = (abs(score) - 1) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


def bimodality(values: Values) -> tuple[float, float] | None:
    """The medians of two clusters that the values fall into, or None where they form one.

    The values are split where the variance between both sides is greatest (Otsu 1979, IEEE Trans.
    SMC 9, 62-66). They count as two where each side holds a tenth of the runs, and the means lie more
    than 4 standard deviations apart (Ashman's D, Ashman et al. 1994, Astron. J. 108, 2348; a single
    normal cluster split so gives 2.6, a uniform one 3.5).
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n = len(ordered)
    least = max(5, n // 10)
    if n < 2 * least:
        return None
    sizes = np.arange(1, n)
    sums = np.cumsum(ordered)[:-1]
    gap = sums / sizes - (ordered.sum() - sums) / (n - sizes)
    between = (sizes * (n - sizes) * gap**2)[least - 1 : n - least]
    split = least + int(np.argmax(between))
    low, high = ordered[:split], ordered[split:]
    distance = math.sqrt(2) * (high.mean() - low.mean())
    if distance <= 4 * math.sqrt(low.var() + high.var()):
        return None
    return float(np.median(low)), float(np.median(high))


def _tosses_below(n: int, limit: float) -> int:
    """The greatest k with ``P(Binomial(n, 1/2) <= k) <= limit``; -1 where there is none.

    Exact up to n = 1000. Beyond, by the normal distribution with continuity correction, whose k is at
    most one off: there, one order statistic of a thousand.
    """
    if n > MAX_EXACT:
        return math.floor(n / 2 - 0.5 + NormalDist().inv_cdf(limit) * math.sqrt(n) / 2)
    ways, total, most = 1, 0, limit * 2**n
    for k in range(n + 1):
        total += ways
        if total > most:
            return k - 1
        ways = ways * (n - k) // (k + 1)
    return n
