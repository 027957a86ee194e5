"""Outputs on far finer grids than what they are computed from: LiteRT refuses them, or computes nonsense."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepipe.model import onnx_model

STEP = 2.0**-6
OPS = {
    "Conv": ("Conv", [1, 8, 6, 6], (8, 8, 3, 3)),
    "pointwise": ("Conv", [1, 8, 6, 6], (8, 8, 1, 1)),
    "depthwise": ("Conv", [1, 8, 6, 6], (8, 1, 3, 3)),
    "ConvTranspose": ("ConvTranspose", [1, 8, 6, 6], (8, 8, 2, 2)),
    "Gemm": ("Gemm", [1, 8], (8, 8)),
    "MatMul": ("MatMul", [1, 8], (8, 8)),
    "Add": ("Add", [1, 8, 6, 6], None),
    "Sub": ("Sub", [1, 8, 6, 6], None),
    "Mul": ("Mul", [1, 8, 6, 6], None),
    "HardSwish": ("HardSwish", [1, 8, 6, 6], None),
}
INTEGER = {
    "Conv": "CONV_2D", "pointwise": "CONV_2D", "depthwise": "DEPTHWISE_CONV_2D",
    "ConvTranspose": "TRANSPOSE_CONV", "Gemm": "FULLY_CONNECTED", "MatMul": "FULLY_CONNECTED", "Add": "ADD",
    "Sub": "SUB", "Mul": "MUL", "HardSwish": "HARD_SWISH",
}  # fmt: skip


@pytest.fixture
def quantized():
    """One op named "layer" in QDQ form, whose output's step is `steps` times finer than what it adds up."""

    def build(name, steps, step=STEP, weight_step=STEP):
        op, shape, weight_shape = OPS[name]
        constants, nodes, inputs = {}, [], {"x": shape}

        def pair(source, result, scale):
            constants.update({f"{result}_s": np.float32(scale), f"{result}_z": np.int8(0)})
            grid = [f"{result}_s", f"{result}_z"]
            nodes.append(helper.make_node("QuantizeLinear", [source, *grid], [f"{result}_q"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{result}_q", *grid], [result]))

        pair("x", "real", step)
        operands, added = ["real"], step
        if weight_shape is not None:
            integers = np.random.default_rng(0).integers(-127, 128, weight_shape).astype(np.int8)
            constants.update({"w_i": integers, "w_s": np.float32(weight_step), "w_z": np.int8(0)})
            nodes.append(helper.make_node("DequantizeLinear", ["w_i", "w_s", "w_z"], ["w"]))
            operands, added = ["real", "w"], step * weight_step
        elif name != "HardSwish":
            inputs["other"] = shape
            pair("other", "other_real", step)
            operands, added = ["real", "other_real"], step * step if name == "Mul" else step
        settings = {"pads": [1] * 4} if weight_shape is not None and weight_shape[-1] == 3 else {}
        settings |= {"group": 8} if name == "depthwise" else {}
        nodes.append(helper.make_node(op, operands, ["made"], name="layer", **settings))
        pair("made", "y", added / steps)
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info(each, TensorProto.FLOAT, size) for each, size in inputs.items()],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(array), each) for each, array in constants.items()],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx_model(onnx.shape_inference.infer_shapes(proto), "m")

    return build


def feeds(model, step):
    rng = np.random.default_rng(1)
    return {spec.name: (60 * step * rng.normal(size=spec.shape)).astype(np.float32) for spec in model.inputs}


@pytest.mark.parametrize("name", OPS)
def test_what_no_kernel_brings_onto_its_output_computes_in_float_and_is_named(quantized, tools, name):
    model = quantized(name, 2.0**10)
    emission = tools.same_steps(model, feeds(model, STEP))
    assert ["layer" in note for note in emission.notes] == [True]
    assert "DEQUANTIZE" in emission.op_counts


@pytest.mark.parametrize("name", OPS)
def test_kernels_take_all_that_they_can(quantized, tools, name):
    model = quantized(name, 2.0**6.9)
    emission = tools.same_steps(model, feeds(model, STEP))
    assert not emission.notes
    assert set(emission.op_counts) == {INTEGER[name]}


@pytest.mark.parametrize("name", ["Conv", "Add", "Mul", "Gemm"])
def test_the_finest_output_on_integers_is_right(quantized, tools, name):
    model = quantized(name, 2.0**8 * 0.999)
    assert not tools.same_steps(model, feeds(model, STEP)).notes


@pytest.mark.parametrize("name", ["Conv", "Gemm"])
def test_products_of_steps_that_no_float32_holds_are_computed_in_float(quantized, tools, name):
    model = quantized(name, 1e-12, 1e-22, 1e-22)
    emission = tools.same_steps(model, feeds(model, 1e-22))
    assert ["layer" in note for note in emission.notes] == [True]
