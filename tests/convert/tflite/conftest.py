"""Small ONNX graphs, a plain min/max quantizer for them, and runtimes to hold the writer's files to."""

import numpy as np
import pytest

from edgepipe.convert.tflite import emit
from edgepipe.model import onnx_model

# Inputs that are weights (with the axis of their output channels) and biases, by op.
WEIGHT_AXES = {"Conv": lambda node: 0, "Gemm": lambda node: 0 if attribute(node, "transB") else 1, "MatMul": lambda node: 1}


def attribute(node, name, default=0):
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def make_model(nodes, inputs, constants=None, outputs=("y",), opset=17):
    """An ONNX Model: nodes as (op, inputs, outputs, attributes); inputs by name and shape."""
    from onnx import TensorProto, helper, numpy_helper

    made = [helper.make_node(op, list(ins), list(outs), **attributes) for op, ins, outs, attributes in nodes]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    return onnx_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), "m")


def run_onnx(model, feeds, outputs=None):
    """Outputs of ONNX Runtime, its graph left as it is: every Q and DQ computes what it says."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model if isinstance(model, bytes) else model.payload, options)
    return session.run(outputs, feeds)


def run_tflite(emission, feeds, *, reference=False):
    """Outputs of LiteRT in the layout and type of the source: float32, taken off the ports' grids."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    interpreter = Interpreter(
        model_content=emission.payload, num_threads=1, experimental_op_resolver_type=resolver
    )
    interpreter.allocate_tensors()
    for detail, port, array in zip(interpreter.get_input_details(), emission.inputs, feeds.values(), strict=True):
        array = np.ascontiguousarray(array.transpose(port.permutation))
        if port.scale is not None:
            array = np.clip(np.rint(array / port.scale) + port.zero_point, -128, 127).astype(np.int8)
        assert detail["name"] == port.name
        assert tuple(detail["shape"]) == port.shape
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    results = []
    for detail, port in zip(interpreter.get_output_details(), emission.outputs, strict=True):
        array = interpreter.get_tensor(detail["index"]).transpose(np.argsort(port.permutation))
        if port.scale is not None:
            array = (array.astype(np.float64) - port.zero_point) * port.scale
        results.append(array)
    return results


def random_feeds(model, seed=0):
    rng = np.random.default_rng(seed)
    return {
        spec.name: rng.normal(size=[size or 1 for size in spec.shape]).astype(np.float32) for spec in model.inputs
    }


def assert_same(model, seed=0, tolerance=2e-5, **settings):
    """Emits the float model and holds both kernels of LiteRT to ONNX Runtime; returns the emission."""
    emission = emit(model, **settings)
    feeds = random_feeds(model, seed)
    wanted = run_onnx(model, feeds)
    for reference in (False, True):
        for got, want in zip(run_tflite(emission, feeds, reference=reference), wanted, strict=True):
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * max(1.0, np.abs(want).max()))
    return emission


def assert_same_steps(model, feeds, steps=1.0, **settings):
    """Emits the QDQ model and holds LiteRT to within `steps` output steps of ONNX Runtime."""
    emission = emit(model, **settings)
    assert emission.precision == "int8"
    wanted = run_onnx(model, feeds)
    for reference in (False, True):
        outputs = run_tflite(emission, feeds, reference=reference)
        for got, want, scale in zip(outputs, wanted, output_scales(model), strict=True):
            assert got.shape == want.shape
            assert np.abs(got - want).max() / scale <= steps + 1e-3
    return emission


def output_scales(model):
    """The scale of the DequantizeLinear that makes each output."""
    from onnx import numpy_helper

    graph = model.to_onnx().graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    return [float(constants[makers[port.name].input[1]]) for port in graph.output]


