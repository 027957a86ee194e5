"""Ops on integers, each beside what it is expanded to: ONNX Runtime runs both."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepipe.graph import qlinear

CONTRIB = "com.microsoft"
A, B, Y = ("a_scale", "a_zero"), ("b_scale", "b_zero"), ("y_scale", "y_zero")
WEIGHT = ("w", "w_scale", "w_zero")


def steps(rng, name, dtype=np.uint8, low=0.01, high=0.1, shape=()):
    zero = rng.integers(100, 150, shape) if dtype is np.uint8 else np.zeros(shape)
    scale = rng.uniform(low, high, shape)
    return {f"{name}_scale": np.asarray(scale, np.float32), f"{name}_zero": np.asarray(zero, dtype)}


def make(op, domain, inputs, data, constants, **attributes):
    """A model of one op on uint8 tensors, whose output is its integers."""
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], domain=domain, **attributes)],
        "one",
        [helper.make_tensor_value_info(name, TensorProto.UINT8, array.shape) for name, array in data.items()],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run(proto, feeds):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds)[0]


def expanded(proto):
    model = ir.from_proto(proto)
    qlinear.expand(model.graph)
    return ir.to_proto(model)


def integers(rng, *shape):
    return rng.integers(0, 256, shape).astype(np.uint8)


def weight(rng, *shape):
    return rng.integers(-127, 128, shape).astype(np.int8)


def cases():
    """Name, op, domain, inputs, data, constants and attributes of a node."""
    rng = np.random.default_rng(3)
    pair = {"a": integers(rng, 2, 4, 6, 6), "b": integers(rng, 2, 4, 6, 6)}
    one = {"a": pair["a"]}
    grids = steps(rng, "a") | steps(rng, "b") | steps(rng, "y", low=0.1, high=0.2)
    both, single = ["a", *A, "b", *B, *Y], ["a", *A, *Y]
    kernel = {"w": weight(rng, 8, 4, 3, 3), **steps(rng, "w", np.int8, 0.001, 0.005, (8,))}
    bias = {"bias": rng.integers(-2000, 2000, 8).astype(np.int32)}
    matrix = {"w": weight(rng, 5, 8), **steps(rng, "w", np.int8, 0.001, 0.01, (8,))}
    row = {"a": integers(rng, 3, 5)}
    unit = {"y_scale": np.array(1 / 256, np.float32), "y_zero": np.array(0, np.uint8)}
    linear = ["a", *A, *WEIGHT]
    yield "add", "QLinearAdd", CONTRIB, both, pair, grids, {}
    yield "mul", "QLinearMul", CONTRIB, both, pair, grids, {}
    yield "concat", "QLinearConcat", CONTRIB, [*Y, "a", *A, "b", *B], pair, grids, {"axis": 1}
    yield "mean", "QLinearGlobalAveragePool", CONTRIB, single, one, grids, {"channels_last": 0}
    yield "pool", "QLinearAveragePool", CONTRIB, single, one, grids, {"kernel_shape": [2, 2]}
    yield "leaky", "QLinearLeakyRelu", CONTRIB, single, one, grids, {"alpha": 0.2}
    yield "sigmoid", "QLinearSigmoid", CONTRIB, single, one, grids | unit, {}
    yield "softmax", "QLinearSoftmax", CONTRIB, single, row, grids | unit, {"axis": 1, "opset": 13}
    yield "conv", "QLinearConv", "", [*linear, *Y, "bias"], one, grids | kernel | bias, {"pads": [1] * 4}
    yield "conv without bias", "QLinearConv", "", [*linear, *Y], one, grids | kernel, {}
    yield "matmul", "QLinearMatMul", "", [*linear, *Y], row, grids | matrix, {}
    yield "gemm", "QGemm", CONTRIB, [*linear, "bias", *Y], row, grids | matrix | bias, {}


@pytest.mark.parametrize(("op", "domain", "inputs", "data", "constants", "attributes"),
                         [case[1:] for case in cases()], ids=[case[0] for case in cases()])  # fmt: skip
def test_an_op_on_integers_computes_what_it_is_expanded_to(op, domain, inputs, data, constants, attributes):
    known = {name: array for name, array in constants.items() if name in inputs}
    model = make(op, domain, inputs, data, known, **attributes)
    standard = expanded(model)
    assert not {node.domain for node in standard.graph.node} - {""}
    wanted, found = run(model, data).astype(int), run(standard, data).astype(int)
    assert np.ptp(wanted) > 10
    off = np.abs(wanted - found)
    assert off.max() <= 1  # the kernels multiply by a rounded factor
    assert (off > 0).mean() < 0.02


def test_ops_that_move_integers_are_expanded_too():
    rng = np.random.default_rng(4)
    data = {"a": integers(rng, 1, 4, 6, 6)}
    model = make("QLinearGlobalAveragePool", CONTRIB, ["p", *A, *Y], data, steps(rng, "a") | steps(rng, "y"))
    nodes = [
        helper.make_node("DequantizeLinear", ["a", *A], ["real"]),
        helper.make_node("QuantizeLinear", ["real", *A], ["q"]),
        helper.make_node("MaxPool", ["q"], ["p"], kernel_shape=[2, 2]),
        *model.graph.node,
    ]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    standard = expanded(model)
    ops = [node.op_type for node in standard.graph.node]
    at = ops.index("MaxPool")
    assert ops[at - 1 : at + 2] == ["DequantizeLinear", "MaxPool", "QuantizeLinear"]
    assert np.abs(run(model, data).astype(int) - run(standard, data).astype(int)).max() <= 1


@pytest.mark.parametrize(("op", "attributes"), [("QGemm", {"alpha": 0.5}), ("QLinearWhatever", {})])
def test_what_is_not_known_is_left_alone(op, attributes):
    rng = np.random.default_rng(5)
    constants = {"w": weight(rng, 5, 8), **steps(rng, "w", np.int8), **steps(rng, "a"), **steps(rng, "y")}
    data = {"a": integers(rng, 3, 5)}
    model = make(op, CONTRIB, ["a", *A, *WEIGHT, "", *Y], data, constants, **attributes)
    assert [node.op_type for node in expanded(model).graph.node] == [op]
