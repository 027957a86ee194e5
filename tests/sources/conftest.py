"""Small models of known weights, as files of every kind."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SHARED = Path(os.environ.get("EDGEPIPE_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture
def shared():
    """Gives the path of a shared model, or skips where it is absent."""

    def path(name):
        if not (SHARED / name).exists():
            pytest.skip(f"{SHARED / name} is absent; set EDGEPIPE_DATA to the folder that has it")
        return SHARED / name

    return path


@pytest.fixture
def needs():
    """Skips where an optional package is absent."""

    def check(package):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")

    return check


def make_cnn(batch="N", height=8, width=8, opset=18, seed=0):
    """Conv, Relu, global pooling by ReduceMean, Gemm: the axes of ReduceMean move with the opset."""
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(4).astype(np.float32),
        "fc": rng.standard_normal((4, 5)).astype(np.float32),
    }
    axes = {} if opset >= 18 else {"axes": [2, 3]}
    reduced = ["relu", "axes"] if opset >= 18 else ["relu"]
    if opset >= 18:
        weights["axes"] = np.array([2, 3], np.int64)
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("ReduceMean", reduced, ["mean"], keepdims=0, **axes),
        helper.make_node("MatMul", ["mean", "fc"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, height, width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture
def cnn():
    """`make_cnn`."""
    return make_cnn


@pytest.fixture
def save_onnx(tmp_path):
    """Saves a ModelProto and gives its path as text."""

    def save(proto, name="cnn.onnx", **options):
        onnx.save(proto, tmp_path / name, **options)
        return str(tmp_path / name)

    return save


class TfliteBuilder:
    """Makes .tflite files by the flatbuffer schema: an NHWC convolution, its weights stored as asked."""

    def __init__(self):
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        rng = np.random.default_rng(0)
        self.weight = rng.standard_normal((4, 3, 3, 2)).astype(np.float32)  # [out, h, w, in]
        self.bias = rng.standard_normal(4).astype(np.float32)
        self.buffers = [schema.BufferT()]
        self.tensors = []
        self.codes = []
        self.operators = []

    def tensor(self, name, shape, kind="FLOAT32", data=None, scale=None, axis=0, batch=1):
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape = name, list(shape)
        tensor.type = getattr(self.schema.TensorType, kind)
        tensor.shapeSignature = [batch, *shape[1:]] if data is None else list(shape)
        tensor.buffer = 0
        if data is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.buffers.append(buffer)
            tensor.buffer = len(self.buffers) - 1
        if scale is not None:
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale = np.atleast_1d(np.asarray(scale, np.float32))
            tensor.quantization.zeroPoint = np.zeros(len(tensor.quantization.scale), np.int64)
            tensor.quantization.quantizedDimension = axis
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def operator(self, name, inputs, outputs, options=None, custom=None, version=1):
        code = self.schema.OperatorCodeT()
        number = getattr(self.schema.BuiltinOperator, name)
        code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)
        code.customCode, code.version = custom, version
        self.codes.append(code)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = len(self.codes) - 1
        operator.inputs, operator.outputs = inputs, outputs
        if options is not None:
            operator.builtinOptionsType = getattr(
                self.schema.BuiltinOptions, type(options).__name__.removesuffix("T")
            )
            operator.builtinOptions = options
        self.operators.append(operator)

    def convolution(self, source, goal, weight):
        options = self.schema.Conv2DOptionsT()
        options.strideH = options.strideW = 1
        options.padding = self.schema.Padding.SAME
        options.fusedActivationFunction = self.schema.ActivationFunctionType.RELU
        self.operator("CONV_2D", [source, weight, self.tensor("b", [4], data=self.bias)], [goal], options)

    def finish(self, inputs, outputs):
        import flatbuffers

        graph, model = self.schema.SubGraphT(), self.schema.ModelT()
        graph.name, graph.tensors, graph.operators = "main", self.tensors, self.operators
        graph.inputs, graph.outputs = inputs, outputs
        model.version, model.operatorCodes, model.subgraphs = 3, self.codes, [graph]
        model.buffers = self.buffers
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def stored_as(self, storage, batch=1):
        """The convolution with float32, int8 (dynamic range) or float16 weights."""
        source = self.tensor("image", [1, 5, 6, 2], batch=batch)
        goal = self.tensor("features", [1, 5, 6, 4], batch=batch)
        if storage == "int8":
            scale = np.abs(self.weight).max(axis=(1, 2, 3)) / 127
            steps = np.rint(self.weight / scale[:, None, None, None]).astype(np.int8)
            self.weight = steps.astype(np.float32) * scale.astype(np.float32)[:, None, None, None]
            weight = self.tensor("w", steps.shape, "INT8", steps, scale)
        elif storage == "float16":
            half = self.weight.astype(np.float16)
            self.weight = half.astype(np.float32)
            packed = self.tensor("w16", half.shape, "FLOAT16", half)
            weight = self.tensor("w", half.shape)
            self.operator("DEQUANTIZE", [packed], [weight], self.schema.DequantizeOptionsT(), version=3)
        else:
            weight = self.tensor("w", self.weight.shape, data=self.weight)
        self.convolution(source, goal, weight)
        return self.finish([source], [goal])


@pytest.fixture
def tflite_builder():
    return TfliteBuilder()
