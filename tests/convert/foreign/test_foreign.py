"""Models that other tools quantized, as they wrote them: taken as they are, emitted with those decisions.

The files beside this one were made by make_fixtures.py with the tools that README.md names.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgepipe import sources
from edgepipe.convert import ort, tflite
from edgepipe.errors import UnsupportedOp
from edgepipe.events import Warned
from edgepipe.graph import foreign
from edgepipe.job import SourceSpec
from edgepipe.model import onnx_model
from edgepipe.runtime import infer, open_session
from edgepipe.workflow.rewrite import convert

HERE = Path(__file__).parent
MODELS = sorted(path.stem for path in HERE.glob("*_*.onnx"))
# TFLite's 16-bit kernels know no zero point.
REFUSED = {"onnxruntime_int16_activations", "onnxruntime_uint16_activations"}
WRITTEN = [name for name in MODELS if name not in REFUSED]
# Operators on float, where a tool left a tensor unquantized on purpose; none in all others.
FLOAT_OPERATORS = {
    "modelopt_default": 8, "modelopt_float32": 8, "nncf_default": 1, "nncf_depthwise": 1, "nncf_mixed": 1,
    "onnxruntime_conv_alone": 3, "torchao_x86": 5,
}  # fmt: skip
# Float biases are rounded on loading, and what one reader takes quantized all do: a step of the output.
TOUCHED = ("aimet", "modelopt", "nncf", "onnxruntime_float_bias", "torchao")
REROUNDED = "onnxruntime_uint8_weights"


def samples(count=48):
    """Inputs like those that the tools calibrated on, but others: float32 [count, 3, 16, 16]."""
    rng = np.random.default_rng(77)
    coarse = rng.standard_normal((count, 3, 4, 4)).repeat(4, axis=2).repeat(4, axis=3)
    return (coarse + 0.3 * rng.standard_normal((count, 3, 16, 16))).astype(np.float32)


def simulate(payload, feeds):
    """Outputs of ONNX Runtime with its graph left as it is: every Q and DQ computes what it says."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(payload, options).run(None, feeds)


def load(name):
    return sources.load(str(HERE / f"{name}.onnx")).model


def constants(graph):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def signed(zero_point):
    """A zero point in int8 terms."""
    shift = {np.dtype(np.uint8): 128, np.dtype(np.uint16): 32768}.get(zero_point.dtype, 0)
    return int(zero_point.reshape(-1)[0]) - shift


def activation_grids(proto):
    """Scale and zero point of all activations, whether Q nodes name them or ops on integers."""
    known, found = constants(proto.graph), set()
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in known:
            places = [(1, 2)]
        elif node.op_type in {"QLinearConv", "QLinearAdd"}:
            places = [(1, 2), (6, 7)]
        elif node.op_type == "QGemm":
            places = [(1, 2), (7, 8)]
        elif node.op_type in {"QLinearConcat", "QLinearAveragePool"}:
            places = [(0, 1)] if node.op_type == "QLinearConcat" else [(1, 2), (3, 4)]
        else:
            continue
        for scale, zero in places:
            if known[node.input[scale]].size > 1:  # brought onto one grid, see test_channelwise.py
                continue
            step = np.float32(known[node.input[scale]].reshape(-1)[0])
            found.add((float(step), signed(known[node.input[zero]])))
    return found


def integer_weights(proto):
    """Elements of all quantized constants of two axes or more, rounded by ONNX Runtime where still float."""
    known, found = constants(proto.graph), []
    for node in proto.graph.node:
        arrays = [known.get(name) for name in node.input]
        if node.op_type == "QuantizeLinear" and arrays[0] is not None and arrays[0].ndim > 1:
            found.append(rounded(node, arrays))
        elif node.op_type == "DequantizeLinear" and arrays[0] is not None and arrays[0].ndim > 1:
            found.append(arrays[0])
        elif node.op_type in {"QLinearConv", "QGemm"}:
            found.append(arrays[3])
    return sorted((array.shape, array.dtype.name, array.tobytes()) for array in found)


def rounded(node, arrays):
    """What ONNX Runtime gives for a QuantizeLinear of a constant."""
    result = onnx.helper.np_dtype_to_tensor_dtype(arrays[2].dtype)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("QuantizeLinear", list(node.input), ["q"], axis=0)],
        "rounding", [],
        [onnx.helper.make_tensor_value_info("q", result, None)],
        [numpy_helper.from_array(array, name) for name, array in zip(node.input, arrays, strict=True)],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 19)]
    return simulate(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString(), {}
    )[0]


