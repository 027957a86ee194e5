"""Activations quantized by channel: on one grid afterwards, with the same integers everywhere."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepipe.graph import channelwise

CHANNELS = 6


def make(activation="Relu", *, zero_points=0, extra_reader=False, integer_bias=True, group=CHANNELS):
    """conv -> activation -> Q and DQ by channel -> depthwise conv, on float ports."""
    rng = np.random.default_rng(8)
    constants = {
        "w0": rng.integers(-127, 128, (CHANNELS, 3, 3, 3)).astype(np.int8),
        "s0": rng.uniform(0.002, 0.02, CHANNELS).astype(np.float32), "z0": np.zeros(CHANNELS, np.int8),
        "b0": rng.integers(-50, 50, CHANNELS).astype(np.int32 if integer_bias else np.float32),
        "bs": np.full(CHANNELS, 0.01, np.float32), "bz": np.zeros(CHANNELS, np.int32),
        "s": rng.uniform(0.01, 0.023, CHANNELS).astype(np.float32),
        "z": np.resize(np.asarray(zero_points, np.uint8), CHANNELS),
        "w1": rng.integers(-127, 128, (CHANNELS, CHANNELS // group, 3, 3)).astype(np.int8),
        "s1": np.array(0.01, np.float32), "z1": np.array(0, np.int8),
        "low": np.array(0, np.float32), "high": np.array(6, np.float32),
    }  # fmt: skip
    bounds = ["low", "high"] if activation == "Clip" else []
    nodes = [
        helper.make_node("DequantizeLinear", ["w0", "s0", "z0"], ["w0d"], axis=0),
        *(
            [helper.make_node("DequantizeLinear", ["b0", "bs", "bz"], ["b0d"], axis=0)]
            if integer_bias
            else []
        ),
        helper.make_node("Conv", ["x", "w0d", "b0d" if integer_bias else "b0"], ["c"], pads=[1] * 4),
        helper.make_node(activation, ["c", *bounds], ["a"]),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=1),
        helper.make_node("DequantizeLinear", ["w1", "s1", "z1"], ["w1d"]),
        helper.make_node("Conv", ["d", "w1d"], ["y"], group=group, pads=[1] * 4),
        *([helper.make_node("Abs", ["d"], ["other"])] if extra_reader else []),
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, CHANNELS, 8, 8])
         for name in ("y", *(["other"] if extra_reader else []))],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(proto, outputs):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    x = np.random.default_rng(9).standard_normal((2, 3, 8, 8)).astype(np.float32)
    copy = type(proto).FromString(proto.SerializeToString())
    known = {value.name for value in copy.graph.output}
    copy.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in outputs if name not in known
    )
    return onnxruntime.InferenceSession(copy.SerializeToString(), options).run(outputs, {"x": x})


def unified(proto):
    model = ir.from_proto(proto)
    channelwise.unify(model.graph)
    return ir.to_proto(model)


def constants(proto):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


@pytest.mark.parametrize("integer_bias", [True, False])
@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_integers_of_activations_and_weights_stay_and_one_scale_is_left(activation, integer_bias):
    before = make(activation, integer_bias=integer_bias)
    after = unified(before)
    known = constants(after)
    (quantizer,) = [node for node in after.graph.node if node.op_type == "QuantizeLinear"]
    assert known[quantizer.input[1]].shape == ()
    assert known[quantizer.input[2]].dtype == np.uint8
    (q0, y0), (q1, y1) = run(before, ["q", "y"]), run(after, ["q", "y"])
    off = np.abs(q0.astype(int) - q1.astype(int))  # float32 scales: the nearest to a tie may fall otherwise
    assert off.max() <= 1
    assert (off > 0).mean() < 0.01
    assert np.ptp(q0) > 100
    assert np.square(y0 - y1).mean() < 1e-4 * np.square(y0).mean()
    for name in ("w0", "w1"):
        np.testing.assert_array_equal(known[name], constants(before)[name])


@pytest.mark.parametrize(
    "settings",
    [{"zero_points": [3, 4]}, {"extra_reader": True}, {"group": 1}],
    ids=["zero points of their own", "another reader", "a full convolution"],
)
def test_what_cannot_be_moved_is_left_as_it_is(settings):
    before = make(**settings)
    assert unified(before).SerializeToString() == ir.to_proto(ir.from_proto(before)).SerializeToString()
