import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edgepipe.measure import latency_of, ratio_of_medians, verdict_of
from edgepipe.measure.statistics import (
    RUNS_NEEDED,
    bimodality,
    drift,
    median_interval,
    quantile,
    runs_needed,
    steady_interval,
)

latencies = st.lists(st.integers(1, 10**12), min_size=1, max_size=300)


def test_the_numbers_of_runs_are_loadgens():
    assert {share: runs_needed(share) for share in RUNS_NEEDED} == RUNS_NEEDED


@given(latencies, st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_was_measured_and_covers_its_share(values, share):
    found = quantile(values, share)
    assert found in values
    assert np.mean(np.asarray(values) <= found) >= share - 1e-12
    assert np.mean(np.asarray(values) < found) < share + 1e-12


@pytest.mark.parametrize("n", [11, 50, 101, 640])
def test_the_medians_interval_equals_scipys(n):
    values = np.random.default_rng(n).lognormal(14, 0.2, n)
    expected = stats.quantile_test(values, q=np.median(values), p=0.5).confidence_interval(0.95)
    found = median_interval(values.tolist())
    # scipy takes the first order statistic past the level on the upper side: one rank further at most.
    ordered = np.sort(values)
    assert abs(np.searchsorted(ordered, found.low) - np.searchsorted(ordered, expected.low)) <= 1
    assert abs(np.searchsorted(ordered, found.high) - np.searchsorted(ordered, expected.high)) <= 1


def test_the_medians_interval_covers_the_median_at_its_level():
    draws = np.random.default_rng(1).exponential(1.0, (2000, 40))
    intervals = [median_interval(row.tolist()) for row in draws]
    covered = np.mean([i.low <= np.log(2) <= i.high for i in intervals])
    assert covered >= 0.945


def test_runs_that_resemble_their_neighbours_widen_the_interval():
    rng = np.random.default_rng(6)
    naive = steady = 0
    for _ in range(150):
        # First-order autoregression around 0, as slow load makes it: neighbours correlate by 0.95.
        noise, series = rng.normal(size=4000), [0.0]
        for each in noise:
            series.append(0.95 * series[-1] + each)
        found, plain = steady_interval(series[100:]), median_interval(series[100:])
        assert found.low <= plain.low <= found.value <= plain.high <= found.high
        steady += found.low <= 0 <= found.high
        naive += plain.low <= 0 <= plain.high
    assert naive / 150 < 0.6
    assert steady / 150 > 0.85


def test_independent_runs_widen_it_little():
    values = np.random.default_rng(7).lognormal(0, 0.1, 3000).tolist()
    found, plain = steady_interval(values), median_interval(values)
    assert found.high - found.low < 2 * (plain.high - plain.low)


@given(latencies)
def test_the_interval_encloses_the_median_and_scales(values):
    one, thousand = median_interval(values), median_interval([1000 * value for value in values])
    assert one.low <= one.value <= one.high
    assert thousand.value == pytest.approx(1000 * one.value)
    assert thousand.low == pytest.approx(1000 * one.low)


@given(latencies, latencies)
def test_ratios_are_reciprocal(first, second):
    there, back = ratio_of_medians(first, second), ratio_of_medians(second, first)
    assert there.value * back.value == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)


def test_a_ratios_interval_encloses_the_truth():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(300):
        ratio = ratio_of_medians(rng.normal(3, 0.3, 80).tolist(), rng.normal(2, 0.2, 80).tolist())
        hits += ratio.low <= 1.5 <= ratio.high
    assert hits >= 0.95 * 300


@given(latencies)
def test_statistics_agree_with_numpy(values):
    from edgepipe.measure import Measurement

    found = latency_of(Measurement(kind="board", runtime="litert", threads=1, latencies_ns=tuple(values)))
    assert found.runs == len(values)
    assert found.mean_ns == pytest.approx(np.mean(values))
    assert found.stdev_ns == pytest.approx(np.std(values, ddof=1) if len(values) > 1 else 0, abs=1e-3)
    assert (found.min_ns, found.max_ns) == (min(values), max(values))
    assert found.throughput_hz == pytest.approx(1e9 / np.mean(values))
    assert (found.median_ns is None) == (len(values) < 11)
    assert (found.p90_ns is None) == (len(values) < 64)
    assert found.p99_ns is None


def test_no_latencies_no_statistics(calm):
    assert latency_of(calm(latencies_ns=())) is None


def test_p99_needs_662_runs(calm):
    assert latency_of(calm([5] * 661)).p99_ns is None
    assert latency_of(calm([5] * 662)).p99_ns == 5


def test_drift_sees_a_slow_rise_and_not_noise():
    rng = np.random.default_rng(3)
    noise = rng.normal(100, 3, 900)
    change, chance = drift((noise + np.linspace(0, 20, 900)).tolist())
    assert change == pytest.approx(20 * 2 / 3 / 103, rel=0.1)
    assert chance < 1e-6
    assert sum(drift(rng.normal(100, 3, 300).tolist())[1] < 0.01 for _ in range(200)) <= 8


@given(st.lists(st.integers(1, 50), min_size=10, max_size=60))
def test_the_trend_test_is_kendalls(values):
    _, chance = drift(values)
    tau = stats.kendalltau(range(len(values)), values, method="asymptotic")
    # Ours has the continuity correction of Mann and Kendall, scipy's has none: never smaller, and near.
    if not np.isnan(tau.pvalue):
        assert tau.pvalue - 1e-9 <= chance <= min(1.0, tau.pvalue + 0.2)


@pytest.mark.parametrize("name", ["normal", "uniform", "exponential", "lognormal"])
def test_one_cluster_is_one(name):
    rng = np.random.default_rng(4)
    for _ in range(50):
        assert bimodality((1e6 + 1e5 * getattr(rng, name)(size=300)).tolist()) is None


def test_two_clusters_are_two():
    rng = np.random.default_rng(5)
    values = np.concatenate([rng.normal(1.0e6, 1e4, 700), rng.normal(1.8e6, 2e4, 300)])
    low, high = bimodality(rng.permutation(values).tolist())
    assert (low, high) == (pytest.approx(1.0e6, rel=0.01), pytest.approx(1.8e6, rel=0.01))


def test_a_few_outliers_are_no_cluster():
    assert bimodality([1e6] * 200 + [5e6] * 3) is None


@pytest.mark.parametrize("n", [11, 12, 100, 999, 1000, 1001, 1002, 5003, 40_000, 1_000_000])
@pytest.mark.parametrize("confidence", [0.95, 0.975])
def test_the_ranks_of_long_series_are_those_of_the_binomial(n, confidence):
    """Beyond a thousand runs they are approximated: one rank off at most, exact up to there."""
    found = median_interval(np.arange(n), confidence)
    limit = (1 - confidence) / 2
    exact = int(stats.binom.ppf(limit, n, 0.5))
    exact -= stats.binom.cdf(exact, n, 0.5) > limit
    assert abs(found.low - exact) <= (n > 1000)
    assert found.high == n - 1 - found.low


def test_a_million_runs_are_summed_up_without_a_loop_over_them(calm):
    """By the lines that Python runs, not by time: a test on a busy machine would fail for nothing."""
    import sys

    measurement = calm(np.random.default_rng(8).lognormal(9, 0.1, 100_000).astype(int).tolist())
    lines = 0

    def count(frame, event, argument):
        nonlocal lines
        lines += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        verdict_of(measurement)
    finally:
        sys.settrace(before)
    assert lines < 20_000
