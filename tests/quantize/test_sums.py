"""Scales of sums: hardly moved, exact in the factors of kernels, so that two runtimes give one result."""

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepipe.convert import ort, tflite
from edgepipe.data import Dataset
from edgepipe.events import silent
from edgepipe.model import onnx_model
from edgepipe.passes import Context
from edgepipe.quantize import static
from edgepipe.quantize.static import QuantizeStatic
from edgepipe.runtime import infer, open_session
from edgepipe.target import load_target

CHANNELS = 8


def residual_net(blocks=4):
    """A stem, residual blocks of two convolutions each, a mean and a dense layer, on random weights."""
    rng = np.random.default_rng(21)
    nodes, constants = [], {}

    def conv(source, result, channels, relu):
        weight = rng.standard_normal((CHANNELS, channels, 3, 3)) * math.sqrt(2 / (9 * channels))
        constants[f"{result}_w"] = weight.astype(np.float32)
        constants[f"{result}_b"] = (0.1 * rng.standard_normal(CHANNELS)).astype(np.float32)
        names = [source, f"{result}_w", f"{result}_b"]
        nodes.append(helper.make_node("Conv", names, [f"{result}_c" if relu else result], pads=[1] * 4))
        if relu:
            nodes.append(helper.make_node("Relu", [f"{result}_c"], [result]))
        return result

    flow = conv("x", "stem", 3, relu=True)
    for block in range(blocks):
        inner = conv(conv(flow, f"a{block}", CHANNELS, relu=True), f"b{block}", CHANNELS, relu=False)
        nodes.append(helper.make_node("Add", [inner, flow], [f"sum{block}"]))
        nodes.append(helper.make_node("Relu", [f"sum{block}"], [f"flow{block}"]))
        flow = f"flow{block}"
    constants["head"] = rng.standard_normal((10, CHANNELS)).astype(np.float32)
    nodes += [
        helper.make_node("GlobalAveragePool", [flow], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "residual", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18)]
    return onnx_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), "residual")


def samples(count, seed):
    return np.random.default_rng(seed).standard_normal((count, 3, 12, 12)).astype(np.float32)


@pytest.fixture
def quantized(tmp_path):
    """Quantizes the net."""

    def run():
        x = samples(16, 1)
        data = Dataset(x=x, y=None, source="noise", digest="noise")
        target = load_target("x86")
        context = Context(target=target, calibration=data, seed=0, work=tmp_path, emit=silent)
        return QuantizeStatic().apply(residual_net(), context)

    return run


def sums(model):
    """Scales of both operands and of the result, in steps of the result, for each Add."""
    proto = onnx.load_from_string(model.payload)
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    makers = {name: node for node in proto.graph.node for name in node.output}
    for node in proto.graph.node:
        if node.op_type == "Add":
            taker = next(each for each in proto.graph.node if node.output[0] in each.input)
            while taker.op_type != "QuantizeLinear":
                result = taker.output[0]
                taker = next(each for each in proto.graph.node if result in each.input)
            step = float(known[taker.input[1]])
            yield [float(known[makers[name].input[1]]) / step for name in node.input]


def test_ratios_of_scales_are_integers_of_21_bits_to_the_precision_of_float32(quantized):
    found = list(sums(quantized()))
    assert len(found) == 4
    for ratios in found:
        shift = 20 - math.floor(math.log2(max(ratios)))
        for ratio in ratios:
            factor = ratio * 2**shift
            assert abs(factor - round(factor)) <= 2**21 * 2**-23


def test_scales_move_by_less_than_a_millionth_and_those_of_no_sum_stay(quantized, monkeypatch):
    aligned = quantized()
    monkeypatch.setattr(static, "align_sums", lambda plan, groups, grids: dict(grids))
    plain = quantized()
    pairs = list(zip(scales(plain), scales(aligned), strict=True))
    moved = [one for one, other in pairs if one != other]
    assert 0 < len(moved) < len(pairs)
    assert all(abs(one / other - 1) < 2e-6 for one, other in pairs)


@pytest.mark.parametrize("part", [1e-2, 1e-4, 1e-6, 3e-7])
def test_a_scale_far_finer_than_the_other_operands_is_not_bent(part, build_model, make_context, monkeypatch):
    """A branch that adds next to nothing, as layer scales begin, and that another op reads."""
    body = """{ a = Mul(x, thousand)  b = Mul(x, part)  c = Add(a, b)
        d = Mul(b, inverse)  y = Concat<axis=1>(c, d) }"""
    model = build_model(
        f"net (float[n,3,4,4] x) => (float[n,6,4,4] y) {body}",
        thousand=np.float32(1000),
        part=np.float32(1000 * part),
        inverse=np.float32(1 / part),
    )
    context = make_context(np.random.default_rng(3).normal(size=(8, 3, 4, 4)).astype(np.float32))
    aligned = scales(QuantizeStatic().apply(model, context))
    monkeypatch.setattr(static, "align_sums", lambda plan, groups, grids: dict(grids))
    plain = scales(QuantizeStatic().apply(model, context))
    assert min(aligned) > 0
    np.testing.assert_allclose(aligned, plain, rtol=2**-12)


def scales(model):
    proto = onnx.load_from_string(model.payload)
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    return [float(known[node.input[1]]) for node in proto.graph.node if node.op_type == "QuantizeLinear"]


def test_tflite_and_onnx_runtime_give_the_same_integers(quantized):
    model = quantized()
    x = samples(200, 2)
    small = tflite.emit(model)
    other = ort.emit(model, activation="uint8", ports="integer")
    ours = infer(open_session(small.payload, "tflite"), small.inputs, small.outputs, x)[0]
    theirs = infer(open_session(other.payload, "onnx"), other.inputs, other.outputs, x)[0]
    steps = np.rint(np.abs(ours - theirs) / small.outputs[0].scale)
    assert steps.max() <= 1
    assert (steps == 0).mean() > 0.99
    assert np.ptp(ours) > 60 * small.outputs[0].scale
