"""Simplified graphs against the graphs they came from, both run in ONNX Runtime."""

import numpy as np
import onnx
import pytest

from edgepipe.graph.simplify import Simplify
from edgepipe.model import onnx_model

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def positive(*shape):
    return RNG.uniform(0.5, 2, size=shape).astype(np.float32)


@pytest.fixture
def simplified(make_context, compute):
    """Simplifies a model, and holds what it computes to what it computed before."""

    def check(model, tolerance=1e-5):
        before = model.payload
        result = Simplify().apply(model, make_context())
        assert model.payload == before
        assert result.inputs == model.inputs
        assert [spec.name for spec in result.outputs] == [spec.name for spec in model.outputs]
        for batch in (1, 3):
            for old, new in zip(compute(model, batch=batch), compute(result, batch=batch), strict=True):
                np.testing.assert_allclose(new, old, rtol=tolerance, atol=tolerance)
        return result

    return check


STATISTICS = {"gamma": normal(4), "beta": normal(4), "mean": normal(4), "variance": positive(4)}


def test_batch_normalization_folds_into_convolution(build_model, simplified, op_types):
    model = build_model(
        """net (float[n,3,6,6] x) => (float[n,4,6,6] y) {
            c = Conv<pads=[1,1,1,1]>(x, w, b)
            y = BatchNormalization<epsilon=0.001>(c, gamma, beta, mean, variance)
        }""",
        w=normal(4, 3, 3, 3), b=normal(4), **STATISTICS,
    )  # fmt: skip
    assert op_types(simplified(model)) == ["Conv"]


def test_batch_normalization_folds_into_grouped_and_transposed_convolutions(
    build_model, simplified, op_types
):
    model = build_model(
        """net (float[n,4,5,5] x) => (float[n,4,9,9] y) {
            c = Conv<group=2, pads=[1,1,1,1]>(x, w)
            d = BatchNormalization(c, gamma, beta, mean, variance)
            e = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(d, t)
            y = BatchNormalization(e, gamma, beta, mean, variance)
        }""",
        w=normal(4, 2, 3, 3), t=normal(4, 4, 3, 3), **STATISTICS,
    )  # fmt: skip
    assert op_types(simplified(model, 1e-4)) == ["Conv", "ConvTranspose"]


def test_batch_normalization_after_a_shared_value_becomes_arithmetic(build_model, simplified, op_types):
    model = build_model(
        """net (float[n,3,6,6] x) => (float[n,4,6,6] y, float[n,4,6,6] c) {
            c = Conv<pads=[1,1,1,1]>(x, w)
            y = BatchNormalization(c, gamma, beta, mean, variance)
        }""",
        w=normal(4, 3, 3, 3), **STATISTICS,
    )  # fmt: skip
    assert op_types(simplified(model)) == ["Conv", "Mul", "Add"]


@pytest.mark.parametrize(
    "expression", ["Add(c, v)", "Add(v, c)", "Sub(c, v)", "Sub(v, c)", "Mul(c, v)", "Div(c, v)", "Mul(c, s)"]
)
def test_arithmetic_with_a_constant_for_each_channel_folds(build_model, simplified, op_types, expression):
    model = build_model(
        f"net (float[n,3,6,6] x) => (float[n,4,4,4] y) {{ c = Conv(x, w, b)  y = {expression} }}",
        w=normal(4, 3, 3, 3), b=normal(4), v=positive(4, 1, 1), s=np.float32(0.3),
    )  # fmt: skip
    assert op_types(simplified(model)) == ["Conv"]


def test_division_of_a_constant_by_a_convolution_stays(build_model, simplified, op_types):
    model = build_model(
        "net (float[n,3,6,6] x) => (float[n,4,4,4] y) { c = Conv(x, w, b)  y = Div(v, c) }",
        w=positive(4, 3, 3, 3), b=positive(4) + 100, v=positive(4, 1, 1),
    )  # fmt: skip
    assert op_types(simplified(model)) == ["Conv", "Div"]


def test_a_constant_along_another_axis_stays(build_model, simplified, op_types):
    model = build_model(
        "net (float[n,3,6,6] x) => (float[n,4,4,4] y) { c = Conv(x, w)  y = Mul(c, v) }",
        w=normal(4, 3, 3, 3), v=positive(4),
    )  # fmt: skip
    assert op_types(simplified(model)) == ["Conv", "Mul"]


def test_matrix_product_and_bias_become_gemm(build_model, simplified, op_types):
    model = build_model(
        "net (float[n,5] x) => (float[n,7] y) { p = MatMul(x, w)  y = Add(b, p) }",
        w=normal(5, 7),
        b=normal(7),
    )
    assert op_types(simplified(model)) == ["Gemm"]


def test_gemm_takes_in_its_factors(build_model, simplified):
    model = build_model(
        "net (float[n,5] x) => (float[n,7] y) { y = Gemm<alpha=0.5, beta=2.0, transB=1>(x, w, b) }",
        w=normal(7, 5), b=normal(1, 7),
    )  # fmt: skip
    node = simplified(model).to_onnx().graph.node[0]
    assert [attribute.name for attribute in node.attribute] == ["transB"]


