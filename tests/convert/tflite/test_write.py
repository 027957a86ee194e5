"""The file itself: determinism, sharing, alignment, versions, ports, float16."""

import numpy as np
import pytest

from edgepipe.convert.tflite import emit

RNG = np.random.default_rng(9)
DILATED = {"group": 4, "dilations": [2, 2]}


def normal(*shape):
    """Drawn from the test's own numbers."""
    return RNG.normal(size=shape).astype(np.float32)


@pytest.fixture
def cnn(tools):
    """Conv, depthwise conv, addition, pool, dense layer, softmax."""
    return tools.model(
        [
            ("Conv", ["x", "a", "b"], ["c"], {"pads": [1] * 4, "strides": [2, 2]}),
            ("Relu", ["c"], ["r"], {}),
            ("Conv", ["r", "d"], ["e"], {"pads": [1] * 4, "group": 8}),
            ("Add", ["e", "r"], ["s"], {}),
            ("GlobalAveragePool", ["s"], ["p"], {}),
            ("Flatten", ["p"], ["f"], {}),
            ("Gemm", ["f", "w", "v"], ["g"], {"transB": 1}),
            ("Softmax", ["g"], ["y"], {"axis": 1}),
        ],
        {"x": ["n", 3, 12, 12]},
        {"a": normal(8, 3, 3, 3), "b": normal(8), "d": normal(8, 1, 3, 3), "w": normal(6, 8), "v": normal(6)},
    )


def parse(emission):
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(emission.payload, 0)


def test_same_model_same_bytes(tools, cnn):
    feeds = tools.feeds(cnn)
    quantized = tools.quantize(cnn, feeds)
    for model in (cnn, quantized):
        assert emit(model).payload == emit(model).payload


