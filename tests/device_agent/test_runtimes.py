"""The agent with the real ONNX Runtime and LiteRT, on models of a few nodes."""

import importlib.metadata

import flatbuffers
import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper

from device_agent import protocol
from device_agent.protocol import Bench, Facts, Measurement, Port, Probe, Sample, Verification, Verify


def only(events, kind):
    assert isinstance(events[-1], protocol.Done), events[-1]
    (found,) = [event for event in events if isinstance(event, kind)]
    return found


@pytest.fixture
def agent(start):
    return start(fakes=False)


@pytest.fixture
def plan(root):
    """Writes a model with its samples and gives the plan."""

    def build(payload, runtime, inputs, outputs, samples):
        (root / "model").write_bytes(payload)
        named = []
        for index, (given, expected) in enumerate(samples):
            files = {f"{index}.in{i}": tensor for i, tensor in enumerate(given)}
            goals = {f"{index}.out{i}": tensor for i, tensor in enumerate(expected)}
            for name, tensor in {**files, **goals}.items():
                (root / name).write_bytes(tensor.tobytes())
            named.append(Sample(tuple(files), tuple(goals)))
        return protocol.Plan(".", "model", runtime, 1, tuple(inputs), tuple(outputs), tuple(named))

    return build


def onnx_bytes(*, opset=17, ir_version=8, op="Mul"):
    """y = x * w, and z = x + y; x float32 [2, 3]."""
    weight = np.array([[1, 2, 3]], "float32")
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"]), helper.make_node("Add", ["x", "y"], ["z"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("y", "z")],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    return model.SerializeToString()


def tflite_bytes(*, version=1):
    """y = x + x for x int8 [1, 4], at steps 0.5 and 1, so that the integers stay the same."""

    def tensor(name, scale):
        made = schema.TensorT()
        made.name, made.type, made.shape, made.buffer = name, schema.TensorType.INT8, [1, 4], 0
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = [scale], [0]
        return made

    code, op, graph, model = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    code.version = version
    op.opcodeIndex, op.inputs, op.outputs = 0, [0, 0], [1]
    op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    graph.tensors, graph.operators = [tensor("x", 0.5), tensor("y", 1.0)], [op]
    graph.inputs, graph.outputs = [0], [1]
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [schema.BufferT()]
    builder = flatbuffers.Builder(256)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


X = np.array([[1, -2, 3], [0.5, 5, -6]], "float32")
Y = X * np.array([[1, 2, 3]], "float32")
FLOATS = [Port(name, "float32", (2, 3)) for name in "xyz"]
Q = np.array([[-128, -1, 3, 127]], "int8")
BYTES = [Port("x", "int8", (1, 4), 0.5), Port("y", "int8", (1, 4), 1.0)]


@pytest.fixture
def onnx_plan(plan):
    def build(**model):
        samples = [([X], [Y, X + Y]), ([-X], [-Y, -X - Y])]
        return plan(onnx_bytes(**model), "onnxruntime", FLOATS[:1], FLOATS[1:], samples)

    return build


@pytest.fixture
def tflite_plan(plan):
    def build(*, payload=None, **model):
        payload = tflite_bytes(**model) if payload is None else payload
        return plan(payload, "litert", BYTES[:1], BYTES[1:], [([Q], [Q]), ([Q[:, ::-1]], [Q[:, ::-1]])])

    return build


def test_onnxruntime(agent, onnx_plan):
    request = onnx_plan()
    found = only(agent.ask(Verify(request)), Verification)
    assert found.ok
    assert [output.differing for output in found.outputs] == [0, 0]
    assert found.providers == ("CPUExecutionProvider",)
    answer = agent.ask(Bench(request, min_runs=70, min_duration_ns=0, warmup_ns=0))
    measurement = only(answer, Measurement)
    assert measurement.runs == 70
    assert measurement.runtime_version == importlib.metadata.version("onnxruntime")
    assert measurement.memory.runtime_bytes > measurement.memory.start_bytes
    assert measurement.import_ns > measurement.first_inference_ns > 0


def test_onnxruntimes_telemetry_leaves_nothing_on_the_device(start, onnx_plan, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.delenv("CI", raising=False)  # there it is off by itself
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(home))
    agent, request = start(fakes=False), onnx_plan()
    only(agent.ask(Probe(import_runtimes=True)), Facts)
    only(agent.ask(Verify(request)), Verification)
    only(agent.ask(Bench(request, min_runs=70, min_duration_ns=0, warmup_ns=0)), Measurement)
    assert list(home.rglob("*")) == []


