"""Small ONNX graphs, a plain min/max quantizer for them, and runtimes to hold the writer's files to."""

import numpy as np
import pytest

from edgepipe.convert.tflite import emit
from edgepipe.model import onnx_model

# Ops whose output lies on the grid of their input, with any quantizer that knows TFLite.
SAME_GRID = frozenset(
    {"AveragePool", "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "Reshape", "Flatten", "Squeeze"}
    | {"Unsqueeze", "Transpose", "Slice", "Split", "Gather", "Pad"}
)
# Inputs that are weights (with the axis of their output channels), by op.
WEIGHT_AXES = {
    "Conv": lambda node: 0,
    "ConvTranspose": lambda node: 1,
    "Gemm": lambda node: 0 if attribute(node, "transB") else 1,
    "MatMul": lambda node: 1,
}


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
    opsets = [helper.make_opsetid("", opset)]
    return onnx_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), "m")


def run_onnx(model, feeds, outputs=None):
    """Outputs of ONNX Runtime, its graph left as it is: every Q and DQ computes what it says."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model if isinstance(model, bytes) else model.payload, options)
    return session.run(outputs, feeds)


def on_grid(array, port):
    """The array as the port wants it."""
    if port.scale is None:
        return array
    return np.clip(np.rint(array / port.scale) + port.zero_point, -128, 127).astype(np.int8)


def run_tflite(emission, feeds, *, reference=False):
    """Outputs of LiteRT in the layout and type of the source: float, taken off the ports' grids."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    interpreter = Interpreter(
        model_content=emission.payload, num_threads=1, experimental_op_resolver_type=resolver
    )
    interpreter.allocate_tensors()
    details = interpreter.get_input_details()
    for detail, port, feed in zip(details, emission.inputs, feeds.values(), strict=True):
        assert detail["name"] == port.name
        assert tuple(detail["shape"]) == port.shape
        array = np.ascontiguousarray(feed.transpose(port.permutation))
        interpreter.set_tensor(detail["index"], on_grid(array, port))
    interpreter.invoke()
    results = []
    for detail, port in zip(interpreter.get_output_details(), emission.outputs, strict=True):
        assert detail["name"] == port.name
        assert tuple(detail["shape"]) == port.shape
        array = interpreter.get_tensor(detail["index"]).transpose(np.argsort(port.permutation))
        if port.scale is not None:
            array = (array.astype(np.float64) - port.zero_point) * port.scale
        results.append(array)
    return results


def random_feeds(model, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {spec.name: [size or 1 for size in spec.shape] for spec in model.inputs}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def kernels(emission):
    """False for the default kernels, True for the reference ones, which lack a few ops."""
    return (False,) if "ELU" in emission.op_counts else (False, True)


def assert_same(model, seed=0, tolerance=2e-5, **settings):
    """Emits the float model and holds both kernels of LiteRT to ONNX Runtime; returns the emission."""
    emission = emit(model, **settings)
    feeds = random_feeds(model, seed)
    wanted = run_onnx(model, feeds)
    for reference in kernels(emission):
        for got, want in zip(run_tflite(emission, feeds, reference=reference), wanted, strict=True):
            assert got.shape == want.shape
            near = tolerance * max(1.0, np.abs(want).max())
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=near)
    return emission


def assert_same_steps(model, feeds, steps=1.0, **settings):
    """Emits the QDQ model and holds LiteRT to within `steps` output steps of ONNX Runtime."""
    emission = emit(model, **settings)
    assert emission.precision == "int8"
    wanted = run_onnx(model, feeds)
    for reference in kernels(emission):
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