def quantize(model, feeds, *, unsigned=False, float_biases=False, float_weights=False, skip=()):
    """A QDQ model with the ranges of one run: a plain quantizer, independent of the product's.

    Activations not in `skip` get a Q/DQ pair. Weights are int8 per channel with a DQ (float with a
    Q/DQ pair where `float_weights`), biases int32 with a DQ (float where `float_biases`).
    """
    import onnx
    from onnx import helper, numpy_helper

    proto = model.to_onnx()
    graph = proto.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = [name for node in graph.node for name in node.output]
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made)
    ranges = dict(zip(made, run_onnx(probe.SerializeToString(), feeds), strict=True)) | feeds
    nodes, scales = [], {}
    kind, lowest, highest = (np.uint8, 0, 255) if unsigned else (np.int8, -128, 127)

    def constant(name, array):
        graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def pair(name, result, scale, zero, axis=None):
        names = [constant(f"{name}_scale", np.float32(scale)), constant(f"{name}_zero", zero)]
        extra = {} if axis is None else {"axis": axis}
        nodes.append(helper.make_node("QuantizeLinear", [name, *names], [f"{name}_q"], **extra))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *names], [result], **extra))

    def activation(name, result):
        low, high = min(float(ranges[name].min()), 0.0), max(float(ranges[name].max()), 0.0)
        scale = np.float32((high - low) / 255 or 1.0)
        scales[result] = scale
        pair(name, result, scale, kind(np.clip(round(lowest - low / scale), lowest, highest)))

    def weight(name, axis):
        array = constants[name]
        if axis is None:
            scale = np.float32(np.abs(array).max() / 127 or 1.0)
            shaped = scale
        else:
            scale = np.float32(np.abs(array).max(axis=tuple(a for a in range(array.ndim) if a != axis)) / 127)
            scale = np.where(scale == 0, np.float32(0.0), scale)
            shaped = np.where(scale == 0, 1, scale).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
        if float_weights and (scale > 0).all():
            zero = np.zeros(np.shape(scale), np.int8)
            pair(name, f"{name}_dq", scale, zero, axis)
        else:
            integers = np.clip(np.rint(array / shaped), -127, 127).astype(np.int8)
            names = [constant(f"{name}_int8", integers), constant(f"{name}_scale", scale)]
            names.append(constant(f"{name}_zero", np.zeros(np.shape(scale), np.int8)))
            nodes.append(
                helper.make_node("DequantizeLinear", names, [f"{name}_dq"], **({} if axis is None else {"axis": axis}))
            )
        scales[f"{name}_dq"] = scale
        return f"{name}_dq"

    def bias(name, scale):
        safe = np.where(scale == 0, 1, scale)
        integers = np.rint(constants[name] / safe).astype(np.int32)
        names = [constant(f"{name}_int32", integers), constant(f"{name}_scale", np.asarray(safe, np.float32))]
        nodes.append(helper.make_node("DequantizeLinear", names, [f"{name}_dq"], axis=0))
        return f"{name}_dq"

    renamed = {}
    for name in feeds:
        renamed[name] = f"{name}_dq"
        activation(name, renamed[name])
    results = {port.name for port in graph.output}
    for node in list(graph.node):
        inputs = [renamed.get(name, name) for name in node.input]
        if node.op_type in WEIGHT_AXES and node.input[1] in constants:
            inputs[1] = weight(node.input[1], WEIGHT_AXES[node.op_type](node))
            if len(inputs) > 2 and not float_biases:
                inputs[2] = bias(node.input[2], np.float32(scales[inputs[0]] * scales[inputs[1]]))
        elif node.op_type in {"Add", "Mul", "Sub", "Concat", "Max", "Min", "PRelu"}:
            inputs = [
                weight(name, None) if name in constants and constants[name].size > 1 else name for name in inputs
            ]
        copied = helper.make_node(node.op_type, inputs, [])
        copied.attribute.extend(node.attribute)
        nodes.append(copied)
        for name in node.output:
            if name in skip:
                copied.output.append(name)
                continue
            inner = f"{name}_float"
            copied.output.append(inner)
            ranges[inner] = ranges[name]
            renamed[name] = name if name in results else f"{name}_dq"
            activation(inner, renamed[name])
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return onnx_model(proto, "q")


@pytest.fixture(scope="session")
def tools():
    """The functions above, for tests that hypothesis runs."""

    class Tools:
        model = staticmethod(make_model)
        feeds = staticmethod(random_feeds)
        quantize = staticmethod(quantize)
        run_onnx = staticmethod(run_onnx)
        run_tflite = staticmethod(run_tflite)
        same = staticmethod(assert_same)
        same_steps = staticmethod(assert_same_steps)

        @classmethod
        def both(cls, model, seed=0, steps=1.0, **settings):
            """Holds the float model and its quantized form to ONNX Runtime; returns both emissions."""
            feeds = random_feeds(model, seed)
            return assert_same(model, seed), assert_same_steps(quantize(model, feeds, **settings), feeds, steps)

    return Tools