def test_shape_arithmetic_on_the_batch_becomes_static(build_model, simplified, op_types):
    model = build_model(
        """net (float[n,3,4,4] x) => (float[n,48] y) {
            s = Shape(x)
            g = Gather(s, zero)
            u = Unsqueeze(g, axes)
            t = Concat<axis=0>(u, minus_one)
            y = Reshape(x, t)
        }""",
        zero=np.int64(0), axes=np.array([0]), minus_one=np.array([-1]),
    )  # fmt: skip
    assert op_types(simplified(model)) == ["Reshape"]


def test_shape_arithmetic_with_every_size_known_becomes_static(build_model, simplified, op_types):
    model = build_model(
        """net (float[n,3,4,4] x) => (float[n,48] y) {
            s = Shape(x)
            b = Slice(s, zero, one)
            r = Slice(s, one, four)
            p = ReduceProd<keepdims=1>(r)
            t = Concat<axis=0>(b, p)
            y = Reshape(x, t)
        }""",
        zero=np.array([0]), one=np.array([1]), four=np.array([4]),
    )  # fmt: skip
    assert op_types(simplified(model)) == ["Reshape"]


def test_a_second_dynamic_size_is_not_taken_for_the_batch(build_model, make_context, compute, op_types):
    model = build_model(
        """net (float[n,m] x) => (float[a,b] y) {
            s = Shape(x)
            r = Gather(s, swapped)
            y = Reshape(x, r)
        }""",
        swapped=np.array([1, 0]),
    )  # fmt: skip
    result = Simplify().apply(model, make_context())
    assert "Shape" in op_types(result)
    x = normal(2, 5)
    np.testing.assert_array_equal(compute(result, x)[0], compute(model, x)[0])


def test_no_ops_go_and_ports_keep_their_names(build_model, simplified, op_types):
    model = build_model(
        """net (float[n,3,4,4] x) => (float[n,3,4,4] y) {
            i = Identity(x)
            d = Dropout(i)
            p = Pad(d, zeros)
            r = Relu(p)
            t = Transpose<perm=[0,1,2,3]>(r)
            c = Cast<to=1>(t)
            y = Identity(c)
        }""",
        zeros=np.zeros(8, np.int64),
    )  # fmt: skip
    assert op_types(simplified(model)) == ["Relu"]


def test_an_identity_from_input_to_output_stays(build_model, simplified, op_types):
    assert op_types(simplified(build_model("net (float[n,3] x) => (float[n,3] y) { y = Identity(x) }"))) == [
        "Identity"
    ]


def test_one_value_may_be_two_outputs(build_model, simplified, op_types):
    model = build_model(
        "net (float[n,3] x) => (float[n,3] y, float[n,3] z) { r = Relu(x)  y = Identity(r)  z = Identity(r) }"
    )
    assert op_types(simplified(model)).count("Relu") == 1


def test_zero_padding_moves_into_the_convolution(build_model, simplified, op_types):
    model = build_model(
        """net (float[n,3,6,6] x) => (float[n,4,4,4] y) {
            p = Pad(x, pads)
            y = Conv<strides=[2,2], pads=[0,0,1,1]>(p, w)
        }""",
        w=normal(4, 3, 3, 3), pads=np.array([0, 0, 1, 0, 0, 0, 1, 2]),
    )  # fmt: skip
    result = simplified(model)
    assert op_types(result) == ["Conv"]


@pytest.mark.parametrize("amounts", [[0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 1, 1]])
def test_other_padding_stays(build_model, simplified, op_types, amounts):
    model = build_model(
        "net (float[n,3,6,6] x) => (float[n,a,b,c] y) { p = Pad(x, pads, value)  y = Conv(p, w) }",
        w=normal(4, 3 + amounts[1], 3, 3), pads=np.array(amounts), value=np.float32(amounts[2]),
    )  # fmt: skip
    assert op_types(simplified(model)) == ["Pad", "Conv"]


def test_average_over_the_whole_map_is_global(build_model, simplified, op_types):
    whole = build_model(
        "net (float[n,3,4,5] x) => (float[n,3,1,1] y) { y = AveragePool<kernel_shape=[4,5]>(x) }"
    )
    part = build_model(
        "net (float[n,3,4,5] x) => (float[n,3,1,2] y) { y = AveragePool<kernel_shape=[4,4]>(x) }"
    )
    assert op_types(simplified(whole)) == ["GlobalAveragePool"]
    assert op_types(simplified(part)) == ["AveragePool"]