def test_bytes_do_not_depend_on_the_hash_seed(cnn, tmp_path):
    import os
    import subprocess
    import sys

    path = tmp_path / "cnn.onnx"
    path.write_bytes(cnn.payload)
    program = (
        "import onnx, hashlib\n"
        "from edgepipe.model import onnx_model\n"
        "from edgepipe.convert.tflite import emit\n"
        f"print(hashlib.sha256(emit(onnx_model(onnx.load({str(path)!r}), 'm')).payload).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_an_int8_cnn_holds_no_float_and_no_transpose(tools, cnn):
    from ai_edge_litert.interpreter import Interpreter

    feeds = tools.feeds(cnn)
    emission = tools.same_steps(tools.quantize(cnn, feeds), feeds, steps=16)
    assert not {"TRANSPOSE", "DEQUANTIZE"} & set(emission.op_counts)
    details = Interpreter(model_content=emission.payload).get_tensor_details()
    assert {np.dtype(detail["dtype"]).name for detail in details} <= {"int8", "int32"}


def test_int8_weights_are_symmetric_per_channel(tools, cnn):
    emission = emit(tools.quantize(cnn, tools.feeds(cnn)))
    model = parse(emission)
    graph = model.subgraphs[0]
    axes = {}
    for op in graph.operators:
        code = model.operatorCodes[op.opcodeIndex].builtinCode
        if code in {3, 4}:  # CONV_2D, DEPTHWISE_CONV_2D
            data, weight, bias = (graph.tensors[index].quantization for index in op.inputs)
            axes[code] = weight.quantizedDimension
            assert not np.any(weight.zeroPoint)
            assert not np.any(bias.zeroPoint)
            np.testing.assert_allclose(bias.scale, data.scale[0] * weight.scale, rtol=1e-6)
            assert graph.tensors[op.inputs[2]].type == 2  # INT32
    assert axes == {3: 0, 4: 3}


def test_fixed_grid_of_softmax(tools, cnn):
    """The model asks for another grid than the specification fixes: a conversion follows."""
    emission = emit(tools.quantize(cnn, tools.feeds(cnn)))
    model = parse(emission)
    graph = model.subgraphs[0]
    softmax = next(op for op in graph.operators if model.operatorCodes[op.opcodeIndex].builtinCode == 25)
    grid = graph.tensors[softmax.outputs[0]].quantization
    assert (grid.scale[0], grid.zeroPoint[0]) == (1 / 256, -128)
    assert emission.op_counts["MUL"] == 1


def test_float32_ports_convert_at_the_boundary(tools, cnn):
    feeds = tools.feeds(cnn)
    quantized = tools.quantize(cnn, feeds)
    emission = tools.same_steps(quantized, feeds, steps=16, ports="float32")
    inner = emit(quantized)
    assert [port.dtype for port in (*emission.inputs, *emission.outputs)] == ["float32", "float32"]
    assert [port.scale for port in (*emission.inputs, *emission.outputs)] == [None, None]
    extra = {
        op: emission.op_counts[op] - inner.op_counts.get(op, 0)
        for op in emission.op_counts
        if emission.op_counts[op] != inner.op_counts.get(op, 0)
    }
    assert extra == {"DEQUANTIZE": 1, "QUANTIZE": 1}
    outside, inside = (tools.run_tflite(made, feeds)[0].astype(np.float32) for made in (emission, inner))
    np.testing.assert_array_equal(outside, inside)


def test_buffers_are_aligned_and_shared(tools):
    weight = normal(8, 8)
    model = tools.model(
        [("Gemm", ["x", "a"], ["h"], {}), ("Relu", ["h"], ["r"], {}), ("Gemm", ["r", "b"], ["y"], {})],
        {"x": [1, 8]},
        {"a": weight, "b": weight},
    )
    emission = tools.same(model)
    assert emission.payload.count(weight.T.tobytes()) == 1
    assert emission.payload.index(weight.T.tobytes()) % 16 == 0
    assert emission.payload[4:8] == b"TFL3"


def test_signature_and_metadata(tools, cnn):
    model = parse(emit(cnn))
    signature = model.signatureDefs[0]
    assert signature.signatureKey == b"serving_default"
    assert [port.name for port in signature.inputs] == [b"x"]
    assert [port.name for port in signature.outputs] == [b"y"]
    assert model.metadata[0].name == b"min_runtime_version"
    assert bytes(model.buffers[model.metadata[0].buffer].data).rstrip(b"\0") == b"2.5.0"


def test_float16_halves_the_file(tools, cnn):
    model = tools.model([("Conv", ["x", "w"], ["y"], {})], {"x": [1, 32, 4, 4]}, {"w": normal(64, 32, 3, 3)})
    full, half = tools.same(model), tools.same(model, tolerance=5e-3, float16=True)
    assert half.precision == "float16"
    assert len(half.payload) < 0.55 * len(full.payload)
    assert half.op_counts == {"CONV_2D": 1, "DEQUANTIZE": 1}


def test_weights_past_the_range_of_float16_stay_whole(tools):
    weight = normal(16, 16)
    weight[0, 0] = 1e6
    model = tools.model([("Gemm", ["x", "w"], ["y"], {})], {"x": [1, 16]}, {"w": weight})
    assert tools.same(model, float16=True).op_counts == {"FULLY_CONNECTED": 1}


def test_counts_and_needs(cnn, tools):
    emission = emit(cnn)
    assert emission.op_counts == {
        "ADD": 1, "CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "MEAN": 1, "PAD": 1,
        "RESHAPE": 1, "SOFTMAX": 1,
    }  # fmt: skip
    assert emission.needs == {"litert": "1.0", "tflite-runtime": "2.5"}
    assert emission.name == "float32.tflite"


@pytest.mark.parametrize(
    ("nodes", "code", "version"),
    [
        ([("Conv", ["x", "w"], ["y"], {})], "CONV_2D", {"float32": 1, "int8": 3}),
        ([("Conv", ["x", "g"], ["y"], {"group": 2})], "CONV_2D", {"float32": 6, "int8": 6}),
        ([("Conv", ["x", "d"], ["y"], {"group": 4})], "DEPTHWISE_CONV_2D", {"float32": 1, "int8": 3}),
        ([("Conv", ["x", "d"], ["y"], DILATED)], "DEPTHWISE_CONV_2D", {"float32": 2, "int8": 3}),
        ([("Softmax", ["x"], ["y"], {})], "SOFTMAX", {"float32": 1, "int8": 2}),
        ([("Tanh", ["x"], ["y"], {})], "TANH", {"float32": 1, "int8": 2}),
        ([("HardSwish", ["x"], ["y"], {})], "HARD_SWISH", {"float32": 1, "int8": 1}),
    ],
)
def test_operators_have_the_lowest_version(tools, nodes, code, version):
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    constants = {"w": normal(4, 4, 3, 3), "g": normal(4, 2, 3, 3), "d": normal(4, 1, 3, 3)}
    used = {name: array for name, array in constants.items() if name in nodes[0][1]}
    model = tools.model(nodes, {"x": [1, 4, 8, 8]}, used)
    for emission in tools.both(model, steps=2):
        codes = {record.builtinCode: record.version for record in parse(emission).operatorCodes}
        assert codes[getattr(BuiltinOperator, code)] == version[emission.precision]
