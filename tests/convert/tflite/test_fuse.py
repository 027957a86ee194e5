"""What is folded into its neighbour, and what must not be."""

import numpy as np
import pytest

from edgepipe.convert.tflite import emit
from edgepipe.errors import UnsupportedOp

RNG = np.random.default_rng(4)
WEIGHT = RNG.normal(size=(4, 3, 1, 1)).astype(np.float32)
NORM = {
    "scale": RNG.normal(size=4).astype(np.float32),
    "bias": RNG.normal(size=4).astype(np.float32),
    "mean": RNG.normal(size=4).astype(np.float32),
    "variance": RNG.uniform(0.5, 2, size=4).astype(np.float32),
}
CONV = ("Conv", ["x", "w"], ["c"], {})


def behind_conv(tools, nodes, constants=None, **settings):
    return tools.model([CONV, *nodes], {"x": [1, 3, 6, 5]}, {"w": WEIGHT, **(constants or {})}, **settings)


def test_normalization_folds_into_a_conv(tools):
    model = behind_conv(tools, [("BatchNormalization", ["c", *NORM], ["y"], {"epsilon": 1e-3})], NORM)
    assert tools.same(model).op_counts == {"CONV_2D": 1}


def test_normalization_behind_other_ops_is_a_product_and_a_sum(tools):
    model = behind_conv(
        tools, [("Relu", ["c"], ["r"], {}), ("BatchNormalization", ["r", *NORM], ["y"], {})], NORM
    )
    assert tools.same(model).op_counts == {"ADD": 1, "CONV_2D": 1, "MUL": 1}


def test_normalization_does_not_change_what_others_read(tools):
    nodes = [("BatchNormalization", ["c", *NORM], ["n"], {}), ("Add", ["c", "n"], ["y"], {})]
    assert "MUL" in tools.same(behind_conv(tools, nodes, NORM)).op_counts


def test_normalization_does_not_change_an_output(tools):
    nodes = [("BatchNormalization", ["c", *NORM], ["y"], {})]
    tools.same(behind_conv(tools, nodes, NORM, outputs=("c", "y")))


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1)])
def test_a_sum_of_channel_constants_is_a_bias(tools, shape):
    constants = {"k": RNG.normal(size=shape).astype(np.float32)}
    emission = tools.same(behind_conv(tools, [("Add", ["c", "k"], ["y"], {})], constants))
    assert emission.op_counts == {"CONV_2D": 1}


@pytest.mark.parametrize("shape", [(5,), (6, 5), (4, 6, 5)])
def test_a_sum_of_other_constants_is_not(tools, shape):
    constants = {"k": RNG.normal(size=shape).astype(np.float32)}
    emission = tools.same(behind_conv(tools, [("Add", ["c", "k"], ["y"], {})], constants))
    assert emission.op_counts == {"ADD": 1, "CONV_2D": 1}


def test_a_pad_of_channels_stays(tools):
    """Only height and width are padded by a conv."""
    model = tools.model(
        [("Pad", ["x", "p"], ["q"], {}), ("Conv", ["q", "w"], ["y"], {})],
        {"x": [1, 2, 6, 5]},
        {"p": np.array([0, 0, 1, 1, 0, 1, 1, 1]), "w": WEIGHT},
    )
    for emission in tools.both(model):
        assert emission.op_counts == {"CONV_2D": 1, "PAD": 1}


def test_a_pad_with_something_else_than_zero_stays(tools):
    model = tools.model(
        [("Pad", ["x", "p", "v"], ["q"], {}), ("Conv", ["q", "w"], ["y"], {})],
        {"x": [1, 3, 6, 5]},
        {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "w": WEIGHT, "v": np.float32(0.5)},
    )
    assert tools.same(model).op_counts == {"CONV_2D": 1, "PADV2": 1}


def test_an_activation_behind_a_narrower_grid_stays(tools):
    """The grid before the Relu cuts at 1: fusing the two would let larger numbers through."""
    model = behind_conv(tools, [("Relu", ["c"], ["y"], {})])
    feeds = tools.feeds(model)
    quantized = tools.quantize(model, feeds)
    from onnx import numpy_helper

    from edgepipe.model import onnx_model

    proto = quantized.to_onnx()
    for tensor in proto.graph.initializer:
        if tensor.name == "c_float_scale":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(1 / 127), tensor.name))
    emission = tools.same_steps(onnx_model(proto, "q"), feeds)
    assert emission.op_counts == {"CONV_2D": 1, "MUL": 1}


def test_slices_of_different_axes_are_one(tools):
    constants = {
        "zero": np.array([0]),
        "far": np.array([99]),
        "h": np.array([2]),
        "w": np.array([3]),
        "two": np.array([2]),
    }
    model = tools.model(
        [
            ("Slice", ["x", "zero", "far", "h", "two"], ["s"], {}),
            ("Slice", ["s", "zero", "far", "w", "two"], ["y"], {}),
        ],
        {"x": [1, 3, 6, 5]},
        constants,
    )
    for emission in tools.both(model):
        assert emission.op_counts == {"STRIDED_SLICE": 1}


def test_slices_of_one_axis_are_two(tools):
    constants = {"one": np.array([1]), "far": np.array([99]), "h": np.array([2])}
    nodes = [("Slice", ["x", "one", "far", "h"], ["s"], {}), ("Slice", ["s", "one", "far", "h"], ["y"], {})]
    assert tools.same(tools.model(nodes, {"x": [1, 3, 6, 5]}, constants)).op_counts == {"STRIDED_SLICE": 2}


@pytest.mark.parametrize("first", [True, False])
def test_hard_swish_written_out(tools, first):
    gated = ["c", "g"] if first else ["g", "c"]
    nodes = [("HardSigmoid", ["c"], ["g"], {"alpha": 1 / 6, "beta": 0.5}), ("Mul", gated, ["y"], {})]
    assert tools.same(behind_conv(tools, nodes)).op_counts == {"CONV_2D": 1, "HARD_SWISH": 1}
    nodes[0] = ("HardSigmoid", ["c"], ["g"], {"alpha": 0.2, "beta": 0.5})
    assert "HARD_SWISH" not in tools.same(behind_conv(tools, nodes)).op_counts


def test_the_callers_model_is_left_alone(tools):
    model = behind_conv(tools, [("Relu", ["c"], ["y"], {})])
    before = bytes(model.payload)
    emit(model)
    assert model.payload == before


def test_a_normalization_with_computed_statistics_is_refused(tools):
    inputs = {"x": [1, 4, 3, 3], **{name: [4] for name in NORM}}
    with pytest.raises(UnsupportedOp) as caught:
        emit(tools.model([("BatchNormalization", ["x", *NORM], ["y"], {})], inputs))
    assert caught.value.got == "BatchNormalization"