@pytest.mark.parametrize(
    ("keepdims", "ops"), [(1, ["GlobalAveragePool"]), (0, ["GlobalAveragePool", "Flatten"])]
)
def test_mean_over_height_and_width_is_a_global_pool(build_model, simplified, op_types, keepdims, ops):
    shape = "n,3,1,1" if keepdims else "n,3"
    model = build_model(
        f"net (float[n,3,4,5] x) => (float[{shape}] y) {{ y = ReduceMean<keepdims={keepdims}>(x, axes) }}",
        axes=np.array([-1, 2]),
        opset=18,
    )
    assert op_types(simplified(model)) == ops


def test_mean_over_channels_stays(build_model, simplified, op_types):
    model = build_model(
        "net (float[n,3,4,5] x) => (float[n,1,4,5] y) { y = ReduceMean(x, axes) }",
        axes=np.array([1]),
        opset=18,
    )
    assert op_types(simplified(model)) == ["ReduceMean"]


def test_dequantized_constants_are_folded(build_model, simplified, op_types):
    model = build_model(
        "net (float[n,3,6,6] x) => (float[n,4,4,4] y) { w = DequantizeLinear(q, s, z)  y = Conv(x, w) }",
        q=RNG.integers(-9, 9, (4, 3, 3, 3), np.int8), s=np.float32(0.1), z=np.int8(1),
    )  # fmt: skip
    assert op_types(simplified(model)) == ["Conv"]


def test_a_quantized_model_passes_through(build_model, make_context):
    model = build_model(
        """net (float[n,3] x) => (float[n,3] y) {
            q = QuantizeLinear(x, s, z)
            y = DequantizeLinear(q, s, z)
        }""",
        s=np.float32(0.1), z=np.int8(0),
    )  # fmt: skip
    assert Simplify().apply(model, make_context()) is model


def test_simplifying_twice_changes_nothing_more(build_model, make_context):
    model = build_model(
        """net (float[n,3,6,6] x) => (float[n,4,4,4] y) {
            i = Identity(x)
            c = Conv(i, w)
            y = BatchNormalization(c, gamma, beta, mean, variance)
        }""",
        w=normal(4, 3, 3, 3), **STATISTICS,
    )  # fmt: skip
    once = Simplify().apply(model, make_context())
    assert Simplify().apply(once, make_context()).digest == once.digest


def test_random_numbers_are_not_folded(build_model, make_context, op_types):
    model = build_model(
        "net (float[n,3] x) => (float[n,3] y) { r = RandomNormal<shape=[1,3]>()  y = Add(x, r) }"
    )
    assert op_types(Simplify().apply(model, make_context())) == ["RandomNormal", "Add"]


def test_what_the_runtime_cannot_fold_stays(build_model, make_context, op_types):
    model = build_model(
        "net (float[n,3] x) => (float[n,3] y) { d = Gather(v, far)  y = Add(x, d) }",
        v=normal(2, 3), far=np.int64(7),
    )  # fmt: skip
    assert op_types(Simplify().apply(model, make_context())) == ["Gather", "Add"]


@pytest.mark.parametrize("exponent", [np.float32(2), np.int64(2)])
def test_negation_and_square_become_products(build_model, simplified, op_types, exponent):
    model = build_model(
        "net (float[n,4,5,5] x) => (float[n,4,5,5] y, float[n,4,5,5] z) { y = Neg(x)  z = Pow(x, two) }",
        two=exponent,
    )
    assert op_types(simplified(model)) == ["Mul", "Mul"]


def test_other_powers_stay(build_model, simplified, op_types):
    model = build_model(
        "net (float[n,4] x) => (float[n,4] y, float[m,4] z) { y = Pow(x, three)  z = Pow(x, twos) }",
        three=np.float32(3), twos=np.full((1, 1, 4), 2, np.float32)[0],
    )  # fmt: skip
    assert op_types(simplified(model)) == ["Pow", "Pow"]


def test_a_negation_folds_into_the_convolution_before_it(build_model, simplified, op_types):
    model = build_model(
        "net (float[n,3,6,6] x) => (float[n,4,6,6] y) { c = Conv(x, w, b)  y = Neg(c) }",
        w=normal(4, 3, 1, 1), b=normal(4),
    )  # fmt: skip
    assert op_types(simplified(model)) == ["Conv"]


def test_batch_normalization_folds_or_stays_as_product_and_sum(compute, op_types, make_context):
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(4, 3, 1, 1))} | {name: rng.uniform(0.5, 2, 4) for name in "gbmv"}
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c"]),
        onnx.helper.make_node("BatchNormalization", ["c", *"gbmv"], ["y"]),
    ]
    values = [
        onnx.helper.make_tensor_value_info(name, 1, ["n", size, 5, 5]) for name, size in (("x", 3), ("y", 4))
    ]
    stored = [onnx.numpy_helper.from_array(each.astype(np.float32), name) for name, each in constants.items()]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    model = onnx_model(proto, "m")
    for folds, ops in ((True, ["Conv"]), (False, ["Conv", "Mul", "Add"])):
        simple = Simplify(fold_normalization=folds).apply(model, make_context())
        assert op_types(simple) == ops
        np.testing.assert_allclose(compute(simple)[0], compute(model)[0], rtol=1e-4, atol=1e-5)
