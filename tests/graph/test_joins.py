"""Quantizers that say nothing new: what is added, what it changes, and what is left alone."""

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from edgepipe.graph import joins

NARROW, WIDE = (0.01, 0), (0.03, 10)


def quantized(name, grid):
    """Q and DQ on a value, with their constants."""
    constants = {f"{name}_s": np.array(grid[0], np.float32), f"{name}_z": np.array(grid[1], np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", [name, *constants], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", *constants], [f"{name}_d"]),
    ]
    return nodes, constants


def completed(nodes, constants):
    """The model before and after."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 4]) for name in ("a", "b")]
    results = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(
        nodes, "g", values, results,
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = ir.from_proto(proto)
    joins.complete(model.graph)
    model.graph.sort()
    return proto, ir.to_proto(model)


def run(proto):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    rng = np.random.default_rng(2)
    feeds = {name: rng.standard_normal((1, 2, 4, 4)).astype(np.float32) for name in ("a", "b")}
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds)[0]


def test_what_a_quantized_concat_joins_is_quantized_before_it_to_the_same_numbers():
    first, known = quantized("a", NARROW)
    last, also = quantized("c", WIDE)
    concat = helper.make_node("Concat", ["a_d", "n"], ["c"], axis=1)
    nodes = [*first, helper.make_node("Neg", ["b"], ["n"]), concat, *last]
    nodes.append(helper.make_node("Identity", ["c_d"], ["y"]))
    before, after = completed(nodes, known | also)
    np.testing.assert_array_equal(run(before), run(after))
    assert [node.op_type for node in after.graph.node].count("QuantizeLinear") == 3


def test_a_concat_of_two_grids_gets_the_wider_one():
    first, known = quantized("a", NARROW)
    second, also = quantized("b", WIDE)
    nodes = [*first, *second, helper.make_node("Concat", ["a_d", "b_d"], ["c"], axis=1)]
    nodes.append(helper.make_node("Abs", ["c"], ["y"]))
    before, after = completed(nodes, known | also)
    grids = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    names = [node.input[1:] for node in after.graph.node if node.op_type == "QuantizeLinear"]
    assert len(names) == 3
    scale, zero_point = names[-1]
    assert (np.float32(grids[scale]), int(grids[zero_point])) == (np.float32(WIDE[0]), WIDE[1])
    assert np.abs(run(before) - run(after)).max() <= WIDE[0] / 2 + 1e-6


def test_grids_of_which_neither_holds_the_other_get_one_that_spans_both():
    low, high = (0.01, 100), (0.012, -100)
    first, known = quantized("a", low)
    second, also = quantized("b", high)
    nodes = [*first, *second, helper.make_node("Concat", ["a_d", "b_d"], ["c"], axis=1)]
    nodes.append(helper.make_node("Abs", ["c"], ["y"]))
    before, after = completed(nodes, known | also)
    spanned = (0.012 * 227 + 0.01 * 228) / 255
    assert np.abs(run(before) - run(after)).max() <= 0.51 * spanned


def test_a_value_that_one_reader_takes_quantized_all_do():
    quantizers, known = quantized("n", WIDE)
    nodes = [helper.make_node("Neg", ["a"], ["n"]), *quantizers, helper.make_node("Add", ["n", "n_d"], ["y"])]
    _, after = completed(nodes, known)
    (add,) = [node for node in after.graph.node if node.op_type == "Add"]
    assert list(add.input) == ["n_d", "n_d"]


def test_a_value_on_two_grids_keeps_its_float_reader():
    quantizers, known = quantized("n", WIDE)
    others = {"m_s": np.array(0.02, np.float32), "m_z": np.array(0, np.int8)}
    nodes = [
        helper.make_node("Neg", ["a"], ["n"]), *quantizers,
        helper.make_node("QuantizeLinear", ["n", *others], ["m_q"]),
        helper.make_node("DequantizeLinear", ["m_q", *others], ["m_d"]),
        helper.make_node("Sum", ["n", "n_d", "m_d"], ["y"]),
    ]  # fmt: skip
    before, after = completed(nodes, known | others)
    np.testing.assert_array_equal(run(before), run(after))
