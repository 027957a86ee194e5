"""Lowered opsets: the lowest that is right, and never one that changes the model."""

import numpy as np
import onnx
import onnxruntime
import pytest

from edgepipe.convert import opset

ARRAYS = {
    "w": np.ones((4, 3, 1, 1), np.float32), "axes": np.array([2, 3]), "shape": np.array([-1, 3, 64]),
    "sizes": np.array([1, 3, 16, 16]), "s": np.float32(0.1), "z": np.int8(0),
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "current", "lowest"),
    [
        ("y = Conv(x, w)", 21, 13),
        ("y = Relu(x)", 21, 13),
        ("a = Reshape(x, shape)  y = Transpose<perm=[0,2,1]>(a)", 21, 13),
        ("y = HardSwish(x)", 21, 14),
        ("y = ReduceMean(x, axes)", 21, 18),
        ("y = ReduceMean<axes=[2,3]>(x)", 17, 13),
        ("q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)", 21, 13),
        ("y = AveragePool<kernel_shape=[2,2]>(x)", 22, 13),
        ("y = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)", 21, 19),
        ("y = Resize<mode=\"nearest\">(x, , , sizes)", 21, 19),
        ("y = Gelu(x)", 20, 20),
        ("y = Softmax(x)", 21, 13),
        ("y = Reshape<allowzero=0>(x, shape)", 21, 14),
    ],
)  # fmt: skip
def test_the_lowest_opset_that_means_the_same(body, current, lowest):
    proto = model_of(body, current)
    before = proto.SerializeToString()
    assert opset.lower(proto) == lowest
    assert proto.opset_import[0].version == lowest
    assert proto.ir_version <= 7
    onnx.checker.check_model(proto)
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    old, new = (
        onnxruntime.InferenceSession(each).run(None, {"x": x})[0]
        for each in (before, proto.SerializeToString())
    )
    np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-6)  # another version may have another kernel


def model_of(body, version):
    """A model x float32 [n, 3, 8, 8] to y, of whatever shape."""
    graph = onnx.parser.parse_graph(f"net (float[n,3,8,8] x) => (y) {{ {body} }}")
    graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None))
    used = {name for node in graph.node for name in node.input}
    graph.initializer.extend(
        onnx.numpy_helper.from_array(ARRAYS[name], name) for name in sorted(used & ARRAYS.keys())
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto)


def test_unused_domains_go_and_used_ones_stay(build_model):
    proto = build_model("net (float[n,3] x) => (float[n,3] y) { y = Relu(x) }").to_onnx()
    proto.opset_import.extend(
        [onnx.helper.make_opsetid("com.microsoft", 1), onnx.helper.make_opsetid("ai.onnx.ml", 2)]
    )
    proto.graph.node.append(onnx.helper.make_node("FastGelu", ["x"], ["z"], domain="com.microsoft"))
    opset.lower(proto)
    assert {(each.domain, each.version) for each in proto.opset_import} == {("", 13), ("com.microsoft", 1)}


def test_a_runtime_for_each_opset():
    versions = [tuple(map(int, opset.runtime_for(each).split("."))) for each in range(13, 25)]
    assert versions == sorted(versions)
    assert opset.runtime_for(17) == "1.12"
    assert opset.runtime_for(99) == ".".join(onnxruntime.__version__.split(".")[:2])
