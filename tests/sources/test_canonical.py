"""The same graph gives the same bytes, in whatever order and under whatever names it came."""

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgepipe.sources.canonical import canonicalize


def branched(order=None, suffix=None, unused=False):
    """Two branches from one constant, joined; nodes in the given order, names with the given counter."""
    mark = (lambda name: f"{name}__{suffix}") if suffix else (lambda name: name)
    nodes = [
        helper.make_node("Mul", ["x", mark("gain")], [mark("left")]),
        helper.make_node("Add", ["x", mark("gain")], [mark("right")]),
        helper.make_node("Sub", [mark("left"), mark("right")], [mark("both;and more:0")]),
        helper.make_node("Relu", [mark("both;and more:0")], ["y"]),
    ]
    if unused:
        nodes.append(helper.make_node("Neg", ["x"], ["nobody"]))
    gain = numpy_helper.from_array(np.array([2.0, 3.0], np.float32), mark("gain"))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy"]
    graph = helper.make_graph(
        [nodes[i] for i in order or range(len(nodes))], "g", values[:1], values[1:], [gain]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def canonical(proto):
    canonicalize(proto)
    return proto.SerializeToString(deterministic=True)


@given(st.permutations(range(4)), st.integers(1, 10**6), st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_order_and_counters_do_not_matter(order, suffix, unused):
    shuffled = branched([*order, 4] if unused else order, suffix, unused)
    assert canonical(shuffled) == canonical(branched())


def test_result_is_valid_computes_the_same_and_reads_well():
    proto, x = branched([3, 2, 1, 0], 17), np.array([[1.0, -5.0]], np.float32)
    canonicalize(proto)
    onnx.checker.check_model(proto, full_check=True)
    np.testing.assert_array_equal(ReferenceEvaluator(proto).run(None, {"x": x})[0], [[0, 0]])
    np.testing.assert_array_equal(ReferenceEvaluator(proto).run(None, {"x": -x})[0], [[0, 7]])
    assert [node.name for node in proto.graph.node] == ["left", "right", "both", "y"]
    assert [tensor.name for tensor in proto.graph.initializer] == ["left/B"]


def test_names_never_meet():
    proto = branched()
    proto.graph.node[0].output[0] = proto.graph.node[2].input[0] = "y__3"  # less its counter, that is a port
    canonicalize(proto)
    onnx.checker.check_model(proto, full_check=True)
    assert [node.output[0] for node in proto.graph.node] == ["y_2", "right", "both", "y"]


def test_constant_output_stays():
    value = helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    constant = numpy_helper.from_array(np.ones(1, np.float32), "c")
    proto = helper.make_model(helper.make_graph([], "g", [source], [value], [constant]), ir_version=8)
    canonicalize(proto)
    onnx.checker.check_model(proto)


@pytest.mark.parametrize("count", [5000])
def test_deep_graphs(count):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("v0", f"v{count}")]
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(count)]
    proto = helper.make_model(helper.make_graph(nodes[::-1], "g", values[:1], values[1:]), ir_version=8)
    canonicalize(proto)
    assert [node.output[0] for node in proto.graph.node] == [f"v{i + 1}" for i in range(count)]
