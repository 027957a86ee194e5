"""What is made for a target can run there: versions, activation types, formats, on an ordinary CNN."""

from pathlib import Path

import numpy as np
import pytest

from edgepipe import pipeline
from edgepipe.convert import ort, tflite
from edgepipe.data import Dataset
from edgepipe.model import Model, onnx_model
from edgepipe.passes import Context
from edgepipe.recipe import load_recipe
from edgepipe.target import Target, list_targets


@pytest.fixture(scope="module")
def cnn() -> Model:
    """MobileNet's building blocks, opset 18: x float32 [n, 3, 16, 16] to y float32 [n, 5]."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "w3": (8, 5), "b3": (5,)}
    constants = {name: rng.normal(0, 0.3, shape) for name, shape in shapes.items()} | {
        "low": 0.0,
        "high": 6.0,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["c1", "low", "high"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Add", ["r1", "r2"], ["sum"]),
        helper.make_node("GlobalAveragePool", ["sum"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()],
    )
    return onnx_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), "cnn"
    )


@pytest.fixture(scope="module", params=list_targets(), ids=lambda target: target.name)
def made_for(request: pytest.FixtureRequest, cnn: Model, tmp_path_factory: pytest.TempPathFactory):
    """A target, and the CNN quantized for it."""
    x = np.random.default_rng(1).normal(size=(16, 3, 16, 16)).astype(np.float32)
    work: Path = tmp_path_factory.mktemp("work")
    samples = Dataset(x=x, y=None, digest="0" * 64, source="normal noise")
    context = Context(target=request.param, calibration=samples, work=work)
    quantized, _ = pipeline.run(load_recipe("int8"), cnn, context, cache=None)
    return request.param, quantized


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")[:2]))


def test_runtime_of_the_profile_is_new_enough(made_for: tuple[Target, Model]):
    target, quantized = made_for
    needs = ort.emit(quantized, activation=target.activation).needs | tflite.emit(quantized).needs
    for runtime in target.runtimes:
        assert _version(runtime.version) >= _version(needs[runtime.name]), runtime


def test_onnx_activations_have_the_type_that_the_profile_asks_for(made_for: tuple[Target, Model]):
    from onnx import load_from_string, numpy_helper

    target, quantized = made_for
    graph = load_from_string(ort.emit(quantized, activation=target.activation).payload).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zeros = [constants[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert zeros
    assert {zero.dtype.name for zero in zeros} == {target.activation.removesuffix("-symmetric")}
    if target.activation == "int8-symmetric":
        assert not np.any(zeros)
    else:
        assert np.any(zeros), "an asymmetric grid uses its zero point"
