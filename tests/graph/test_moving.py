"""The table of ops that make no new numbers, against what the ops do."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgepipe.graph import moving
from edgepipe.graph.integers import limits
from edgepipe.graph.links import Links

ARGUMENTS = {
    "DepthToSpace": ({"blocksize": 2}, []),
    "SpaceToDepth": ({"blocksize": 2}, []),
    "Expand": ({}, [np.array([2, 4, 4, 4])]),
    "Gather": ({"axis": 1}, [np.array([2, 0])]),
    "Reshape": ({}, [np.array([4, 16])]),
    "Slice": ({}, [np.array([1]), np.array([3])]),
    "Split": ({"axis": 1, "num_outputs": 2}, []),
    "Squeeze": ({}, [np.array([0])]),
    "Unsqueeze": ({}, [np.array([0])]),
    "Tile": ({}, [np.array([1, 2, 1, 1])]),
    "MaxPool": ({"kernel_shape": [2, 2]}, []),
    "ReduceMax": ({}, [np.array([1])]),
    "ReduceMin": ({}, [np.array([1])]),
    "Pad": ({}, [np.array([0, 0, 1, 0, 0, 0, 0, 2])]),
}


@pytest.mark.parametrize("op", sorted(moving.MOVING))
def test_what_comes_out_was_there_before(op):
    attributes, extra = ARGUMENTS.get(op, ({"axis": 1} if op == "Concat" else {}, []))
    inputs = {"x": np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)}
    if op in moving.JOINING:
        inputs["other"] = -inputs["x"]
    names = [*inputs, *(f"c{index}" for index in range(len(extra)))]
    outputs = ["y", "z"] if op == "Split" else ["y"]
    node = helper.make_node(op, names, outputs, **attributes)
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, 4, 4, 4)) for name in inputs]
    constants = [numpy_helper.from_array(array, f"c{index}") for index, array in enumerate(extra)]
    graph = helper.make_graph(
        [node], "g", values, [helper.make_empty_tensor_value_info(name) for name in outputs], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    known = np.concatenate([*(array.ravel() for array in inputs.values()), [0.0] * (op in moving.FILLING)])
    for found in ReferenceEvaluator(model).run(None, inputs):
        assert np.isin(found, known).all()


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_limits_are_those_of_the_integers(bits):
    assert limits(bits) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def test_links_know_constants_of_either_kind_and_through_a_cast():
    held = numpy_helper.from_array(np.array([3], np.int8), "held")
    constant = helper.make_node("Constant", [], ["made"], value=numpy_helper.from_array(np.float32([2])))
    nodes = [
        constant,
        helper.make_node("Cast", ["held"], ["wide"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "wide"], ["scaled"]),
        helper.make_node("Add", ["scaled", "scaled"], ["y"]),
    ]
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, "g", [value], [helper.make_empty_tensor_value_info("y")], [held])
    links = Links(graph)
    assert links.array("wide").tolist() == [3]
    assert links.array("made").tolist() == [2]
    assert links.array("x") is None
    assert [node.op_type for node in links.takers("scaled")] == ["Add", "Add"]
    assert (links.inputs, links.outputs) == ({"x"}, {"y"})
    assert links.producer["scaled"].op_type == "Mul"