def test_litert(agent, tflite_plan):
    request = tflite_plan()
    found = only(agent.ask(Verify(request)), Verification)
    assert found.ok
    assert found.outputs[0].differing == 0
    assert found.providers in {("XNNPACK",), ("built-in kernels",)}
    measurement = only(agent.ask(Bench(request, min_runs=70, min_duration_ns=0, warmup_ns=0)), Measurement)
    assert measurement.runs == 70
    assert measurement.runtime_version == importlib.metadata.version("ai-edge-litert")


def test_wrong_expectations_are_found(agent, onnx_plan, root):
    request = onnx_plan()
    (root / "1.out0").write_bytes((-Y + 1).astype("float32").tobytes())
    found = only(agent.ask(Verify(request)), Verification)
    assert not found.ok
    assert found.outputs[0].worst_absolute == pytest.approx(1.0)
    assert found.outputs[0].worst_relative == pytest.approx(1.0 / np.ptp(Y))
    assert found.outputs[0].worst_sample == 1
    assert found.outputs[1].differing == 0


def test_nan_on_the_device_is_seen(agent, plan):
    graph = helper.make_graph(
        [helper.make_node("Log", ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    port = Port("x", "float32", (2,))
    samples = [([np.array([-1, 1], "float32")], [np.array([0, 0], "float32")])]
    request = plan(model.SerializeToString(), "onnxruntime", [port], [port._replace(name="y")], samples)
    found = only(agent.ask(Verify(request, tolerance_relative=1e9)), Verification)
    assert not found.ok
    assert found.outputs[0].not_finite == 1


@pytest.mark.parametrize("model", [{"opset": 99}, {"ir_version": 99}])
def test_model_too_new_for_onnxruntime(model, agent, onnx_plan):
    failed = agent.ask(Verify(onnx_plan(**model)))[-1]
    assert (type(failed), failed.kind) == (protocol.Failed, "runtime-too-old")
    assert "99" in failed.message


def test_model_too_new_for_litert(agent, tflite_plan):
    failed = agent.ask(Verify(tflite_plan(version=99)))[-1]
    assert (type(failed), failed.kind) == (protocol.Failed, "runtime-too-old")
    assert "'ADD' version '99'" in failed.message


def test_corrupt_models_are_python_errors(agent, onnx_plan, tflite_plan, root):
    for request in (tflite_plan(), onnx_plan()):
        (root / "model").write_bytes(b"no model at all")
        failed = agent.ask(Verify(request))[-1]
        assert (type(failed), failed.kind) == (protocol.Failed, "python-error")
        assert "Traceback" in failed.detail


def test_output_of_another_size_than_promised(agent, onnx_plan, root):
    request = onnx_plan()
    for index in (0, 1):
        (root / f"{index}.out0").write_bytes(bytes(16))
    other = request._replace(outputs=(request.outputs[0]._replace(shape=(2, 2)), request.outputs[1]))
    failed = agent.ask(Verify(other))[-1]
    assert failed.kind == "bad-request"
    assert "what onnxruntime computed: 24 bytes, but port y is float32 [2, 2]" in failed.message


def test_wrong_number_of_ports(agent, tflite_plan):
    request = tflite_plan()
    two = request._replace(inputs=request.inputs * 2, samples=(Sample(("0.in0", "0.in0"), ("0.out0",)),))
    failed = agent.ask(Verify(two))[-1]
    assert "the model has 1 inputs and 1 outputs, the plan 2 and 1" in failed.message


def test_probe_finds_the_runtimes_with_their_versions(agent):
    facts = only(agent.ask(Probe(import_runtimes=True)), Facts)
    found = {runtime.name: runtime for runtime in facts.runtimes}
    assert found["onnxruntime"].version == importlib.metadata.version("onnxruntime")
    assert found["litert"].version == importlib.metadata.version("ai-edge-litert")
    assert found["litert"].package == "ai-edge-litert"
    assert found["onnxruntime"].imports is True
    assert found["litert"].imports is True
    assert facts.numpy_version == np.__version__


def test_schema_of_the_test_model_is_valid():
    onnx.checker.check_model(onnx.load_from_string(onnx_bytes()))
