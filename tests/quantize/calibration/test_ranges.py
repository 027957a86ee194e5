"""Streamed statistics against numpy on all data at once."""

import itertools
from typing import get_args

import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from edgepipe.errors import DataEmpty, DataNotFinite, ModelError
from edgepipe.events import StageAdvanced, StageStarted, silent
from edgepipe.model import onnx_model
from edgepipe.quantize.calibration.histogram import BINS, Histogram
from edgepipe.quantize.calibration.probes import COUNTED, Instrumented
from edgepipe.quantize.calibration.ranges import (
    Algorithm,
    Observation,
    Watch,
    choose_grid,
    joined,
    least_divergence_range,
    least_error_range,
    observe,
    percentile_range,
)
from edgepipe.quantize.grid import activation_grid, dequantize, quantize

VALUES = arrays(
    np.float32, st.integers(1, 60), elements=st.floats(-1e8, 1e8, width=32, allow_subnormal=False)
)


def filled(*batches):
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def seen_of(values):
    ends = float(values.min()), float(values.max())
    return Observation(*ends, filled(values), typical=ends)


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


def loop_divergence(values_histogram, magnitude):
    """KL divergence of a clipping magnitude, by loops over bins and SciPy's entropy."""
    from scipy.stats import entropy

    from edgepipe.quantize.grid import activation_grid

    low, high = max(values_histogram.low, -magnitude), min(values_histogram.high, magnitude)
    grid = activation_grid(low, high)
    kept, outside_low, outside_high = [], 0, 0
    for center, count in zip(values_histogram.centers, values_histogram.counts, strict=True):
        if center < low:
            outside_low += count
        elif center > high:
            outside_high += count
        else:
            step = min(max(round(center / grid.scale) + grid.zero_point, grid.first), grid.last)
            kept.append((step, float(count)))
    if not kept or not sum(count for _, count in kept):
        return np.inf
    reference = [count for _, count in kept]
    reference[0] += outside_low
    reference[-1] += outside_high
    spread = []
    for step, count in kept:
        same_step = [other for at, other in kept if at == step and other]
        spread.append(sum(same_step) / len(same_step) if count else 0.0)
    reference, spread = (np.maximum(each, 1e-4) for each in (reference, spread))
    return entropy(reference, spread)  # SciPy normalizes both


@pytest.mark.parametrize("rectified", [False, True])
def test_least_divergence_is_that_of_loops_with_scipy(rectified):
    values = np.random.default_rng(6).laplace(size=20_000).astype(np.float32)
    values = np.maximum(values, 0) if rectified else values
    histogram = filled(values)
    greatest = np.abs(values).max()
    trials = np.linspace(greatest, greatest / 16, 96)
    divergences = [loop_divergence(histogram, magnitude) for magnitude in trials[::12]]
    low, high = least_divergence_range(histogram, symmetric=False)
    assert loop_divergence(histogram, max(-low, high)) <= min(divergences) * (1 + 1e-9)
    assert (low == 0.0) == rectified


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
@pytest.mark.parametrize("symmetric", [False, True])
@settings(max_examples=20)
@given(values=VALUES)
def test_every_grid_is_sound(algorithm, symmetric, values):
    grid = choose_grid(seen_of(values), algorithm, percentile=99.9, symmetric=symmetric)
    assert np.isfinite(grid.scale)
    assert grid.scale >= np.finfo(np.float32).tiny
    assert grid.first <= grid.zero_point <= grid.last
    assert grid.low <= 0.0 <= grid.high
    assert not symmetric or grid.zero_point == 0


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
@pytest.mark.parametrize("value", [0.0, 1e-38, -1e-38, 1e-12, 3.5, -3.5, 1e30, -1e30])
def test_constant_tensors_have_sound_grids(algorithm, value):
    values = np.full(50, value, np.float32)
    grid = choose_grid(seen_of(values), algorithm, percentile=99.9, symmetric=False)
    assert np.isfinite(grid.scale)
    assert grid.scale > 0
    error = np.abs(dequantize(quantize(values, grid), grid).astype(np.float64) - values)
    assert error.max() <= grid.scale * (0.5 + 1e-6)


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
@pytest.mark.parametrize("bits", [8, 16])
@settings(max_examples=20)
@given(values=VALUES)
def test_what_is_not_clipped_is_within_half_a_step(algorithm, bits, values):
    grid = choose_grid(seen_of(values), algorithm, percentile=99.9, symmetric=False, bits=bits)
    held = (values >= grid.low) & (values <= grid.high)
    error = np.abs(dequantize(quantize(values, grid), grid).astype(np.float64) - values)
    # a unit in the last place of the value, for the float32 division and product
    assert (error[held] <= grid.scale / 2 + 2 * np.spacing(np.abs(values[held]))).all()
    zero = np.zeros(1, np.float32)
    assert dequantize(quantize(zero, grid), grid)[0] == 0.0


