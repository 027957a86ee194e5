"""Pooling: every geometry, against ONNX Runtime on the same graph."""

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepipe.convert.tflite import emit
from edgepipe.errors import UnsupportedOp


@st.composite
def pools(draw):
    """Pool attributes and input shape; pads stay under the kernel, as ONNX Runtime asks."""
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    attributes = {
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 3)) for _ in range(2)],
        "pads": [draw(st.integers(0, k - 1)) for k in (*kernel, *kernel)],
        "ceil_mode": draw(st.sampled_from([0, 0, 1])),
    }
    return attributes, [1, draw(st.integers(1, 3)), *(draw(st.integers(k, 9)) for k in kernel)]


@settings(max_examples=100)
@given(case=pools(), relu=st.booleans())
def test_max_pool(tools, case, relu):
    attributes, shape = case
    nodes = [("Relu", ["x"], ["r"], {}), ("MaxPool", ["r"], ["y"], attributes)]
    model = tools.model(nodes if relu else [("MaxPool", ["x"], ["y"], attributes)], {"x": shape})
    tools.same(model)


@settings(max_examples=60)
@given(case=pools(), unsigned=st.booleans())
def test_int8_max_pool_is_exact(tools, case, unsigned):
    attributes, shape = case
    model = tools.model([("MaxPool", ["x"], ["y"], attributes)], {"x": shape})
    feeds = tools.feeds(model)
    emission = tools.same_steps(tools.quantize(model, feeds, unsigned=unsigned), feeds, steps=0)
    assert "QUANTIZE" not in emission.op_counts


def test_a_pool_on_another_grid_is_requantized(tools):
    attributes = {"kernel_shape": [2, 2]}
    model = tools.model([("MaxPool", ["x"], ["y"], attributes)], {"x": [1, 2, 4, 4]})
    feeds = tools.feeds(model)
    emission = tools.same_steps(tools.quantize(model, feeds, same_grid=()), feeds)
    assert emission.op_counts == {"MAX_POOL_2D": 1, "MUL": 1}


@settings(max_examples=100)
@given(case=pools(), count_include_pad=st.booleans())
def test_average_pool(tools, case, count_include_pad):
    attributes, shape = case
    attributes["count_include_pad"] = int(count_include_pad)
    tools.same(tools.model([("AveragePool", ["x"], ["y"], attributes)], {"x": shape}))


@settings(max_examples=60)
@given(case=pools(), count_include_pad=st.booleans())
def test_average_pool_with_a_function_behind(tools, case, count_include_pad):
    attributes, shape = case
    attributes["count_include_pad"] = int(count_include_pad)
    nodes = [("AveragePool", ["x"], ["p"], attributes), ("Relu", ["p"], ["y"], {})]
    assert "RELU" not in tools.same(tools.model(nodes, {"x": shape})).op_counts


@settings(max_examples=60)
@given(case=pools(), count_include_pad=st.booleans())
def test_int8_average_pool(tools, case, count_include_pad):
    attributes, shape = case
    attributes["count_include_pad"] = int(count_include_pad)
    model = tools.model([("AveragePool", ["x"], ["y"], attributes)], {"x": shape})
    feeds = tools.feeds(model)
    # Where the pads must be made up for, the error of the first rounding grows by the correction, which
    # is at most the size of the window.
    emission = emit(tools.quantize(model, feeds))
    corrected = "MUL" in emission.op_counts
    tools.same_steps(
        tools.quantize(model, feeds),
        feeds,
        steps=0.5 * prod(attributes["kernel_shape"]) + 1 if corrected else 1,
    )


def test_ceil_mode_of_the_last_row_is_left_out_of_the_average(tools):
    attributes = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}
    emission = tools.same(tools.model([("AveragePool", ["x"], ["y"], attributes)], {"x": [1, 2, 5, 5]}))
    assert emission.op_counts == {"AVERAGE_POOL_2D": 1}


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("shape", [[1, 3, 5, 7], [1, 3, 6]])
def test_global_pool(tools, op, shape):
    model = tools.model([(op, ["x"], ["y"], {})], {"x": shape})
    for emission in tools.both(model):
        assert emission.op_counts == {"MEAN" if op == "GlobalAveragePool" else "REDUCE_MAX": 1}


def test_one_spatial_axis(tools):
    attributes = {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}
    tools.both(tools.model([("MaxPool", ["x"], ["y"], attributes)], {"x": [1, 4, 9]}))


def test_dilated_windows_are_refused(tools):
    attributes = {"kernel_shape": [2, 2], "dilations": [2, 2]}
    model = tools.model([("MaxPool", ["x"], ["y"], attributes)], {"x": [1, 2, 5, 5]})
    with pytest.raises(UnsupportedOp, match="dilated"):
        emit(model)


def test_a_pad_that_resnet_has_keeps_the_pool_on_its_grid(tools):
    """7x7 stem: MaxPool 3x3, stride 2, pad 1 on an even size, which is not SAME."""
    rng = np.random.default_rng(0)
    model = tools.model(
        [
            ("Conv", ["x", "w"], ["c"], {"pads": [3] * 4, "strides": [2, 2]}),
            ("Relu", ["c"], ["r"], {}),
            ("MaxPool", ["r"], ["y"], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}),
        ],
        {"x": [1, 3, 16, 16]},
        {"w": rng.normal(size=(4, 3, 7, 7)).astype(np.float32)},
    )
    emission = tools.both(model)[1]
    assert "PADV2" not in emission.op_counts
    assert emission.op_counts["CONV_2D"] == 1
