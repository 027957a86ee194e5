"""Activation functions next to their makers: the same outputs to the bit, and finer grids."""

import numpy as np
import onnx
import pytest

from edgepipe.graph.simplify import Simplify
from edgepipe.quantize.static import QuantizeStatic

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(8, 3, 3, 3)).astype(np.float32)
CLIPPED = {
    "Relu(p)": ["Conv", "Relu", "MaxPool"],
    "Clip(p, low, high)": ["Conv", "Clip", "MaxPool"],
    "Clip(p, , high)": ["Conv", "Clip", "MaxPool"],
}
MOVES = {
    "MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(c)": "MaxPool",
    "DepthToSpace<blocksize=2>(c)": "DepthToSpace",
    "Transpose<perm=[0,2,3,1]>(c)": "Transpose",
    "Flatten(c)": "Flatten",
}


@pytest.fixture
def simplified(build_model, make_context, compute, op_types):
    """Simplifies a network with a convolution `c`; its ops, and it computes what it did."""

    def check(body, ranks="a,b,d", **constants):
        bounds = {"low": np.float32(-0.3), "high": np.float32(0.7)}
        model = build_model(
            f"net (float[n,3,8,8] x) => (float[n,{ranks}] y) {{ c = Conv<pads=[1,1,1,1]>(x, w) {body} }}",
            w=WEIGHT, **bounds, **constants,
        )  # fmt: skip
        result = Simplify().apply(model, make_context())
        assert [spec.name for spec in result.outputs] == ["y"]
        for old, new in zip(compute(model), compute(result), strict=True):
            np.testing.assert_array_equal(new, old)
        return op_types(result)

    return check


@pytest.mark.parametrize("function", CLIPPED)
def test_functions_go_before_a_pool(simplified, function):
    pool = "MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)"
    assert simplified(f"p = {pool} y = {function}") == CLIPPED[function]


@pytest.mark.parametrize("move", MOVES)
def test_functions_go_before_what_only_moves(simplified, move):
    ranks = "a" if MOVES[move] == "Flatten" else "a,b,d"
    assert simplified(f"p = {move} y = Relu(p)", ranks) == ["Conv", "Relu", MOVES[move]]


def test_functions_go_before_several(simplified):
    body = "p = MaxPool<kernel_shape=[2,2]>(c) t = Transpose<perm=[0,2,3,1]>(p) r = Relu(t) y = Sigmoid(r)"
    assert simplified(body) == ["Conv", "Relu", "MaxPool", "Transpose", "Sigmoid"]


@pytest.mark.parametrize(
    "body",
    [
        "p = AveragePool<kernel_shape=[2,2]>(c) y = Relu(p)",
        "p = MaxPool<kernel_shape=[2,2], strides=[1,1]>(c) r = Relu(p) y = Add(r, p)",
        "p = MaxPool<kernel_shape=[1,1]>(c) r = Relu(p) y = Add(r, c)",
        "s = Sigmoid(c) p = MaxPool<kernel_shape=[2,2]>(s) y = Clip(p, low, high)",
    ],
)
def test_functions_stay_where_others_read_or_nothing_is_gained(simplified, body):
    ops = simplified(body)
    clip = next(index for index, op in enumerate(ops) if op in ("Relu", "Clip"))
    assert ops[clip - 1].endswith("Pool")


def test_what_the_pool_gave_out_keeps_its_name_and_content(build_model, make_context, compute):
    body = "c = Conv(x, w) p = MaxPool<kernel_shape=[2,2]>(c) r = Relu(p) y = Sigmoid(r)"
    model = build_model(f"net (float[n,3,8,8] x) => (float[n,a,b,d] y) {{ {body} }}", w=WEIGHT)
    result = Simplify().apply(model, make_context())
    watched = []
    for each in (model, result):
        proto = onnx.load_from_string(each.payload)
        proto.graph.output.extend([onnx.helper.make_empty_tensor_value_info("r")])
        watched.append(compute(type(model)(**{**_fields(each), "payload": proto.SerializeToString()}))[1])
    np.testing.assert_array_equal(*watched)


def _fields(model):
    return {name: getattr(model, name) for name in type(model).__struct_fields__}


def test_a_function_behind_a_pool_loses_nothing_to_its_grid(build_model, make_context, compute):
    rng = np.random.default_rng(5)
    samples = rng.normal(size=(24, 3, 8, 8)).astype(np.float32)
    errors = []
    for body in (
        "r = Relu(c) y = MaxPool<kernel_shape=[2,2]>(r)",
        "p = MaxPool<kernel_shape=[2,2]>(c) y = Relu(p)",
    ):
        model = build_model(
            f"net (float[n,3,8,8] x) => (float[n,a,b,d] y) {{ c = Conv(x, w, b) {body} }}",
            w=WEIGHT, b=np.full(8, -6, np.float32),
        )  # fmt: skip
        context = make_context(samples)
        quantized = QuantizeStatic().apply(Simplify().apply(model, context), context)
        exact, found = compute(model, samples)[0], compute(quantized, samples)[0]
        errors.append(np.square(exact - found).mean())
    assert errors[1] == errors[0]