@given(VALUES)
def test_16_bits_hold_every_value(values):
    for algorithm in get_args(Algorithm):
        grid = choose_grid(seen_of(values), algorithm, percentile=99.0, symmetric=False, bits=16)
        assert grid == activation_grid(values.min(), values.max(), bits=16)
        assert grid.zero_point == 0


def test_average_is_the_mean_of_the_samples_extremes(net, make_context, compute):
    x = np.random.default_rng(7).normal(size=(9, 3, 6, 6)).astype(np.float32)
    x[4] *= 50  # an outlier among the samples
    seen = observe(net, make_context(x).calibration, watch("x", "c"), silent)
    _, c = compute(net, x, ["c"])
    for name, values in {"x": x, "c": c}.items():
        rows = values.reshape(9, -1)
        expected = rows.min(1).mean(dtype=np.float64), rows.max(1).mean(dtype=np.float64)
        assert seen[name].typical == pytest.approx(expected, rel=1e-5)
        grid = choose_grid(seen[name], "average", percentile=99.0, symmetric=False)
        assert grid == activation_grid(*seen[name].typical)


@pytest.fixture
def deep(build_model):
    """Wide enough for the runtime to reduce its activations itself; 16 channels make a block, 8 do not."""
    rng = np.random.default_rng(1)
    return build_model(
        """net (float[n,3,20,20] x) => (float[n,16,20,20] y)
        { a = Conv <pads=[1,1,1,1]> (x, v)  r = Relu(a)  b = Conv(r, w)  h = Conv <pads=[1,1,1,1]> (r, u)
          y = Concat <axis=1> (b, h) }""",
        v=rng.normal(size=(16, 3, 3, 3)).astype(np.float32),
        w=rng.normal(size=(8, 16, 1, 1)).astype(np.float32),
        u=rng.normal(size=(8, 16, 3, 3)).astype(np.float32),
    )


def test_what_the_runtime_reduces_is_what_numpy_does(deep, make_context, compute):
    x = np.random.default_rng(8).normal(size=(5, 3, 20, 20)).astype(np.float32)
    names = ("x", "a", "r", "b", "h", "y")
    seen = observe(deep, make_context(x).calibration, watch(*names, **dict.fromkeys(names, 1)), silent)
    y, *rest = compute(deep, x, names[1:-1])
    for name, values in zip(names, [x, *rest, y], strict=True):
        rows = values.reshape(5, -1)
        assert seen[name].low == pytest.approx(values.min(), rel=1e-5)
        assert seen[name].high == pytest.approx(values.max(), rel=1e-5)
        assert seen[name].typical[0] == pytest.approx(rows.min(1).mean(), rel=1e-5)
        assert seen[name].typical[1] == pytest.approx(rows.max(1).mean(), rel=1e-5)
        np.testing.assert_allclose(seen[name].mean, values.mean(axis=(0, 2, 3), dtype=np.float64), atol=1e-5)
        # a sample of the values has their distribution
        histogram = seen[name].histogram
        assert histogram.counts.sum() <= 5 * 2 * COUNTED
        cut = np.searchsorted(np.sort(values.ravel()), 0.3 * values.max()) / values.size
        counted = histogram.counts[histogram.centers < 0.3 * values.max()].sum() / histogram.counts.sum()
        assert counted == pytest.approx(cut, abs=0.03)


def test_samples_in_any_batches_and_order_give_the_same(deep, make_context, monkeypatch):
    from edgepipe.quantize.calibration import observe as module

    x = np.random.default_rng(9).normal(size=(12, 3, 20, 20)).astype(np.float32)
    names = ("x", "r", "b", "y")
    found = []
    for samples, most in [(x, 64), (x, 5), (x, 1), (x[::-1], 4)]:
        monkeypatch.setattr(module, "_MOST_SAMPLES", most)
        seen = observe(deep, make_context(samples.copy()).calibration, watch(*names, b=1), silent)
        found.append(seen)
    for seen in found[1:]:
        for name in names:
            same(seen[name].histogram, found[0][name].histogram)
            assert (seen[name].low, seen[name].high) == (found[0][name].low, found[0][name].high)
            assert seen[name].typical == pytest.approx(found[0][name].typical, rel=1e-12)
        np.testing.assert_allclose(seen["b"].mean, found[0]["b"].mean, rtol=1e-5, atol=1e-7)


