"""What transformers are made of, in both runtimes: float beside ONNX Runtime, int8 beside its own graph."""

import numpy as np
import pytest

from edgepipe.convert import ort
from edgepipe.convert.tflite import emit
from edgepipe.errors import UnsupportedOp
from edgepipe.graph.simplify import simplify
from edgepipe.quantize.static import QuantizeStatic
from edgepipe.runtime import infer, open_session

RNG = np.random.default_rng(7)
TOKENS, WIDTH = 6, 8


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("axis", "bias"), [(-1, True), (2, False), (1, True)])
def test_layer_normalization(tools, axis, bias):
    shape = [TOKENS, WIDTH] if axis == 1 else [WIDTH]
    constants = {"gamma": normal(*shape), "beta": normal(*shape)}
    inputs = ["x", "gamma", "beta"] if bias else ["x", "gamma"]
    model = tools.model(
        [("LayerNormalization", inputs, ["y"], {"axis": axis})], {"x": [1, TOKENS, WIDTH]}, constants
    )
    tools.same(model)


def test_layer_normalization_with_its_mean_is_refused(tools):
    nodes = [("LayerNormalization", ["x", "g"], ["y", "mean"], {"axis": -1})]
    model = tools.model(nodes, {"x": [1, TOKENS, WIDTH]}, {"g": normal(WIDTH)}, outputs=("y", "mean"))
    with pytest.raises(UnsupportedOp, match="first output"):
        emit(model)


HALF, ONE, ROOT, INVERSE = (np.array(each, np.float32) for each in (0.5, 1, 2**0.5, 0.5**0.5))
ORDERS = {
    "half of the gate": [
        ("Div", ["v", "root"], ["d"], {}),
        ("Mul", ["g", "half"], ["h"], {}),
        ("Mul", ["v", "h"], ["z"], {}),
    ],
    "half of the input": [
        ("Mul", ["v", "inverse"], ["d"], {}),
        ("Mul", ["half", "v"], ["h"], {}),
        ("Mul", ["h", "g"], ["z"], {}),
    ],
    "half at the end": [
        ("Div", ["v", "root"], ["d"], {}),
        ("Mul", ["v", "g"], ["h"], {}),
        ("Mul", ["h", "half"], ["z"], {}),
    ],
}


def gelu_model(tools, order, one=ONE):
    scaling, first, second = ORDERS[order]
    nodes = [
        ("MatMul", ["x", "w"], ["v"], {}),
        scaling,
        ("Erf", ["d"], ["e"], {}),
        ("Add", ["e", "one"], ["g"], {}),
        first,
        second,
        ("MatMul", ["z", "w"], ["y"], {}),
    ]
    constants = {"w": normal(WIDTH, WIDTH), "half": HALF, "one": one, "root": ROOT, "inverse": INVERSE}
    return tools.model(nodes, {"x": ["n", TOKENS, WIDTH]}, constants)


@pytest.mark.parametrize("order", ORDERS)
def test_gelu_is_one_op_and_rounded_once(tools, order, make_context):
    model = simplify(gelu_model(tools, order))
    assert emit(model).op_counts["GELU"] == 1
    exact, lite, onnx_found, quantized = outputs(model, normal(32, TOKENS, WIDTH), make_context)
    assert emit(quantized).op_counts.keys() == {"FULLY_CONNECTED", "GELU", "RESHAPE"} | set()
    assert sqnr_db(exact, lite) > 30
    assert sqnr_db(exact, onnx_found) > 30


def test_what_is_no_gelu_is_not_taken_for_one(tools):
    model = simplify(gelu_model(tools, "half of the gate", one=np.array(1.5, np.float32)))
    with pytest.raises(UnsupportedOp, match="Erf"):
        emit(model)


def attention(tools):
    """One head: scores of all positions among each other, Softmax, the mixture, a residual, normalization."""
    nodes = [
        ("MatMul", ["x", "wq"], ["q0"], {}),
        ("Add", ["q0", "b"], ["q"], {}),
        ("MatMul", ["x", "wk"], ["k"], {}),
        ("MatMul", ["x", "wv"], ["v"], {}),
        ("Transpose", ["k"], ["kt"], {"perm": [0, 2, 1]}),
        ("MatMul", ["q", "kt"], ["s"], {}),
        ("Softmax", ["s"], ["p"], {"axis": -1}),
        ("MatMul", ["p", "v"], ["m"], {}),
        ("Add", ["m", "x"], ["r"], {}),
        ("LayerNormalization", ["r", "gamma", "beta"], ["n"], {"axis": -1}),
        ("Gather", ["n", "first"], ["c"], {"axis": 1}),
        ("Gemm", ["c", "wv"], ["y"], {}),
    ]
    constants = {name: normal(WIDTH, WIDTH) / 2 for name in ("wq", "wk", "wv")}
    constants |= {"b": normal(WIDTH), "gamma": normal(WIDTH), "beta": normal(WIDTH), "first": np.array(0)}
    return simplify(tools.model(nodes, {"x": ["n", TOKENS, WIDTH]}, constants))


def sqnr_db(exact, found):
    return 10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum())


def outputs(model, x, make_context):
    """Float outputs, those of both int8 artifacts, and the QDQ model."""
    quantized = QuantizeStatic().apply(model, make_context(x))
    emissions = [
        ort.emit(model, activation="uint8"),
        emit(quantized),
        ort.emit(quantized, activation="uint8"),
    ]
    found = [
        infer(open_session(each.payload, each.format), each.inputs, each.outputs, x)[0] for each in emissions
    ]
    return *found, quantized


def test_attention_runs_on_integers_in_both_runtimes(tools, make_context):
    model = attention(tools)
    tools.same(model)
    exact, lite, onnx_found, quantized = outputs(model, normal(64, TOKENS, WIDTH), make_context)
    counts = emit(quantized).op_counts
    assert (counts["BATCH_MATMUL"], counts["FULLY_CONNECTED"]) == (2, 4)
    assert counts["DEQUANTIZE"] == 1, "LayerNormalization alone computes in float"
    assert sqnr_db(exact, lite) > 25
    assert sqnr_db(exact, onnx_found) > 25
