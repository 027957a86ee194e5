"""Shapes inferred without the weights against those that ONNX infers from the whole model."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgepipe.graph import shapes

RNG = np.random.default_rng(0)
NETS = {
    "a chain of layers": """net (float[n,3,8,8] x) => (float[n,7] y) {
        a = Conv<pads=[1,1,1,1]>(x, kernel)
        b = Relu(a)
        c = GlobalAveragePool(b)
        d = Flatten(c)
        y = Gemm<transB=1>(d, matrix)
    }""",
    "sizes that follow from constants": """net (float[n,3,8,8] x) => (float[n,i,j] y) {
        a = Conv<pads=[1,1,1,1]>(x, kernel)
        target = Constant<value = int64[3] {0, 64, 64}>()
        b = Reshape(a, target)
        y = Slice(b, starts, ends, axes)
    }""",
    "sizes that follow from the input's": """net (float[n,3,8,8] x) => (float[n,i] y) {
        a = Conv<pads=[1,1,1,1]>(x, kernel)
        sizes = Shape<start=0, end=1>(a)
        rest = Constant<value = int64[1] {4096}>()
        target = Concat<axis=0>(sizes, rest)
        y = Reshape(a, target)
    }""",
    "control flow": """net (float[n,3,8,8] x, bool flag) => (float[n,64,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, kernel)
        y = If(flag)<then_branch = then () => (float[n,64,8,8] u) { u = Relu(a) },
                     else_branch = other () => (float[n,64,8,8] v) { b = Abs(a) v = Neg(b) }>
    }""",
}


@pytest.fixture(params=NETS)
def proto(request, build_model):
    constants = {
        "kernel": RNG.normal(size=(64, 3, 3, 3)).astype(np.float32),
        "matrix": RNG.normal(size=(7, 64)).astype(np.float32),
        "starts": np.array([0], np.int64),
        "ends": np.array([5], np.int64),
        "axes": np.array([1], np.int64),
    }
    text = NETS[request.param]
    return build_model(text, **{name: each for name, each in constants.items() if name in text}).to_onnx()


def copy(proto):
    return onnx.ModelProto.FromString(proto.SerializeToString())


def results(graph):
    return [value for node in graph for value in node.outputs]


def test_shapes_are_those_of_the_whole_model(proto):
    wanted = onnx.shape_inference.infer_shapes(copy(proto), data_prop=True)
    found = shapes.infer(copy(proto))
    assert found.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)


def test_shapes_of_a_graph_being_edited_are_the_same(proto):
    wanted = ir.from_proto(onnx.shape_inference.infer_shapes(copy(proto), data_prop=True)).graph
    model = ir.from_proto(copy(proto))
    for value in results(model.graph):
        if not value.is_graph_output():
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, 2, 3])  # stale
    found = shapes.refresh(model).graph
    assert [str(value) for value in results(found)] == [str(value) for value in results(wanted)]


def test_weights_are_not_written_out(build_model, monkeypatch):
    weight = RNG.normal(size=(64, 64, 3, 3)).astype(np.float32)
    model = build_model(
        "net (float[n,64,8,8] x) => (float[n,64,6,6] y) { y = Conv(x, weight) }", weight=weight
    )
    infer, taken = onnx.shape_inference.infer_shapes, []

    def watched(proto, **settings):
        taken.append(proto.ByteSize())
        return infer(proto, **settings)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", watched)
    shapes.refresh(ir.from_proto(shapes.infer(model.to_onnx())))
    assert len(taken) == 2
    assert max(taken) < weight.nbytes / 100
