"""Which weights of 4 bits are int4 in the file: where that is fast, or where they are many."""

import numpy as np
import pytest

from edgepipe.convert import ort, tflite
from edgepipe.graph.simplify import Simplify
from edgepipe.quantize.static import QuantizeStatic
from edgepipe.runtime import infer, open_session

SHAPE = (3, 16, 16)


@pytest.fixture
def samples():
    return np.random.default_rng(2).normal(size=(12, *SHAPE)).astype(np.float32)


@pytest.fixture
def quantized(build_model, make_context, samples):
    """A network of `x`, its weights named after their shapes: w_8_3 is [8, 3, 3, 3], p_8_3 [8, 3, 1, 1]."""

    def build(body, bits=4):
        rng = np.random.default_rng(0)
        weights = {}
        for word in {word.strip("(),") for word in body.split()}:
            if word.startswith(("w_", "p_")):
                out, channels = map(int, word[2:].split("_"))
                size = (3, 3) if word[0] == "w" else (1, 1)
                weights[word] = rng.normal(size=(out, channels, *size)).astype(np.float32)
        model = build_model(f"net (float[n,3,16,16] x) => (float[n,a,b,c] y) {{ {body} }}", **weights)
        context = make_context(samples)
        return QuantizeStatic(weight_bits=bits).apply(Simplify().apply(model, context), context)

    return build


def widths(emission):
    """Type of each convolution's weights in the file, by the shape they have there."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(emission.payload))
    names = {number: name for name, number in vars(schema.TensorType).items() if name.isupper()}
    graph = model.subgraphs[0]
    weights = [graph.tensors[op.inputs[1]] for op in graph.operators if len(op.inputs) == 3]
    return {tuple(map(int, weight.shape)): names[weight.type] for weight in weights}


STEM = (
    "a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w_8_3) b = Relu(a) c = Conv(b, p_64_8) y = Conv(c, p_64_64)"
)


def test_a_first_convolution_is_int8_among_pointwise_ones(quantized, samples):
    model = quantized(STEM)
    emission = tflite.emit(model)
    assert widths(emission) == {(8, 3, 3, 3): "INT8", (64, 8): "INT4", (64, 64): "INT4"}
    assert not emission.notes
    assert emission.name == "int4.tflite"
    reference = ort.emit(model, activation="uint8")
    got, wanted = (
        infer(open_session(each.payload, each.format), each.inputs, each.outputs, samples)[0]
        for each in (emission, reference)
    )
    np.testing.assert_allclose(got, wanted, rtol=0, atol=emission.outputs[0].scale / 10)


MANY = "a = Conv<pads=[1,1,1,1]>(x, w_8_3) b = Conv<strides=[2,2]>(a, w_32_8) y = Conv(b, w_64_32)"


def test_convolutions_that_hold_most_weights_stay_int4_and_are_named(quantized):
    model = quantized(MANY)
    emission = tflite.emit(model)
    assert widths(emission) == {(8, 3, 3, 3): "INT8", (32, 3, 3, 8): "INT8", (64, 3, 3, 32): "INT4"}
    assert len(emission.notes) == 1
    assert "1 convolution on int4" in emission.notes[0]
    names = [node.name for node in model.to_onnx().graph.node if node.op_type == "Conv"]
    assert emission.notes[0].endswith(f": {names[2]}")


def test_the_file_grows_by_an_eighth_at_most(quantized):
    whole, narrow = (len(tflite.emit(quantized(MANY, bits)).payload) for bits in (8, 4))
    weights = 8 * 27 + 32 * 72 + 64 * 288
    assert weights / 2 * (1 - 1 / 8) - 200 < whole - narrow < weights / 2


def test_strides_make_a_pointwise_convolution_slow_too(quantized):
    emission = tflite.emit(quantized("a = Conv<strides=[2,2]>(x, p_4_3) y = Conv(a, p_64_4)"))
    assert widths(emission) == {(4, 1, 1, 3): "INT8", (64, 4): "INT4"}


def test_int8_is_as_it_was(quantized):
    assert set(widths(tflite.emit(quantized(MANY, 8))).values()) == {"INT8"}
