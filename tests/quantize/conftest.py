import onnx
import onnxruntime
import pytest


@pytest.fixture
def compute():
    """Runs a model in ONNX Runtime as it stands; `watched` are more tensors to return."""

    def run(model, x, watched=()):
        proto = onnx.load_from_string(model.payload)
        proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in watched)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
        return session.run(None, {model.inputs[0].name: x})

    return run


class Qdq:
    """A QDQ graph, read back from the file: what is in it, independently of what wrote it."""

    def __init__(self, model):
        self.proto = onnx.load_from_string(model.payload)
        self.nodes = list(self.proto.graph.node)
        self.constants = {
            each.name: onnx.numpy_helper.to_array(each) for each in self.proto.graph.initializer
        }
        self.producers = {name: node for node in self.nodes for name in node.output}

    def types(self, *left_out):
        return [node.op_type for node in self.nodes if node.op_type not in left_out]

    def core(self):
        """Types of the nodes besides Q and DQ."""
        return self.types("QuantizeLinear", "DequantizeLinear")

    def grid(self, name):
        """Scale and zero point of an activation, by the name it had in the float graph or its DQ's output."""
        for node in self.nodes:
            if node.op_type == "QuantizeLinear" and name in (
                node.input[0],
                node.name.removesuffix(".quantize"),
            ):
                return float(self.constants[node.input[1]]), int(self.constants[node.input[2]])
        raise KeyError(name)

    def constant(self, node, index):
        """Integers, scales and axis of a quantized constant of a node."""
        dequantizer = self.producers[node.input[index]]
        assert dequantizer.op_type == "DequantizeLinear"
        axis = next((attribute.i for attribute in dequantizer.attribute if attribute.name == "axis"), None)
        return self.constants[dequantizer.input[0]], self.constants[dequantizer.input[1]], axis

    def node(self, op_type):
        return next(node for node in self.nodes if node.op_type == op_type)


@pytest.fixture
def read_qdq():
    return Qdq
