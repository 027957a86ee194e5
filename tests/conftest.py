"""Tiny models that every test folder may use; each builder returns an `Emission`. Hypothesis' settings."""

import os

import hypothesis
import numpy as np
import pytest

from edgepipe.bundle import Port
from edgepipe.convert.emission import Emission

# No deadline: examples share their cores with other workers. On CI the same examples each time, so that a red
# build is red for a reason in the change.
hypothesis.settings.register_profile("edgepipe", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("edgepipe")


@pytest.fixture
def tiny_onnx():
    """Builds a float 1x1 convolution and ReLU: x float32 [batch, 3, 4, 5] to y float32 [batch, 2, 4, 5]."""
    from onnx import TensorProto, helper, numpy_helper

    def build(*, batch, seed=0):
        weight = np.random.default_rng(seed).normal(size=(2, 3, 1, 1)).astype(np.float32)
        shapes = [["n" if batch is None else batch, channels, 4, 5] for channels in (3, 2)]
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])],
            "tiny",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shapes[0])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes[1])],
            [numpy_helper.from_array(weight, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        same = (0, 1, 2, 3)
        return Emission(
            format="onnx",
            precision="float32",
            payload=model.SerializeToString(deterministic=True),
            inputs=(Port(name="x", dtype="float32", shape=(1, 3, 4, 5), permutation=same),),
            outputs=(Port(name="y", dtype="float32", shape=(1, 2, 4, 5), permutation=same),),
            op_counts={"Conv": 1, "Relu": 1},
            needs={"onnxruntime": "1.10"},
        )

    return build


@pytest.fixture
def tiny_tflite():
    """Builds x int8 [batch, 4, 5, 3] to max(x, 0), at step 0.1, of a source in NCHW layout."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name, batch):
        made = schema.TensorT()
        made.name, made.type, made.buffer = name, schema.TensorType.INT8, 0
        made.shape, made.shapeSignature = [1, 4, 5, 3], [-1 if batch is None else batch, 4, 5, 3]
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = [0.1], [0]
        return made

    def build(*, batch):
        code, op, graph, model = (
            schema.OperatorCodeT(),
            schema.OperatorT(),
            schema.SubGraphT(),
            schema.ModelT(),
        )
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RELU
        code.version = 2
        op.opcodeIndex, op.inputs, op.outputs = 0, [0], [1]
        graph.tensors, graph.operators = [tensor("x", batch), tensor("y", batch)], [op]
        graph.inputs, graph.outputs = [0], [1]
        model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
        model.buffers = [schema.BufferT()]
        builder = flatbuffers.Builder(256)
        builder.Finish(model.Pack(builder), b"TFL3")
        shape, order = (1, 4, 5, 3), (0, 2, 3, 1)
        return Emission(
            format="tflite",
            precision="int8",
            payload=bytes(builder.Output()),
            inputs=(Port(name="x", dtype="int8", shape=shape, permutation=order, scale=0.1),),
            outputs=(Port(name="y", dtype="int8", shape=shape, permutation=order, scale=0.1),),
            op_counts={"RELU": 1},
            needs={"litert": "1.0"},
        )

    return build