def test_a_tensor_whose_batch_is_not_its_first_axis(build_model, make_context, compute, monkeypatch):
    from edgepipe.quantize.calibration import observe as module

    monkeypatch.setattr(module, "_MOST_SAMPLES", 4)
    model = build_model(
        """net (float[n,8,3] x) => (float[n,8,3] y)
        { a = Transpose<perm=[1,0,2]>(x)  b = Sin(a)  y = Transpose<perm=[1,0,2]>(b) }"""
    )
    x = np.random.default_rng(11).normal(size=(10, 8, 3)).astype(np.float32)
    seen = observe(model, make_context(x).calibration, watch("x", "b", "y"), silent)
    y, b = compute(model, x, ["b"])
    for name, values in (("b", b), ("y", y)):
        assert (seen[name].low, seen[name].high) == (values.min(), values.max())


def test_single_samples_are_reduced_together(tiny_onnx, make_context, monkeypatch):
    from edgepipe.quantize.calibration import observe as module

    reduced = []
    add = module._Observer.add
    monkeypatch.setattr(
        module._Observer, "add", lambda self, values, n: (reduced.append(len(values)), add(self, values, n))
    )
    model = onnx_model(onnx.load_from_string(tiny_onnx(batch=1).payload), "single")
    x = np.random.default_rng(12).normal(size=(40, 3, 4, 5)).astype(np.float32)
    seen = observe(model, make_context(x).calibration, watch("x", "y"), silent)
    assert reduced == [32, 32, 8, 8]
    assert (seen["x"].low, seen["x"].high) == (x.min(), x.max())
    assert seen["x"].typical[1] == pytest.approx(x.reshape(40, -1).max(1).mean(), rel=1e-6)


@pytest.mark.parametrize(("side", "batch"), [(8, 64), (32, 8), (224, 4), (2000, 1)])
def test_a_batch_of_layers_is_as_large_as_the_nearest_cache_allows(side, batch):
    from edgepipe.quantize.calibration.observe import _batch

    elements = {"a": 16 * side**2, "b": 4 * side**2}
    graph = Instrumented(
        payload=b"", whole=(), sampled={}, high=(), negated_low=(), mean=(), elements=elements
    )
    assert _batch(graph) == batch


def test_memory_does_not_grow_with_the_samples(deep, make_context):
    import pickle

    rng = np.random.default_rng(10)
    sizes = []
    for samples in (16, 160):
        x = np.clip(rng.normal(size=(samples, 3, 20, 20)), -2, 2).astype(np.float32)
        x[0, 0, 0, :2] = -2, 2
        seen = observe(deep, make_context(x).calibration, watch("x", "r", "b", b=1), silent)
        sizes.append({name: len(pickle.dumps(each.histogram)) for name, each in seen.items()})
    for name, size in sizes[1].items():
        assert size <= 2 * sizes[0][name]
        assert size <= 8 * BINS + 1000


def test_nan_that_a_maximum_would_drop_is_found(build_model, make_context):
    model = build_model(
        """net (float[n,16,16,16] x) => (float[n,16,16,16] y)
        { s = Sqrt(x)  y = Conv(s, w) }""",
        w=np.eye(16, dtype=np.float32).reshape(16, 16, 1, 1),
    )
    x = np.random.default_rng(11).uniform(1, 2, size=(3, 16, 16, 16)).astype(np.float32)
    x[1, 2, 3, 4] = -1
    for axes, histograms in [({"s": 1, "y": 1}, True), ({"y": 1}, False)]:
        asked = Watch(tensors=("s", "y"), histograms=histograms, channel_axes=axes)
        with pytest.raises(DataNotFinite, match="activation"):
            observe(model, make_context(x).calibration, asked, silent)


def test_a_graph_that_uses_the_names_of_probes_is_watched_too(build_model, make_context, compute):
    model = build_model(
        """net (float[n,3,20,20] x) => (float[n,16,20,20] y)
        { probe.high.blocks = Conv(x, w)  y = Relu(probe.high.blocks) }""".replace(
            "probe.high.blocks", "probe_high"
        ),
        w=np.ones((16, 3, 1, 1), np.float32),
    )
    x = np.random.default_rng(12).normal(size=(2, 3, 20, 20)).astype(np.float32)
    seen = observe(model, make_context(x).calibration, watch("probe_high", "y"), silent)
    _, high = compute(model, x, ["probe_high"])
    assert seen["probe_high"].low == pytest.approx(high.min(), rel=1e-5)
