"""Grids against ONNX's own operators and against the laws that they must keep."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from edgepipe.quantize import grid as g

RANGES = st.tuples(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32)).map(sorted)
REALS = arrays(np.float32, 40, elements=st.floats(-300, 300, width=32))


@given(RANGES, st.booleans())
def test_every_grid_is_sound_and_holds_its_range(bounds, symmetric):
    low, high = bounds
    grid = g.activation_grid(low, high, symmetric=symmetric)
    assert np.float32(grid.scale) == grid.scale
    assert grid.scale > np.finfo(np.float32).tiny
    assert -128 <= grid.zero_point <= 127
    assert not symmetric or grid.zero_point == 0
    ends = np.array([min(low, 0), max(high, 0)], np.float32)
    error = g.dequantize(g.quantize(ends, grid), grid) - ends
    assert np.abs(error).max() <= 1.01 * grid.scale
    assert g.dequantize(g.quantize(np.zeros(1, np.float32), grid), grid)[0] == 0.0


@given(RANGES)
def test_the_grid_of_a_one_sided_range_wastes_nothing(bounds):
    low, high = bounds
    if low >= 0:
        assert g.activation_grid(low, high).zero_point == -128
    if high <= 0 and low < -1e-3:
        assert g.activation_grid(low, high).zero_point == 127


@pytest.mark.parametrize("bounds", [(0.0, 0.0), (-1e-30, 1e-38), (0.0, 1e-45)])
def test_a_tensor_of_zeros_has_a_normal_scale(bounds):
    assert g.activation_grid(*bounds).scale == np.float32(1 / 255)


@given(REALS, st.tuples(st.floats(-300, -1, width=32), st.floats(0, 300, width=32)))
def test_rounding_is_that_of_onnx(reals, bounds):
    from onnx.reference.ops.op_dequantize_linear import DequantizeLinear_19
    from onnx.reference.ops.op_quantize_linear import QuantizeLinear_19

    grid = g.activation_grid(*bounds)
    scale, zero_point = np.float32(grid.scale), np.int8(grid.zero_point)
    integers = QuantizeLinear_19.eval(reals, scale, zero_point)
    np.testing.assert_array_equal(g.quantize(reals, grid), integers)
    back = DequantizeLinear_19.eval(integers, scale, zero_point)
    np.testing.assert_allclose(g.dequantize(integers, grid), back, rtol=1e-6)


@given(REALS, RANGES, RANGES)
def test_a_clip_is_dropped_only_where_the_grid_saturates_alike(reals, bounds, clip):
    grid = g.activation_grid(*bounds)
    low, high = clip
    if g.saturates(grid, low, high):
        clipped = np.clip(reals, np.float32(low), np.float32(high))
        np.testing.assert_array_equal(g.quantize(clipped, grid), g.quantize(reals, grid))


def test_relu_and_relu6_are_saturation_on_the_grids_of_their_outputs():
    assert g.saturates(g.activation_grid(0, 3.7), 0, np.inf)
    assert g.saturates(g.activation_grid(0, 6), 0, 6)
    assert g.saturates(g.activation_grid(0, 2.5), 0, 6)
    assert not g.saturates(g.activation_grid(-0.5, 3.7), 0, np.inf)
    assert not g.saturates(g.activation_grid(0, 7), 0, 6)
    assert not g.saturates(g.activation_grid(0, 6, symmetric=True), 0, 6)


@given(arrays(np.float32, (5, 12), elements=st.floats(-1e4, 1e4, width=32)))
def test_weights_err_by_half_a_step_at_most(weight):
    scales = g.weight_scales(np.abs(weight).max(axis=1))
    assert (scales >= np.finfo(np.float32).tiny).all()
    integers = g.quantize_weight(weight, scales, 0)
    assert integers.min() >= -127
    assert (np.abs(integers * scales[:, None] - weight) <= 0.5001 * scales[:, None]).all()


def test_a_channel_of_zeros_takes_the_others_scale():
    scales = g.weight_scales(np.array([0.0, 1.27, 2.54, 5.08], np.float32))
    np.testing.assert_allclose(scales, [0.02, 0.01, 0.02, 0.04], rtol=1e-6)
    assert g.weight_scales(np.zeros(3, np.float32)).min() > 0


@given(
    arrays(np.float32, 6, elements=st.floats(-1e3, 1e3, width=32)),
    arrays(np.float32, 6, elements=st.floats(np.float32(1e-12), 1, width=32)),
    st.floats(1e-6, 1e3),
    st.integers(1, 5000),
    st.booleans(),
)
def test_bias_and_accumulator_fit_int32(bias, scales, input_scale, accumulation, one_scale):
    given_scales = scales[:1] if one_scale else scales
    safe = g.safe_weight_scales(given_scales, bias, input_scale, accumulation)
    assert safe.shape == given_scales.shape
    assert (safe >= given_scales).all()
    integers = np.abs(bias.astype(np.float64) / (np.float64(input_scale) * safe))
    assert (integers + accumulation * 127 * 255 <= 2**31 - 1).all()


def test_scales_stay_where_biases_fit():
    scales = np.array([0.01, 0.02], np.float32)
    bias = np.array([3.0, -4.0], np.float32)
    np.testing.assert_array_equal(g.safe_weight_scales(scales, bias, 0.05, 100), scales)
    np.testing.assert_array_equal(g.quantize_bias(bias, np.float32(0.05) * scales), [6000, -4000])