def tflite_tensors(emission):
    """Tensors of the file as LiteRT sees them: details, with the elements of constants under "data"."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.BUILTIN_REF
    interpreter = Interpreter(model_content=emission.payload, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    made = {index for each in interpreter._get_ops_details() for index in each["outputs"]}
    ports = {each["index"] for each in interpreter.get_input_details()}
    tensors = {each["index"]: each for each in interpreter.get_tensor_details()}
    for index, each in tensors.items():
        if index not in made | ports:
            each["data"] = interpreter.get_tensor(index)
    return tensors, interpreter._get_ops_details()


@pytest.mark.parametrize("name", MODELS)
def test_loading_keeps_every_grid_and_every_integer_of_the_weights(name):
    raw, loaded = onnx.load(HERE / f"{name}.onnx"), load(name).to_onnx()
    assert activation_grids(raw) <= activation_grids(loaded)
    assert integer_weights(raw) == integer_weights(loaded)
    assert not {node.domain for node in loaded.graph.node} - {""}


@pytest.mark.parametrize("name", MODELS)
def test_loading_keeps_what_the_model_computes(name):
    x = samples()
    original = onnx.load(HERE / f"{name}.onnx")
    before = simulate(original.SerializeToString(), {"x": x})[0].astype(np.float32)
    after = simulate(load(name).payload, {"x": x})[0]
    if not name.startswith(TOUCHED):
        np.testing.assert_allclose(after, before, atol=1e-5)
    else:
        assert signal_to_noise(before, after) > 40


def signal_to_noise(reference, other):
    """In dB."""
    return 10 * np.log10(np.square(reference).sum() / max(np.square(reference - other).sum(), 1e-9))


@pytest.mark.parametrize("name", MODELS)
def test_what_was_brought_into_form_stays_as_it_is(name):
    once = load(name).to_onnx()
    twice = foreign.settle(onnx.ModelProto.FromString(once.SerializeToString()))
    assert activation_grids(twice) == activation_grids(once)
    assert [node.op_type for node in twice.graph.node] == [node.op_type for node in once.graph.node]


def test_zero_points_that_were_left_out_have_the_type_that_the_model_says():
    """From opset 21 a Q may name the type of its integers alone; a DQ has that of the constant it reads."""
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    arrays = {
        "s": np.float32(0.03), "w": weight, "ws": np.abs(weight).max((1, 2, 3)) / 127,
        "b": rng.integers(-99, 99, 4).astype(np.int8), "bs": np.float32(0.02), "t": np.float32(0.2),
    }  # fmt: skip
    node, signed_type = onnx.helper.make_node, onnx.TensorProto.INT8
    nodes = [
        node("QuantizeLinear", ["x", "s"], ["xq"], output_dtype=signed_type),
        node("DequantizeLinear", ["xq", "s"], ["xd"]),
        node("QuantizeLinear", ["w", "ws"], ["wq"], axis=0, output_dtype=signed_type),
        node("DequantizeLinear", ["wq", "ws"], ["wd"], axis=0),
        node("DequantizeLinear", ["b", "bs"], ["bd"]),
        node("Conv", ["xd", "wd", "bd"], ["c"]),
        node("QuantizeLinear", ["c", "t"], ["cq"], output_dtype=signed_type),
        node("DequantizeLinear", ["cq", "t"], ["y"]),
    ]
    shapes = {"x": ["n", 3, 8, 8], "y": ["n", 4, 6, 6]}
    ports = [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()]
    held = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "terse", ports[:1], ports[1:], held)
    opsets = [onnx.helper.make_opsetid("", 21)]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    x = rng.normal(size=(8, 3, 8, 8)).astype(np.float32)
    [exact] = simulate(proto.SerializeToString(), {"x": x})
    model = onnx_model(foreign.settle(proto), "terse")
    for emission in (
        ort.emit(model, activation="uint8"),
        ort.emit(model, activation="int8"),
        tflite.emit(model),
    ):
        session = open_session(emission.payload, emission.format)
        found = infer(session, emission.inputs, emission.outputs, x)[0]
        assert np.abs(exact - found).max() <= 1.01 * arrays["t"]
        assert np.ptp(found) > 20 * arrays["t"]


def grids_before_activations(proto):
    """Grids of what a Relu or Clip takes: a fused kernel writes on that of the function's output alone."""
    found = onnx.ModelProto.FromString(proto.SerializeToString())
    takers = {name: node for node in proto.graph.node for name in node.input}
    kept = [node for node in proto.graph.node if node.op_type == "QuantizeLinear" and ends(node, takers)]
    del found.graph.node[:]
    found.graph.node.extend(kept)
    return activation_grids(found)


def ends(quantizer, takers):
    dequantizer = takers.get(quantizer.output[0])
    after = takers.get(dequantizer.output[0]) if dequantizer is not None else None
    return after is not None and after.op_type in {"Relu", "Clip"}


