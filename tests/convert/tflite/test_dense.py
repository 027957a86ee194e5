"""Dense layers, and the flattening before them."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepipe.convert.tflite import emit
from edgepipe.errors import UnsupportedOp


def normal(*shape):
    """The same numbers for the same shape, whatever ran before."""
    return np.random.default_rng([5, *shape]).normal(size=shape).astype(np.float32)


@settings(max_examples=40)
@given(transposed=st.booleans(), bias=st.sampled_from([None, (5,), (1, 5), (1,)]), float_biases=st.booleans())
def test_gemm(tools, transposed, bias, float_biases):
    constants = {"w": normal(5, 8) if transposed else normal(8, 5)}
    if bias:
        constants["b"] = normal(*bias)
    model = tools.model(
        [("Gemm", ["x", *constants], ["y"], {"transB": int(transposed)})], {"x": ["n", 8]}, constants
    )
    feeds = tools.feeds(model)
    assert tools.same(model).op_counts == {"FULLY_CONNECTED": 1}
    quantized = tools.quantize(model, feeds, float_biases=float_biases or bias != (5,))
    assert tools.same_steps(quantized, feeds).op_counts == {"FULLY_CONNECTED": 1}


def test_alpha_and_beta(tools):
    constants = {"w": normal(8, 5), "b": normal(5)}
    model = tools.model(
        [("Gemm", ["x", "w", "b"], ["y"], {"alpha": 0.5, "beta": 2.0})], {"x": [1, 8]}, constants
    )
    tools.same(model)


@pytest.mark.parametrize("relu", [False, True])
def test_matmul_with_bias_and_activation_is_one_op(tools, relu):
    nodes = [("MatMul", ["x", "w"], ["m"], {}), ("Add", ["m", "b"], ["a" if relu else "y"], {})]
    if relu:
        nodes.append(("Relu", ["a"], ["y"], {}))
    model = tools.model(nodes, {"x": [1, 8]}, {"w": normal(8, 5), "b": normal(5)})
    assert tools.both(model)[0].op_counts == {"FULLY_CONNECTED": 1}


def test_matmul_over_a_sequence_keeps_its_rank(tools):
    model = tools.model([("MatMul", ["x", "w"], ["y"], {})], {"x": [1, 6, 8]}, {"w": normal(8, 5)})
    for emission in tools.both(model):
        assert emission.op_counts == {"FULLY_CONNECTED": 1}


def test_matmul_of_computed_values(tools):
    model = tools.model([("MatMul", ["a", "b"], ["y"], {})], {"a": [1, 3, 6, 8], "b": [1, 3, 8, 4]})
    for emission in tools.both(model):
        assert emission.op_counts == {"BATCH_MATMUL": 1}


@pytest.mark.parametrize("factor", ["computed", "constant"])
@pytest.mark.parametrize("behind", ["bias", "activation", "both"])
def test_a_batched_product_takes_in_no_bias_and_no_activation(tools, factor, behind):
    """BATCH_MATMUL has neither: what was taken in would be lost."""
    inputs, constants = {"a": [1, 3, 6, 8]}, {"c": normal(4)}
    if factor == "computed":
        inputs["b"] = [1, 3, 8, 4]
    else:
        constants["b"] = normal(3, 8, 4)
    add, relu = ("Add", ["m", "c"], ["s"], {}), ("Relu", ["s" if behind == "both" else "m"], ["y"], {})
    nodes = [("MatMul", ["a", "b"], ["m"], {}), *([] if behind == "activation" else [add])]
    nodes += [] if behind == "bias" else [relu]
    model = tools.model(nodes, inputs, constants, outputs=("s",) if behind == "bias" else ("y",))
    assert "BATCH_MATMUL" in tools.same(model).op_counts


def test_a_product_with_a_vector_is_refused(tools):
    """LiteRT would refuse the file."""
    model = tools.model([("MatMul", ["a", "b"], ["y"], {})], {"a": [1, 6, 8]}, {"b": normal(8)})
    with pytest.raises(UnsupportedOp, match="vector"):
        emit(model)


def test_a_batched_weight_has_one_scale(tools):
    """With a scale for each channel, LiteRT takes the first for all."""
    model = tools.model([("MatMul", ["a", "b"], ["y"], {})], {"a": [1, 3, 6, 8]}, {"b": normal(3, 8, 4)})
    feeds = tools.feeds(model)
    with pytest.raises(UnsupportedOp, match="more than two axes"):
        emit(tools.quantize(model, feeds))


@pytest.mark.parametrize("flatten", [("Flatten", {}), ("Reshape", {})])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("dense", ["Gemm", "MatMul"])
def test_flattened_maps_meet_rearranged_weights(tools, flatten, size, dense):
    """No TRANSPOSE between conv and dense layer: the weights' rows are put in the order of NHWC."""
    op, attributes = flatten
    constants = {"w": normal(5, 3, 1, 1), "v": normal(5 * size * size, 7), "k": normal(5 * size * size)}
    shape = ["shape"] if op == "Reshape" else []
    if shape:
        constants["shape"] = np.array([1, -1])
    model = tools.model(
        [
            ("Conv", ["x", "w"], ["c"], {}),
            (op, ["c", *shape], ["f"], attributes),
            ("Relu", ["f"], ["r"], {}),
            ("Mul", ["r", "k"], ["m"], {}),
            (dense, ["m", "v"], ["y"], {}),
        ],
        {"x": ["n", 3, size, size]},
        constants,
    )
    for emission in tools.both(model, steps=3):
        assert "TRANSPOSE" not in emission.op_counts


