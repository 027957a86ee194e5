"""Ranges chosen behind the layers that read them, against the same measured with NumPy."""

import msgspec
import numpy as np
import pytest

from edgepipe.events import StageAdvanced, silent
from edgepipe.quantize.calibration.extremes import Reach
from edgepipe.quantize.calibration.histogram import Histogram
from edgepipe.quantize.calibration.ranges import Shared, Watch, choose_grid, choose_grids, observe
from edgepipe.quantize.calibration.trial import Candidates, least_harmful
from edgepipe.quantize.grid import activation_grid, dequantize, quantize


@pytest.fixture
def weighed(build_model):
    """A layer that reads a few channels with large weights, and the others hardly at all."""

    def build(loud):
        weight = np.full((8, 4, 1, 1), 0.001, np.float32)
        weight[:, loud] = np.random.default_rng(0).normal(size=(8, 1, 1))
        return build_model("net (float[n,4,6,6] x) => (float[n,8,6,6] y) { y = Conv(x, w) }", w=weight)

    return build


def samples(count=16):
    """Channel 0 has large values now and then, channel 1 never."""
    x = np.random.default_rng(1).normal(size=(count, 4, 6, 6)).astype(np.float32)
    x[:, 0, ::5, ::5] *= 12
    return x


FULL, NARROW = activation_grid(-36, 36), activation_grid(-4, 4)


@pytest.mark.parametrize(("loud", "expected"), [(0, FULL), (1, NARROW)])
def test_what_the_reader_listens_to_decides(weighed, make_context, loud, expected):
    x = samples()
    events = []
    tried = [Candidates(("x",), (FULL, NARROW))]
    assert least_harmful(weighed(loud), tried, make_context(x).calibration, events.append) == (expected,)
    assert [each.done for each in events if isinstance(each, StageAdvanced)][-1] == 2 * len(x)


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_numpys(build_model, make_context, compute, seed):
    rng = np.random.default_rng(seed)
    model = build_model(
        """net (float[n,3,8,8] x) => (float[n,4,8,8] z)
        { a = Conv(x, v)  r = Relu(a)  c = Conv(r, w)  y = Relu(c)  z = Add(r, y) }""",
        v=rng.normal(size=(4, 3, 1, 1)).astype(np.float32),
        w=rng.normal(size=(4, 4, 1, 1)).astype(np.float32),
    )
    x = (rng.normal(size=(12, 3, 8, 8)) ** 3).astype(np.float32)
    z, r, y = compute(model, x, ["r", "y"])
    w = next(each for each in model.to_onnx().graph.initializer if each.name == "w")
    matrix = np.frombuffer(w.raw_data, np.float32).reshape(4, 4)
    grids = tuple(activation_grid(0, r.max() * share) for share in (1.0, 0.7, 0.4, 0.2, 0.1))

    def error(grid):
        tried = dequantize(quantize(r, grid), grid)
        behind = np.maximum(np.einsum("oi,nihw->nohw", matrix, tried), 0)
        return np.square(behind - y).sum() / np.square(y).sum() + (
            np.square(tried - r).sum() / np.square(z).sum()
        )

    errors = [error(grid) for grid in grids]
    best = int(np.argmin(errors))
    expected = grids[best if errors[best] <= 0.8 * errors[0] else 0]
    assert least_harmful(model, [Candidates(("r",), grids)], make_context(x).calibration, silent) == (
        expected,
    )


def test_tensors_that_share_a_grid_are_judged_together(weighed, build_model, make_context):
    model = build_model(
        "net (float[n,4,6,6] x) => (float[n,4,6,6] z) { r = Neg(x)  z = Add(r, x) }",
    )
    x = samples()
    tried = [Candidates(("x", "r"), (FULL, NARROW)), Candidates(("z",), (FULL,))]
    chosen = least_harmful(model, tried, make_context(x).calibration, silent)
    assert len(chosen) == 2
    assert chosen[1] == FULL


def test_a_fixed_batch_and_a_clip_are_tried_as_they_are(build_model, make_context):
    model = build_model(
        "net (float[2,4,6,6] x) => (float[2,4,6,6] y) { y = Clip(x, low, high) }",
        low=np.array(-2.0, np.float32),
        high=np.array(2.0, np.float32),
    )
    x = samples(7)
    # beyond the bounds of the Clip, clipping does no harm
    tried = [Candidates(("x",), (FULL, NARROW))]
    assert least_harmful(model, tried, make_context(x).calibration, silent) == (NARROW,)


def test_auto_leaves_16_bits_and_equal_grids_alone(weighed, make_context):
    model, x = weighed(1), samples()
    data = make_context(x).calibration
    seen = observe(model, data, Watch(tensors=("x", "y"), histograms=True, channel_axes={}), silent)
    shared = [Shared(tensors=("x",), seen=seen["x"]), Shared(tensors=("y",), seen=seen["y"], bits=16)]

    def choose(ranges):
        return choose_grids(model, data, shared, ranges, percentile=99.9, symmetric=False, emit=silent)

    auto = choose("auto")
    assert auto[0] in [choose(way)[0] for way in ("extrapolated", "mse")]
    assert auto[1] == choose("extrapolated")[1]
    assert auto[1].bits == 16
    assert choose("mse")[0] == choose_grid(seen["x"], "mse", percentile=99.9, symmetric=False)
    assert choose("auto") == auto  # the same each time


def test_auto_clips_nothing_that_further_samples_need_room_for(weighed, make_context):
    model, x = weighed(1), samples()
    data = make_context(x).calibration
    seen = observe(model, data, Watch(tensors=("x",), histograms=True, channel_axes={}), silent)["x"]
    narrow = Histogram()
    narrow.add(x[:, 1])
    seen = msgspec.structs.replace(seen, histogram=narrow, reaches=())

    def choose(seen, ranges):
        shared = [Shared(tensors=("x",), seen=seen)]
        return choose_grids(model, data, shared, ranges, percentile=99.9, symmetric=False, emit=silent)[0]

    assert choose(seen, "auto") == choose(seen, "mse") != choose(seen, "minmax")
    reach = Reach(
        low=seen.low,
        high=seen.high,
        typical_low=0.5 * seen.low,
        typical_high=0.5 * seen.high,
        samples=len(x),
        elements=10,
    )
    scattered = msgspec.structs.replace(seen, reaches=(reach,))
    roomy = choose(scattered, "extrapolated")
    assert roomy.high > choose(scattered, "minmax").high
    assert choose(scattered, "auto") == roomy
