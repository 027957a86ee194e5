import numpy as np
import onnx
import onnxruntime
import pytest


@pytest.fixture
def compute():
    """Runs a model in ONNX Runtime without optimization, on normal noise or on given samples."""

    def run(model, x=None, batch=2):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.payload, options)
        spec = model.inputs[0]
        if x is None:
            shape = [size or batch for size in spec.shape]
            x = np.random.default_rng(1).normal(size=shape).astype(spec.dtype)
        return session.run(None, {spec.name: x})

    return run


@pytest.fixture
def op_types():
    """Types of a model's nodes, in order."""
    return lambda model: [node.op_type for node in onnx.load_from_string(model.payload).graph.node]
