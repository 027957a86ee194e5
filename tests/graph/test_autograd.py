"""ONNX graphs in PyTorch: outputs as ONNX Runtime's, derivatives as finite differences."""

import os
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgepipe.errors import MissingExtra, UnsupportedOp
from edgepipe.graph.autograd import to_torch
from edgepipe.graph.simplify import simplify
from edgepipe.model import onnx_model

torch = pytest.importorskip("torch")
DATA = Path(os.environ.get("EDGEPIPE_DATA", Path(__file__).parents[3] / "shared" / "data"))

IMAGE = (2, 4, 9, 7)
NODES = """
y = Abs (x)
y = Add (x, w)
y = Div (x, u)
y = Mul (w, x)
y = Sub (x, w)
y = Pow (u, x)
y = Sum (x, w, x)
y = Max (x, w)
y = Min (x, w, x)
y = Neg (x)
y = Exp (x)
y = Relu (x)
y = Sigmoid (x)
y = Tanh (x)
y = Softplus (x)
y = HardSwish (x)
y = HardSigmoid <alpha = 0.3> (x)
y = Elu <alpha = 0.7> (x)
y = LeakyRelu <alpha = 0.2> (x)
y = PRelu (x, u)
y = Erf (x)
a = Abs (x) b = Sqrt (a) y = Reciprocal (b)
a = Exp (x) y = Log (a)
y = Clip (x, low)
y = Clip (x, low, high)
y = Softmax <axis = 1> (x)
y = LogSoftmax (x)
y = Identity (x)
y = Dropout (x)
y = GlobalAveragePool (x)
y = GlobalMaxPool (x)
y = Flatten <axis = 2> (x)
y = Flatten <axis = -3> (x)
y = Transpose (x)
y = Transpose <perm = [0, 2, 3, 1]> (x)
y = Concat <axis = 1> (x, x)
y = Reshape (x, shape)
y = Expand (x, wider)
y = Tile (x, repeats)
a = Unsqueeze (x, axes) y = Squeeze (a, axes)
y = Slice (x, ones, threes)
y = Slice (x, last, before_first, both, backwards)
y = Gather <axis = 2> (x, places)
y = Pad (x, pads)
y = Pad (x, pads, low)
y = Pad <mode = "reflect"> (x, inner)
y = Pad <mode = "edge"> (x, inner)
y = DepthToSpace <blocksize = 2> (x)
y = DepthToSpace <blocksize = 2, mode = "CRD"> (x)
a = Slice (x, zero, eight, rows) b = Slice (a, zero, six, columns) y = SpaceToDepth <blocksize = 2> (b)
a, y = Split <axis = 1> (x, parts)
y = ReduceMean <axes = [2, 3]> (x)
y = ReduceSum <keepdims = 0> (x, axes)
y = ReduceMax <axes = [-1], keepdims = 0> (x)
y = ReduceMin (x)
a = Shape (x) y = Reshape (x, a)
a = Cast <to = 6> (x) y = Cast <to = 1> (a)
y = BatchNormalization (x, w1, w2, w3, w4)
y = LayerNormalization <axis = -1> (x, n1, n2)
y = MatMul (x, m)
a = Flatten (x) y = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (a, g, bias)
y = Conv <pads = [1, 1, 1, 1]> (x, k, bias)
y = Conv <pads = [0, 1, 2, 0], strides = [2, 1]> (x, k)
y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, k)
y = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, k)
y = Conv <dilations = [2, 2]> (x, k)
y = Conv <group = 4> (x, d)
y = Conv <auto_pad = "VALID"> (x, k)
y = ConvTranspose <strides = [2, 2], pads = [0, 1, 1, 0], output_padding = [1, 0]> (x, t, bias)
y = ConvTranspose <group = 2> (x, t2)
y = MaxPool <kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 0, 1]> (x)
y = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)
y = MaxPool <kernel_shape = [2, 2], dilations = [2, 2]> (x)
y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 0, 1]> (x)
y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 0, 1], count_include_pad = 1> (x)
y = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (x, , scales)
y = Resize <mode = "linear"> (x, , scales)
y = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (x, , , sizes)
""".strip().splitlines()


