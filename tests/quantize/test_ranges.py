"""Streamed statistics against numpy on all data at once."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from edgepipe.errors import DataEmpty, DataNotFinite, ModelError
from edgepipe.events import StageAdvanced, StageStarted, silent
from edgepipe.quantize.histogram import BINS, Histogram
from edgepipe.quantize.ranges import (
    Observation,
    Watch,
    choose_grid,
    joined,
    least_error_range,
    observe,
    percentile_range,
)

VALUES = arrays(
    np.float32, st.integers(1, 60), elements=st.floats(-1e8, 1e8, width=32, allow_subnormal=False)
)


def filled(*batches):
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def same(left, right):
    assert (left.exponent, left.first, left.low, left.high) == (
        right.exponent,
        right.first,
        right.low,
        right.high,
    )
    np.testing.assert_array_equal(left.counts, right.counts)


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_batches_and_their_order_do_not_matter(batches):
    at_once = filled(np.concatenate(batches))
    same(filled(*batches), at_once)
    same(filled(*reversed(batches)), at_once)
    merged = filled(batches[0])
    for batch in batches[1:]:
        merged.merge(filled(batch))
    same(merged, at_once)


@given(VALUES)
def test_counts_are_numpys(values):
    histogram = filled(values)
    assert len(histogram.counts) <= BINS
    assert histogram.counts.sum() == values.size
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    edges = (np.arange(len(histogram.counts) + 1) + histogram.first) * histogram.width
    expected = np.array(
        [((values >= low) & (values < high)).sum() for low, high in itertools.pairwise(edges)]
    )
    np.testing.assert_array_equal(histogram.counts, expected)


def test_percentiles_are_numpys_to_a_bin():
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    histogram = filled(values)
    low, high = percentile_range(histogram, 99.5)
    assert low == pytest.approx(np.quantile(values, 0.005), abs=histogram.width)
    assert high == pytest.approx(np.quantile(values, 0.995), abs=histogram.width)
    assert percentile_range(histogram, 100) == (values.min(), values.max())


@pytest.mark.parametrize("symmetric", [False, True])
def test_least_error_range_is_that_of_a_search_on_the_values(symmetric):
    from edgepipe.quantize.grid import activation_grid, dequantize, quantize

    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(size=20_000), rng.normal(size=20) * 30]).astype(np.float32)

    def error(low, high):
        grid = activation_grid(low, high, symmetric=symmetric)
        return float(np.square(dequantize(quantize(values, grid), grid) - values, dtype=np.float64).mean())

    found = error(*least_error_range(filled(values), symmetric=symmetric))
    full = error(values.min(), values.max())
    best = min(
        error(values.min() * low, values.max() * high)
        for low in np.linspace(0.02, 1, 50)
        for high in np.linspace(0.02, 1, 50)
    )
    assert found < full
    assert found <= 1.15 * best


def test_an_output_of_relu_keeps_its_zero():
    values = np.maximum(np.random.default_rng(2).normal(size=5000), 0).astype(np.float32)
    low, high = least_error_range(filled(values), symmetric=False)
    assert low == 0.0
    assert 0 < high <= values.max()


def test_joined_observations_are_those_of_all_values():
    left, right = (
        np.random.default_rng(seed).normal(seed, 1 + seed, 500).astype(np.float32) for seed in (3, 4)
    )
    seen = [Observation(float(each.min()), float(each.max()), filled(each)) for each in (left, right)]
    both = joined(seen)
    same(both.histogram, filled(np.concatenate([left, right])))
    assert (both.low, both.high) == (both.histogram.low, both.histogram.high)


def test_choose_grid_falls_back_to_extremes_without_a_histogram():
    grid = choose_grid(Observation(-1.0, 1.55), "mse", percentile=99.0, symmetric=False)
    assert grid.scale == pytest.approx(0.01)


@pytest.fixture
def net(build_model):
    rng = np.random.default_rng(0)
    return build_model(
        "net (float[n,3,6,6] x) => (float[n,4,4,4] y) { c = Conv(x, w)  y = Relu(c) }",
        w=rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
    )


def watch(*names, **axes):
    return Watch(tensors=names, histograms=True, channel_axes=axes)


@pytest.mark.parametrize("samples", [1, 7, 150])
def test_observed_statistics_are_numpys(net, make_context, compute, samples):
    x = np.random.default_rng(5).normal(size=(samples, 3, 6, 6)).astype(np.float32)
    events = []
    seen = observe(net, make_context(x).calibration, watch("x", "c", "y", x=1, c=1), events.append)
    y, c = compute(net, x, ["c"])
    for name, values in {"x": x, "c": c, "y": y}.items():
        assert seen[name].low == pytest.approx(values.min(), rel=1e-5)
        assert seen[name].high == pytest.approx(values.max(), rel=1e-5)
        assert seen[name].histogram.counts.sum() == values.size
    np.testing.assert_allclose(seen["c"].mean, c.mean(axis=(0, 2, 3), dtype=np.float64), atol=1e-5)
    assert seen["y"].mean is None
    assert events[0] == StageStarted("calibrate", samples)
    assert [event.done for event in events if isinstance(event, StageAdvanced)][-1] == samples


def test_a_fixed_batch_is_kept(build_model, make_context):
    model = build_model("net (float[4,3] x) => (float[4,3] y) { y = Relu(x) }")
    x = np.arange(27, dtype=np.float32).reshape(9, 3)
    seen = observe(model, make_context(x).calibration, watch("y"), silent)
    assert seen["y"].high == 23.0  # of two whole batches; the ninth sample fills none
    with pytest.raises(DataEmpty, match="too few samples"):
        observe(model, make_context(x[:3]).calibration, watch("y"), silent)


def test_a_model_that_overflows_is_refused(build_model, make_context):
    model = build_model("net (float[n,3] x) => (float[n,3] y) { y = Exp(x) }")
    x = np.full((2, 3), 1e3, np.float32)
    with pytest.raises(DataNotFinite, match="activation y"):
        observe(model, make_context(x).calibration, watch("y"), silent)


def test_several_inputs_are_refused(build_model, make_context):
    model = build_model("net (float[n,3] x, float[n,3] z) => (float[n,3] y) { y = Add(x, z) }")
    with pytest.raises(ModelError, match="one input"):
        observe(model, make_context(np.zeros((2, 3), np.float32)).calibration, watch("y"), silent)
