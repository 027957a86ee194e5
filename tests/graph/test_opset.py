"""Graphs raised to another opset without their weights against ONNX's converter on the whole model."""

import numpy as np
import onnx
import pytest
from onnx import version_converter

from edgepipe.graph import opset

RNG = np.random.default_rng(0)
NETS = {
    "layers": """net (float[n,3,8,8] x) => (float[n,7] y) {
        a = Conv<pads=[1,1,1,1]>(x, kernel)
        b = BatchNormalization(a, vector, vector, vector, vector)
        c = ReduceMean<axes=[2,3], keepdims=0>(b)
        d = MatMul(c, matrix)
        y = Softmax(d)
    }""",
    "control flow": """net (float[n,3,8,8] x, bool flag) => (float[n,64,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, kernel)
        y = If(flag)<then_branch = then () => (float[n,64,8,8] u) { u = Relu(a) },
                     else_branch = other () => (float[n,64,8,8] v) { v = Abs(a) }>
    }""",
}


@pytest.fixture(params=NETS)
def proto(request, build_model):
    constants = {
        "kernel": RNG.normal(size=(64, 3, 3, 3)).astype(np.float32),
        "vector": RNG.uniform(1, 2, size=64).astype(np.float32),
        "matrix": RNG.normal(size=(64, 7)).astype(np.float32),
    }
    text = NETS[request.param]
    used = {name: each for name, each in constants.items() if name in text}
    made = build_model(text, opset=13, **used).to_onnx()
    made.producer_name, made.doc_string = "a tool", "what it is"
    return made


@pytest.mark.parametrize("listed", [False, True])
def test_the_result_is_that_of_the_whole_model(proto, listed):
    if listed:  # old exporters name constants among the inputs
        proto.graph.input.extend(
            onnx.helper.make_tensor_value_info(each.name, each.data_type, each.dims)
            for each in proto.graph.initializer
        )
    before = proto.SerializeToString()
    wanted = version_converter.convert_version(proto, 18)
    found = opset.convert(proto, 18)
    assert found.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)
    assert proto.SerializeToString() == before


def test_the_converter_does_not_see_the_weights(build_model, monkeypatch):
    weight = RNG.normal(size=(64, 64, 3, 3)).astype(np.float32)
    model = build_model("net (float[n,64,8,8] x) => (float[n,64,6,6] y) { y = Conv(x, w) }", w=weight)
    convert, taken = version_converter.convert_version, []

    def watched(proto, version):
        taken.append(proto.ByteSize())
        return convert(proto, version)

    monkeypatch.setattr(version_converter, "convert_version", watched)
    raised = opset.convert(model.to_onnx(), 21)
    assert max(taken) < weight.nbytes / 100
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(raised.graph.initializer[0]), weight)
