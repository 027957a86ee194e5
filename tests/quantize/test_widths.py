"""Layers of different widths side by side: what is converted where, in the graph and on the runtimes."""

import numpy as np
import onnx
import pytest

from edgepipe.convert import ort, tflite
from edgepipe.errors import ModelError
from edgepipe.graph.opset import raise_opset
from edgepipe.model import onnx_model
from edgepipe.quantize.scheme import Override
from edgepipe.quantize.static import QuantizeStatic
from edgepipe.runtime import infer, open_session

NET = """net (float[n,4,8,8] x) => (float[n,5] y) {
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)  r1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)  s = Add(c2, r1)
    m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(s)  k = Concat<axis=1>(m, m)  g = GlobalAveragePool(k)
    f = Flatten(g)  y = Gemm<transB=1>(f, w3, b3)
}"""


@pytest.fixture
def net(build_model):
    rng = np.random.default_rng(0)
    shapes = {"w1": (4, 4, 3, 3), "b1": 4, "w2": (4, 4, 3, 3), "b2": 4, "w3": (5, 8), "b3": 5}
    return build_model(NET, **{name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()})


@pytest.fixture
def x():
    return np.random.default_rng(1).normal(size=(32, 4, 8, 8)).astype(np.float32)


def quantize(model, context, *, layers=(), **settings):
    overrides = (Override(layers=layers, **settings),) if layers else ()
    return QuantizeStatic(overrides=overrides, **({} if layers else settings)).apply(model, context)


def widths(model, read_qdq):
    """Type of the integers behind each activation, by its name."""
    graph = read_qdq(model)
    return {
        node.name.removesuffix(".quantize"): graph.constants[node.input[2]].dtype.name
        for node in graph.nodes
        if node.op_type == "QuantizeLinear"
    }


def sqnr_db(exact, found):
    return 10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum())


def test_a_layer_of_16_bits_among_others_reads_and_writes_16(net, x, make_context, read_qdq):
    found = widths(quantize(net, make_context(x), layers=("c2",), activation_bits=16), read_qdq)
    assert {name for name, dtype in found.items() if dtype == "int16"} == {"r1.int16", "c2"}
    assert {"x", "r1", "c2.int8", "s", "y"} <= {name for name, dtype in found.items() if dtype == "int8"}


def test_an_activation_function_is_as_wide_as_its_op(net, x, make_context, read_qdq):
    found = widths(quantize(net, make_context(x), layers=("c1",), activation_bits=16), read_qdq)
    assert found["r1"] == "int16"
    assert found["x"] == "int16"  # its only reader is wide


def test_no_conversion_is_left_as_a_node(net, x, make_context, read_qdq):
    model = quantize(net, make_context(x), layers=("c2", "g"), activation_bits=16)
    assert "Identity" not in read_qdq(model).types()


def test_what_is_not_wide_keeps_its_grid(net, x, make_context, read_qdq):
    plain, mixed = (
        read_qdq(quantize(net, make_context(x), **each))
        for each in ({}, {"layers": ("c2",), "activation_bits": 16})
    )
    for name in ("x", "r1", "s"):
        assert plain.grid(name) == mixed.grid(name)


def test_wide_activations_lose_next_to_nothing(net, x, make_context, compute):
    exact = compute(net, x)[0]
    eight, sixteen = (compute(quantize(net, make_context(x), activation_bits=bits), x)[0] for bits in (8, 16))
    assert sqnr_db(exact, sixteen) > sqnr_db(exact, eight) + 3


def test_movers_between_float_layers_stay_float(net, x, make_context, read_qdq):
    """A pool and a flattening between layers in float are no reason to convert twice."""
    model = quantize(net, make_context(x), layers=("s", "k", "g", "y"), keep_float=True)
    assert set(widths(model, read_qdq)) == {"x", "r1", "c2"}


def test_a_float_layer_takes_its_activation_function_along(net, x, make_context, read_qdq):
    model = quantize(net, make_context(x), layers=("c1",), keep_float=True)
    assert "c1" not in widths(model, read_qdq)
    assert "r1" in widths(model, read_qdq)


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": ("c2",), "activation_bits": 16},
        {"layers": ("c1", "g"), "activation_bits": 16},
        {"layers": ("k", "y"), "activation_bits": 16},
        {"layers": ("c2",), "keep_float": True},
        {"layers": ("c2",), "weight_bits": 4},
        {"activation_bits": 16},
    ],
)
def test_runtimes_compute_what_the_graph_says(net, x, make_context, compute, settings):
    model = quantize(net, make_context(x), **settings)
    wanted = compute(model, x)[0]
    step = tflite.emit(model).outputs[0].scale
    for emission in (ort.emit(model, activation="uint8"), tflite.emit(model)):
        session = open_session(emission.payload, emission.format)
        found = infer(session, emission.inputs, emission.outputs, x)[0]
        assert np.abs(found - wanted).max() <= 8.01 * step if "int16" in emission.name else 2.01 * step


def test_raising_keeps_the_function_and_leaves_new_models_alone(net, x, compute):
    raised = raise_opset(net, 21)
    np.testing.assert_array_equal(compute(raised, x)[0], compute(net, x)[0])
    assert raise_opset(raised, 21) is raised


def test_what_onnx_cannot_raise_is_refused(net):
    proto = net.to_onnx()
    proto.graph.node[0].op_type = "Unheard"
    broken = onnx_model(proto, "m")
    with pytest.raises(ModelError, match="opset 21"):
        raise_opset(broken, 21)


def test_narrow_weights_are_stored_as_int4(net, x, make_context):
    proto = onnx.load_from_string(quantize(net, make_context(x), weight_bits=3).payload)
    kinds = [tensor.data_type for tensor in proto.graph.initializer if "quantized" in tensor.name]
    assert kinds.count(onnx.TensorProto.INT4) == 3
    onnx.checker.check_model(proto, full_check=True)