class Quantizer:
    """A plain min/max quantizer, independent of the product's: ranges of one run, weights per channel."""

    def __init__(self, model, feeds, *, unsigned, float_biases, float_weights, skip, same_grid):
        from onnx import numpy_helper

        self.proto = model.to_onnx()
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.proto.graph.initializer}
        self.kind, self.lowest, self.highest = (np.uint8, 0, 255) if unsigned else (np.int8, -128, 127)
        self.float_biases, self.float_weights = float_biases, float_weights
        self.skip, self.same_grid = skip, same_grid
        self.feeds = feeds
        self.ranges = self.observe()
        self.nodes, self.scales, self.renamed = [], {}, {}

    def observe(self):
        """Every value that a node makes, on the one sample."""
        import onnx

        probe = onnx.ModelProto()
        probe.CopyFrom(self.proto)
        made = [name for node in probe.graph.node for name in node.output]
        del probe.graph.output[:]
        probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in made)
        return dict(zip(made, run_onnx(probe.SerializeToString(), self.feeds), strict=True)) | self.feeds

    def run(self):
        for name in self.feeds:
            self.renamed[name] = f"{name}_dq"
            self.activation(name, self.renamed[name])
        for node in list(self.proto.graph.node):
            self.rewrite(node)
        graph = self.proto.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        return onnx_model(self.proto, "q")

    def rewrite(self, node):
        """The node between Q/DQ pairs."""
        inputs = [self.renamed.get(name, name) for name in node.input]
        if node.op_type in WEIGHT_AXES and node.input[1] in self.constants:
            inputs[1] = self.weight(node.input[1], WEIGHT_AXES[node.op_type](node))
            if len(inputs) > 2 and not self.float_biases:
                inputs[2] = self.bias(node.input[2], self.scales[inputs[0]] * self.scales[inputs[1]])
        elif node.op_type in {"Add", "Mul", "Sub", "Concat", "Max", "Min", "PRelu"}:
            constant = [name in self.constants and self.constants[name].size > 1 for name in inputs]
            inputs = [self.weight(n, None) if c else n for n, c in zip(inputs, constant, strict=True)]
        copied = self.add(node.op_type, inputs, [])
        copied.attribute.extend(node.attribute)
        for name in node.output:
            self.output(node, copied, name)

    def output(self, node, copied, name):
        if name in self.skip:
            copied.output.append(name)
            return
        inner = f"{name}_float"
        copied.output.append(inner)
        self.ranges[inner] = self.ranges[node.input[0] if node.op_type in self.same_grid else name]
        self.ranges[name] = self.ranges[inner]
        results = {port.name for port in self.proto.graph.output}
        self.renamed[name] = name if name in results else f"{name}_dq"
        self.activation(inner, self.renamed[name])

    def activation(self, name, result):
        array = self.ranges[name]
        low, high = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
        scale = np.float32((high - low) / 255 or 1.0)
        self.scales[result] = scale
        zero = np.clip(round(self.lowest - low / scale), self.lowest, self.highest)
        self.pair(name, result, scale, self.kind(zero))

    def weight(self, name, axis):
        """Per channel; a channel of zeros gets scale 0, as some quantizers do."""
        if f"{name}_dq" in self.scales:
            return f"{name}_dq"
        array = self.constants[name]
        others = tuple(a for a in range(array.ndim) if a != axis) if axis is not None else None
        scale = np.asarray(np.abs(array).max(axis=others) / 127, np.float32)
        self.scales[f"{name}_dq"] = scale
        extra = {} if axis is None else {"axis": axis}
        zero = np.zeros(scale.shape, np.int8)
        if self.float_weights and (scale > 0).all():
            self.pair(name, f"{name}_dq", scale, zero, **extra)
            return f"{name}_dq"
        shape = [-1 if a == axis else 1 for a in range(array.ndim)] if axis is not None else []
        steps = np.rint(array / np.where(scale == 0, 1, scale).reshape(shape))
        names = [self.constant(f"{name}_int8", steps.astype(np.int8)), self.constant(f"{name}_scale", scale)]
        self.add("DequantizeLinear", [*names, self.constant(f"{name}_zero", zero)], [f"{name}_dq"], **extra)
        return f"{name}_dq"

    def bias(self, name, scale):
        safe = np.asarray(np.where(scale == 0, 1, scale), np.float32)
        integers = np.rint(self.constants[name] / safe).astype(np.int32)
        names = [self.constant(f"{name}_int32", integers), self.constant(f"{name}_scale", safe)]
        self.add("DequantizeLinear", names, [f"{name}_dq"], axis=0)
        return f"{name}_dq"

    def pair(self, name, result, scale, zero, **extra):
        names = [self.constant(f"{name}_scale", scale), self.constant(f"{name}_zero", zero)]
        self.add("QuantizeLinear", [name, *names], [f"{name}_q"], **extra)
        self.add("DequantizeLinear", [f"{name}_q", *names], [result], **extra)

    def constant(self, name, array):
        from onnx import numpy_helper

        self.proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, op, inputs, outputs, **attributes):
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, outputs, **attributes))
        return self.nodes[-1]


def quantize(
    model, feeds, *, unsigned=False, float_biases=False, float_weights=False, skip=(), same_grid=SAME_GRID
):
    """A QDQ model.

    Activations not in `skip` get a Q/DQ pair, on the grid of the input behind ops in `same_grid`.
    Weights are int8 with a DQ (float with a Q/DQ pair where `float_weights`), biases int32 with a DQ
    (float where `float_biases`).
    """
    settings = {"unsigned": unsigned, "float_biases": float_biases, "float_weights": float_weights}
    return Quantizer(model, feeds, skip=skip, same_grid=same_grid, **settings).run()


@pytest.fixture(autouse=True)
def own_numbers(request, monkeypatch):
    """A test that draws from its module's RNG draws the same numbers, whichever tests ran before it."""
    if hasattr(request.module, "RNG"):
        monkeypatch.setattr(request.module, "RNG", np.random.default_rng(0))


@pytest.fixture(scope="session")
def tools():
    """The functions above, for tests that hypothesis runs too."""

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
            quantized = quantize(model, feeds, **settings)
            return assert_same(model, seed), assert_same_steps(quantized, feeds, steps)

    return Tools
