"""Convolutions: every geometry, against ONNX Runtime on the same graph."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepipe.convert.tflite import emit
from edgepipe.errors import UnsupportedOp


@st.composite
def convolutions(draw):
    """Conv attributes, input shape and weight shape that ONNX allows."""
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    dilations = [draw(st.sampled_from([1, 1, 2])) for _ in range(2)]
    strides = [draw(st.integers(1, 3)) for _ in range(2)]
    if max(dilations) > 1:
        strides = [1, 1]  # TFLite's depthwise kernels know one or the other
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = [draw(st.integers(0, s)) for s in (*span, *span)]
    size = [draw(st.integers(s, 9)) for s in span]
    group = draw(st.sampled_from([1, 1, 2, 4]))
    per_group, outputs = draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from([1, 2]))
    attributes = {
        "kernel_shape": kernel,
        "strides": strides,
        "dilations": dilations,
        "pads": pads,
        "group": group,
    }
    auto = draw(st.sampled_from([None, None, "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto and max(dilations) == 1:  # ONNX Runtime has no dilation with SAME
        del attributes["pads"]
        attributes["auto_pad"] = auto
    return attributes, [1, group * per_group, *size], [group * outputs, per_group, *kernel]


def conv_model(tools, attributes, shape, weight_shape, *, bias=True, seed=0):
    rng = np.random.default_rng(seed)
    constants = {"w": rng.normal(size=weight_shape).astype(np.float32)}
    if bias:
        constants["b"] = rng.normal(size=weight_shape[:1]).astype(np.float32)
    return tools.model([("Conv", ["x", *constants], ["y"], attributes)], {"x": shape}, constants)


@settings(max_examples=120)
@given(case=convolutions(), bias=st.booleans())
def test_float_equals_onnxruntime(tools, case, bias):
    tools.same(conv_model(tools, *case, bias=bias))


@settings(max_examples=80)
@given(case=convolutions(), bias=st.booleans(), unsigned=st.booleans(), float_biases=st.booleans())
def test_int8_is_within_one_step(tools, case, bias, unsigned, float_biases):
    model = conv_model(tools, *case, bias=bias)
    feeds = tools.feeds(model)
    quantized = tools.quantize(model, feeds, unsigned=unsigned, float_biases=float_biases)
    emission = tools.same_steps(quantized, feeds)
    assert not {"QUANTIZE", "DEQUANTIZE", "TRANSPOSE"} & set(emission.op_counts)


@pytest.mark.parametrize(("stride", "size"), [(1, 8), (2, 8), (2, 9), (3, 10)])
def test_same_is_told_only_where_it_is_the_same(tools, stride, size):
    """Torch's symmetric pad of a strided 3x3 is TFLite's SAME for odd sizes alone."""
    attributes = {"kernel_shape": [3, 3], "strides": [stride] * 2, "pads": [1] * 4}
    emission = tools.same(conv_model(tools, attributes, [1, 2, size, size], [4, 2, 3, 3]))
    total = max((-(-size // stride) - 1) * stride + 3 - size, 0)
    assert ("PAD" in emission.op_counts) == (total // 2 != 1)


def test_a_pad_before_a_conv_becomes_same(tools):
    """Static TensorFlow padding: an asymmetric Pad node, then a Conv without pads."""
    model = tools.model(
        [
            ("Pad", ["x", "p"], ["padded"], {}),
            ("Conv", ["padded", "w"], ["y"], {"strides": [2, 2]}),
        ],
        {"x": ["n", 3, 8, 8]},
        {
            "p": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
            "w": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32),
        },
    )
    for emission in tools.both(model):
        assert emission.op_counts == {"CONV_2D": 1}


def test_one_spatial_axis(tools):
    constants = {"w": np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)}
    model = tools.model(
        [("Conv", ["x", "w"], ["y"], {"strides": [2], "pads": [1, 0]})], {"x": [1, 4, 11]}, constants
    )
    for emission in tools.both(model):
        assert "TRANSPOSE" not in emission.op_counts
        assert emission.inputs[0].permutation == (0, 2, 1)


def test_depthwise_is_told_from_grouped(tools):
    attributes = {"kernel_shape": [3, 3], "group": 4}
    depthwise = tools.same(conv_model(tools, attributes, [1, 4, 6, 6], [8, 1, 3, 3]))
    grouped = tools.same(conv_model(tools, attributes, [1, 8, 6, 6], [8, 2, 3, 3]))
    assert depthwise.op_counts == {"DEPTHWISE_CONV_2D": 1}
    assert grouped.op_counts == {"CONV_2D": 1}
    assert depthwise.needs["tflite-runtime"] == "2.5"
    assert grouped.needs["tflite-runtime"] == "2.9"


def test_dead_channels_get_a_usable_scale(tools):
    """A channel of zeros has scale 0 in some quantizers' output; its bias must still come through."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3, 1, 1)).astype(np.float32)
    weight[1] = 0
    weight[3] = 0
    constants = {"w": weight, "b": np.array([0.5, 1e4, 0.25, 0], np.float32)}
    model = tools.model([("Conv", ["x", "w", "b"], ["y"], {})], {"x": [1, 3, 5, 5]}, constants)
    feeds = tools.feeds(model)
    emission = tools.same_steps(tools.quantize(model, feeds, float_biases=True), feeds)
    scales = [s for s in all_scales(emission) if s.size > 1]
    assert scales
    assert all((s > 1e-30).all() and np.isfinite(s).all() for s in scales)