@pytest.mark.parametrize("name", WRITTEN)
def test_tflite_has_the_grids_and_integers_that_the_tool_chose(name):
    raw = onnx.load(HERE / f"{name}.onnx")
    tensors, operators = tflite_tensors(tflite.emit(load(name)))
    grids = {
        (float(np.float32(each["quantization"][0])), int(each["quantization"][1]))
        for each in tensors.values()
        if each["dtype"] in (np.int8, np.int16)
    }
    assert activation_grids(raw) - grids_before_activations(raw) <= grids
    if name == REROUNDED:
        return
    wanted = [np.frombuffer(data, dtype).astype(np.int64) for _, dtype, data in integer_weights(raw)]
    wanted = [array - 128 * (name.startswith("onnxruntime_uint8")) for array in wanted]
    written = [
        each["data"].ravel() for each in tensors.values() if "data" in each and each["dtype"] == np.int8
    ]
    have = {np.sort(array.astype(np.int64)).tobytes() for array in written}
    missing = [array for array in wanted if np.sort(array).tobytes() not in have]
    float_linears = [each for each in operators if each["op_name"] in LINEAR and is_float(each, tensors)]
    assert len(missing) <= len(float_linears)


LINEAR = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}


def is_float(operator, tensors):
    return all(tensors[index]["dtype"] == np.float32 for index in operator["outputs"])


@pytest.mark.parametrize("name", WRITTEN)
def test_tflite_computes_what_the_tool_simulates(name):
    x = samples()
    emission = tflite.emit(load(name), ports="float32")
    tensors, operators = tflite_tensors(emission)
    left = [each for each in operators if each["op_name"] != "DEQUANTIZE" and is_float(each, tensors)]
    assert len(left) == FLOAT_OPERATORS.get(name, 0)
    ours = infer(open_session(emission.payload, "tflite"), emission.inputs, emission.outputs, x)[0]
    simulated = simulate((HERE / f"{name}.onnx").read_bytes(), {"x": x})[0]
    if name in FLOAT_OPERATORS:
        assert signal_to_noise(simulated, ours) > 40
        return
    step = tensors[operators[-1]["inputs"][0]]["quantization"][0]
    allowed = 8 if step < 1e-2 else 3  # the steps of 16 bits are 256 times finer
    assert np.abs(ours - simulated).max() <= (allowed + 0.01) * step
    assert (np.abs(ours - simulated) <= 1.01 * step).mean() > 0.9


@pytest.mark.parametrize("activation", ["uint8", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_onnx_runtime_computes_what_the_tool_simulates(name, activation):
    x = samples()
    emission = ort.emit(load(name), activation=activation)
    ours = infer(open_session(emission.payload, "onnx"), emission.inputs, emission.outputs, x)[0]
    assert signal_to_noise(simulate((HERE / f"{name}.onnx").read_bytes(), {"x": x})[0], ours) > 36


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_16_bits_with_a_zero_point_are_refused_for_tflite_with_a_remedy(name):
    with pytest.raises(UnsupportedOp, match="zero point") as refusal:
        tflite.emit(load(name))
    assert "symmetrically" in refusal.value.remedy


def test_weights_with_a_zero_point_are_rounded_again_by_half_a_step_at_most_and_told():
    model = load(REROUNDED)
    emission = tflite.emit(model)
    (note,) = emission.notes
    assert "zero point" in note
    assert float(note.split("up to ")[1].split(" ")[0]) <= 0.5
    tensors, _ = tflite_tensors(emission)
    reals = {}
    for each in tensors.values():
        scales = each["quantization_parameters"]["scales"]
        if "data" in each and each["dtype"] == np.int8 and scales.size > 1:
            axis = each["quantization_parameters"]["quantized_dimension"]
            along = [-1 if place == axis else 1 for place in range(each["data"].ndim)]
            real = each["data"] * scales.reshape(along)
            reals[real.size] = (real, scales.max())
    known = constants(onnx.load(HERE / f"{REROUNDED}.onnx").graph)
    checked = 0
    for weight, integers in known.items():
        if not weight.endswith("weight_quantized"):
            continue
        stem = weight.removesuffix("_quantized")
        zero, scale = known[f"{stem}_zero_point"], known[f"{stem}_scale"]
        wanted = (integers.astype(np.int64) - int(zero.reshape(()))) * float(scale.reshape(()))
        if wanted.size in reals and [array.size for array in known.values()].count(wanted.size) == 1:
            real, coarsest = reals[wanted.size]
            gap = np.abs(np.sort(real, axis=None) - np.sort(wanted, axis=None)).max()
            assert gap <= 0.51 * coarsest
            checked += 1
    assert checked >= 3


def test_convert_writes_the_file_and_warns_of_what_it_could_not_keep(tmp_path):
    heard = []
    for name in (REROUNDED, "modelopt_default", "onnxruntime_default"):
        spec = SourceSpec(model=str(HERE / f"{name}.onnx"))
        emission = convert(spec, "tflite", tmp_path / f"{name}.tflite", emit=heard.append)
        assert (tmp_path / f"{name}.tflite").read_bytes() == emission.payload
    texts = [event.text for event in heard if isinstance(event, Warned)]
    assert [("zero point" in text, "in float" in text) for text in texts] == [(True, False), (False, True)]


def test_the_script_beside_names_the_calibration_samples(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import make_fixtures

    assert make_fixtures.samples().shape == (make_fixtures.SAMPLES, 3, 16, 16)
    sys.modules.pop("make_fixtures")