def constants(rng):
    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    real = {
        "w": normal(4, 1, 1), "u": rng.uniform(0.5, 2, (4, 1, 1)).astype(np.float32), "m": normal(7, 5),
        "low": np.float32(-0.5), "high": np.float32(0.8), "scales": np.float32([1, 1, 2, 2]),
        "n1": normal(7), "n2": normal(7), "g": normal(3, 252), "bias": normal(3), "k": normal(3, 4, 3, 3),
        "d": normal(4, 1, 3, 3), "t": normal(4, 3, 3, 2), "t2": normal(4, 2, 2, 2),
        **{f"w{place}": rng.uniform(0.5, 2, 4).astype(np.float32) for place in (1, 2, 3, 4)},
    }  # fmt: skip
    whole = {
        "shape": [0, -1, 7], "wider": [3, 1, 1, 1, 1], "repeats": [1, 2, 1, 1], "axes": [1], "ones": [1, 1],
        "threes": [2, 3], "last": [3, 8], "before_first": [-9, -20], "both": [1, 2], "backwards": [-1, -2],
        "zero": [0], "eight": [8], "six": [6], "rows": [2], "columns": [3], "places": [0, -1, 3],
        "pads": [0, 0, 1, 0, 0, 1, 0, 2], "inner": [0, 0, 1, 0, 0, 0, 0, 2], "parts": [1, 3],
        "sizes": [2, 4, 12, 10],
    }  # fmt: skip
    return real | {name: np.array(values, np.int64) for name, values in whole.items()}


@pytest.mark.parametrize("text", NODES)
def test_ops_compute_what_onnx_runtime_computes(text, build_model):
    rng = np.random.default_rng(0)
    available = constants(rng)
    named = available.keys() & set(re.findall(r"\w+", text))
    opset = 17 if "axes =" in text or "Reduce" not in text else 13
    graph = f"g (float[n, 4, 9, 7] x) => (float y) {{ {text} }}"
    proto = onnx.parser.parse_graph(graph)
    proto.initializer.extend(onnx.numpy_helper.from_array(available[name], name) for name in sorted(named))
    proto.output[0].type.tensor_type.ClearField("shape")
    whole = onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    model = onnx_model(onnx.shape_inference.infer_shapes(whole), "ops")
    x = rng.normal(size=IMAGE).astype(np.float32)
    expected = onnxruntime.InferenceSession(model.payload).run(None, {"x": x})[0]
    found = to_torch(model)({"x": torch.from_numpy(x)})["y"].numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture
def network(build_model):
    rng = np.random.default_rng(3)
    return build_model(
        """
        network (float[n, 2, 6, 6] x) => (float[n, 3] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, k, b)
            c = Tanh (a)
            d = GlobalAveragePool (c)
            e = Flatten (d)
            y = Gemm <transB = 1> (e, g, h)
        }
        """,
        k=rng.normal(size=(4, 2, 3, 3)).astype(np.float32),
        b=rng.normal(size=4).astype(np.float32),
        g=rng.normal(size=(3, 4)).astype(np.float32),
        h=rng.normal(size=3).astype(np.float32),
    )


def test_gradients_are_those_of_finite_differences(network):
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 2, 6, 6)).astype(np.float32))
    graph = to_torch(network)
    weight = graph.constants["k"].requires_grad_()
    y = graph({"x": x})["y"]
    (gradient,) = torch.autograd.grad(y.square().sum(), [weight])
    rng = np.random.default_rng(2)
    for _ in range(5):
        direction = torch.from_numpy(rng.normal(size=weight.shape).astype(np.float32))
        ahead, behind = (
            graph({"x": x}, parameters={"k": weight.detach() + step * direction})["y"].double().square().sum()
            for step in (2e-3, -2e-3)
        )
        assert float((gradient * direction).sum()) == pytest.approx(float(ahead - behind) / 4e-3, rel=5e-3)


def test_activations_can_be_watched(network):
    x = torch.zeros(1, 2, 6, 6)
    found = to_torch(network)({"x": x}, watch=["c"])
    assert list(found) == ["y", "c"]
    assert found["c"].shape == (1, 4, 6, 6)


def test_unknown_ops_are_named_with_a_way_out(build_model):
    model = build_model(
        "g (float[n, 4] x) => (float[n, 4] y) { a = CumSum (x, one) y = Sin (a) }", one=np.int64(1)
    )
    with pytest.raises(UnsupportedOp, match="no gradient") as caught:
        to_torch(model)
    assert "CumSum, Sin" in caught.value.got
    assert "sqnr" in caught.value.remedy


def test_unknown_forms_are_named(build_model):
    model = build_model(
        'g (float[n, 1, 4, 4] x) => (float[n, 1, 8, 8] y) { y = Resize <mode = "cubic"> (x, , scales) }',
        scales=np.float32([1, 1, 2, 2]),
    )
    with pytest.raises(UnsupportedOp, match="Resize") as caught:
        to_torch(model)({"x": torch.zeros(1, 1, 4, 4)})
    assert "cubic" in caught.value.got


def test_absence_of_torch_is_explained(network, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingExtra, match="PyTorch"):
        to_torch(network)


def test_efficientnet_lite0():
    path = DATA / "efficientnet_lite0_fp32.onnx"
    if not path.exists():
        pytest.skip(f"needs {path}")
    model = simplify(onnx_model(onnx.load(path), path.stem))
    x = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    expected = onnxruntime.InferenceSession(model.payload).run(None, {"input": x})[0]
    with torch.no_grad():
        (found,) = to_torch(model)({"input": torch.from_numpy(x)}).values()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