@pytest.mark.parametrize("dead", [False, True])
def test_a_bias_past_int32_gets_a_coarser_channel(tools, dead):
    """A large bias over tiny weights: on the scale of the weights, int32 would overflow."""
    weight = np.full((2, 3, 1, 1), 0 if dead else 1e-9, np.float32)
    weight[0] = np.random.default_rng(0).normal(size=(3, 1, 1)) * (1e-9 if dead else 1)
    constants = {"w": weight, "b": np.array([0.5, 100], np.float32)}
    model = tools.model([("Conv", ["x", "w", "b"], ["y"], {})], {"x": [1, 3, 5, 5]}, constants)
    feeds = tools.feeds(model)
    tools.same_steps(tools.quantize(model, feeds, float_biases=True), feeds)


def all_scales(emission):
    from ai_edge_litert.interpreter import Interpreter

    details = Interpreter(model_content=emission.payload).get_tensor_details()
    return [detail["quantization_parameters"]["scales"] for detail in details]


def test_weights_with_a_zero_point_that_fit_without_it_keep_their_scale(tools):
    model = tools.model(
        [
            ("QuantizeLinear", ["x", "s", "z"], ["xq"], {}),
            ("DequantizeLinear", ["xq", "s", "z"], ["xd"], {}),
            ("DequantizeLinear", ["w", "s", "wz"], ["wd"], {}),
            ("Conv", ["xd", "wd"], ["c"], {}),
            ("QuantizeLinear", ["c", "s", "z"], ["cq"], {}),
            ("DequantizeLinear", ["cq", "s", "z"], ["y"], {}),
        ],
        {"x": [1, 2, 4, 4]},
        {
            "s": np.float32(0.1),
            "z": np.int8(3),
            "wz": np.uint8(100),
            "w": np.full((3, 2, 1, 1), 120, np.uint8),
        },
    )
    emission = emit(model)
    assert not emission.notes
    x = {"x": np.linspace(-5, 5, 32, dtype=np.float32).reshape(1, 2, 4, 4)}
    (expected,), (found,) = tools.run_onnx(model, x), tools.run_tflite(emission, x)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.ptp(expected) > 5


def test_computed_weights_are_refused(tools):
    model = tools.model([("Conv", ["x", "w"], ["y"], {})], {"x": [1, 2, 4, 4], "w": [3, 2, 1, 1]})
    with pytest.raises(UnsupportedOp, match="computed at run time"):
        emit(model)


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf, 1e-45])
def test_a_dead_channel_may_have_any_scale(tools, scale):
    """What the weights of a channel of zeros are multiplied with is nobody's business."""
    from onnx import numpy_helper

    from edgepipe.model import onnx_model

    weight = np.random.default_rng(0).normal(size=(3, 3, 1, 1)).astype(np.float32)
    weight[1] = 0
    bias = np.array([1, 2, 3], np.float32)
    model = tools.model([("Conv", ["x", "w", "b"], ["y"], {})], {"x": [1, 3, 5, 5]}, {"w": weight, "b": bias})
    feeds = tools.feeds(model)
    proto = tools.quantize(model, feeds, float_biases=True).to_onnx()
    sane = onnx_model(proto, "q")
    for tensor in proto.graph.initializer:
        if tensor.name == "w_scale":
            scales = numpy_helper.to_array(tensor).copy()
            scales[1] = scale
            tensor.CopyFrom(numpy_helper.from_array(scales, tensor.name))
    got = tools.run_tflite(emit(onnx_model(proto, "q")), feeds)
    np.testing.assert_array_equal(got, tools.run_tflite(emit(sane), feeds))