def test_a_flattened_map_as_output_is_in_the_order_of_onnx(tools):
    model = tools.model(
        [("Conv", ["x", "w"], ["c"], {}), ("Flatten", ["c"], ["y"], {})],
        {"x": [1, 3, 4, 2]},
        {"w": normal(5, 3, 1, 1)},
    )
    for emission in tools.both(model):
        assert emission.outputs[0].permutation == (0, 1)


def test_view_by_batch_size_folds(tools):
    """What torch traces of ``x.view(x.size(0), -1)``: Shape, Gather, Unsqueeze, Concat, Reshape."""
    model = tools.model(
        [
            ("Conv", ["x", "w"], ["c"], {}),
            ("Shape", ["c"], ["s"], {}),
            ("Gather", ["s", "zero"], ["b"], {"axis": 0}),
            ("Unsqueeze", ["b", "axes"], ["u"], {}),
            ("Concat", ["u", "rest"], ["shape"], {"axis": 0}),
            ("Reshape", ["c", "shape"], ["f"], {}),
            ("Gemm", ["f", "v"], ["y"], {}),
        ],
        {"x": ["n", 3, 4, 4]},
        {
            "w": normal(2, 3, 1, 1),
            "v": normal(32, 3),
            "zero": np.array(0),
            "axes": np.array([0]),
            "rest": np.array([-1]),
        },
    )
    assert tools.same(model).op_counts == {"CONV_2D": 1, "FULLY_CONNECTED": 1, "RESHAPE": 1}


def test_autoencoder(tools):
    """Dense layers with batch normalization between, as in MLPerf Tiny's anomaly detection."""
    sizes = [16, 12, 8, 12, 16]
    nodes, constants, source = [], {}, "x"
    for index, (wide, narrow) in enumerate(pairwise(sizes)):
        last = index == len(sizes) - 2
        constants |= {f"w{index}": normal(narrow, wide), f"b{index}": normal(narrow)}
        nodes.append(
            ("Gemm", [source, f"w{index}", f"b{index}"], ["y" if last else f"g{index}"], {"transB": 1})
        )
        if not last:
            statistics = {"scale": normal(narrow), "bias": normal(narrow), "mean": normal(narrow)}
            statistics["variance"] = np.abs(normal(narrow)) + np.float32(0.5)
            names = [f"{key}{index}" for key in statistics]
            constants |= dict(zip(names, statistics.values(), strict=True))
            nodes.append(("BatchNormalization", [f"g{index}", *names], [f"n{index}"], {}))
            nodes.append(("Relu", [f"n{index}"], [f"r{index}"], {}))
            source = f"r{index}"
    emission = tools.same(tools.model(nodes, {"x": ["n", 16]}, constants), tolerance=1e-4)
    assert emission.op_counts == {"FULLY_CONNECTED": 4}


def test_a_transposed_input_is_refused(tools):
    model = tools.model([("Gemm", ["x", "w"], ["y"], {"transA": 1})], {"x": [8, 8]}, {"w": normal(8, 5)})
    with pytest.raises(UnsupportedOp, match="constant weight"):
        emit(model)
