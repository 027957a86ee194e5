import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edgepipe.bundle import Port
from edgepipe.errors import DataShapeMismatch, DataTypeMismatch, ModelError, ModelUnreadable
from edgepipe.runtime import (
    BATCH,
    dequantize,
    from_port,
    infer,
    open_session,
    quantize,
    to_port,
    usable_cores,
)

INT8 = Port(name="x", dtype="int8", shape=(1, 4), permutation=(0, 1), scale=0.1, zero_point=3)


def test_onnx_runs_as_the_reference_does(tiny_onnx):
    model = tiny_onnx(batch=None)
    x = np.random.default_rng(0).normal(size=(37, 3, 4, 5)).astype(np.float32)
    session = open_session(model.payload, "onnx")
    (found,) = infer(session, model.inputs, model.outputs, x)
    (expected,) = ReferenceEvaluator(onnx.load_from_string(model.payload)).run(None, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert session.dynamic_batch
    assert session.providers == ("CPUExecutionProvider",)


def test_a_fixed_batch_is_run_sample_by_sample(tiny_onnx):
    fixed, free = tiny_onnx(batch=1), tiny_onnx(batch=None)
    x = np.random.default_rng(1).normal(size=(5, 3, 4, 5)).astype(np.float32)
    session = open_session(fixed.payload, "onnx")
    assert not session.dynamic_batch
    np.testing.assert_allclose(
        infer(session, fixed.inputs, fixed.outputs, x)[0],
        infer(open_session(free.payload, "onnx"), free.inputs, free.outputs, x)[0],
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("batch", [1, None])
def test_tflite_in_another_layout_and_in_integers(tiny_tflite, batch):
    model = tiny_tflite(batch=batch)
    x = np.random.default_rng(2).uniform(-14, 14, size=(BATCH + 3, 3, 4, 5)).astype(np.float32)
    session = open_session(model.payload, "tflite")
    (found,) = infer(session, model.inputs, model.outputs, x)
    # The graph is max(x, 0) in int8 on the grid of step 0.1: the oracle is arithmetic.
    expected = np.clip(np.rint(x / np.float32(0.1)), 0, 127) * np.float32(0.1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.shape == x.shape
    assert session.dynamic_batch == (batch is None)
    assert session.runtime == "litert"


def test_outputs_are_the_callers(tiny_tflite):
    model = tiny_tflite(batch=1)
    session = open_session(model.payload, "tflite")
    ones = np.ones((1, 4, 5, 3), np.int8)
    (first,) = session.run([ones])
    kept = first.copy()
    session.run([ones * 50])
    np.testing.assert_array_equal(first, kept)


def test_no_samples_give_no_outputs(tiny_onnx):
    model = tiny_onnx(batch=None)
    (found,) = infer(
        open_session(model.payload, "onnx"), model.inputs, model.outputs, np.zeros((0, 3, 4, 5), np.float32)
    )
    assert found.shape == (0, 2, 4, 5)


def test_progress_counts_samples(tiny_onnx):
    from edgepipe.events import StageAdvanced, StageEnded, StageStarted

    events = []
    model = tiny_onnx(batch=None)
    x = np.zeros((BATCH + 1, 3, 4, 5), np.float32)
    infer(open_session(model.payload, "onnx"), model.inputs, model.outputs, x, emit=events.append, title="t")
    assert events == [
        StageStarted("t", BATCH + 1),
        StageAdvanced("t", BATCH),
        StageAdvanced("t", BATCH + 1),
        StageEnded("t"),
    ]


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
@pytest.mark.parametrize("payload", [b"", b"no model at all" * 9])
def test_what_is_no_model_is_refused(kind, payload):
    with pytest.raises(ModelUnreadable) as caught:
        open_session(payload, kind)
    assert caught.value.remedy


def test_a_cut_file_is_refused(tiny_onnx, tiny_tflite):
    with pytest.raises(ModelUnreadable):
        open_session(tiny_tflite(batch=1).payload[:200], "tflite")
    with pytest.raises(ModelUnreadable):
        open_session(tiny_onnx(batch=1).payload[:-40], "onnx")


def test_wrong_samples_are_refused_before_the_runtime_sees_them(tiny_tflite):
    model = tiny_tflite(batch=1)
    session = open_session(model.payload, "tflite")
    with pytest.raises(DataShapeMismatch, match="shape") as caught:
        infer(session, model.inputs, model.outputs, np.zeros((2, 4, 5, 3), np.float32))
    assert "[3, 4, 5]" in caught.value.got  # what the user must give is the source's layout
    with pytest.raises(DataTypeMismatch):
        infer(session, model.inputs, model.outputs, np.full((2, 3, 4, 5), "a"))


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_what_the_runtime_refuses_is_a_model_error(kind, tiny_onnx, tiny_tflite):
    model = {"onnx": tiny_onnx, "tflite": tiny_tflite}[kind](batch=1)
    with pytest.raises(ModelError):
        open_session(model.payload, kind).run([np.zeros((1, 9), np.float64)])


def test_two_inputs_are_refused(tiny_onnx):
    model = tiny_onnx(batch=None)
    with pytest.raises(ModelError, match="one input"):
        infer(open_session(model.payload, "onnx"), model.inputs * 2, model.outputs, np.zeros((1, 3, 4, 5)))


@given(
    hnp.arrays(np.float32, (1, 4), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    st.floats(2**-20, 2.0**10, width=32),
    st.integers(-128, 127),
)
def test_quantizing_is_onnx_quantize_linear(values, scale, zero_point):
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    info = [
        helper.make_tensor_value_info(n, t, None) for n, t in (("x", 1), ("s", 1), ("z", TensorProto.INT8))
    ]
    graph = helper.make_graph([node], "g", info, [helper.make_tensor_value_info("y", TensorProto.INT8, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    feed = {"x": values, "s": np.array(scale, np.float32), "z": np.array(zero_point, np.int8)}
    expected = open_session(model.SerializeToString(), "onnx").run(list(feed.values()))[0]
    port = Port(name="x", dtype="int8", shape=(1, 4), permutation=(0, 1), scale=scale, zero_point=zero_point)
    np.testing.assert_array_equal(quantize(values, port), expected)


@given(hnp.arrays(np.int8, (2, 4)))
def test_integers_survive_the_way_out_and_in(q):
    np.testing.assert_array_equal(quantize(dequantize(q, INT8), INT8), q)


@given(st.permutations([1, 2, 3]))
def test_ports_undo_their_permutation(axes):
    x = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    order = (0, *axes)
    shape = (1, *(x.shape[axis] for axis in axes))
    port = Port(name="x", dtype="float32", shape=shape, permutation=order)
    np.testing.assert_array_equal(from_port(to_port(x, port), port), x)


def test_litert_says_nothing(tiny_tflite, tmp_path):
    (tmp_path / "m.tflite").write_bytes(tiny_tflite(batch=1).payload)
    code = (
        "import pathlib, sys; from edgepipe.runtime import open_session;"
        "open_session(pathlib.Path(sys.argv[1]).read_bytes(), 'tflite'); print('still here', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "m.tflite"], capture_output=True, text=True, check=True
    )
    assert done.stderr == "still here\n"


_SESSION = """
import sys
from pathlib import Path
from edgepipe.runtime import open_session
open_session(Path(sys.argv[1]).read_bytes(), "onnx")
"""


def without(*names, **more):
    """This process's environment, changed."""
    return {name: value for name, value in os.environ.items() if name not in names} | more


def test_the_runtimes_telemetry_is_off(tiny_onnx, tmp_path):
    home, file = tmp_path / "home", tmp_path / "model.onnx"
    home.mkdir()
    file.write_bytes(tiny_onnx(batch=1).payload)
    # Where CI is set, ONNX Runtime turns it off by itself, and this test could not fail.
    environment = without("ORT_DISABLE_TELEMETRY", "CI", HOME=str(home), TMPDIR=str(home))
    subprocess.run([sys.executable, "-c", _SESSION, str(file)], env=environment, check=True)
    assert not list(home.rglob("*"))


def test_who_wants_telemetry_may_have_it():
    code = "import edgepipe, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = without(ORT_DISABLE_TELEMETRY="0")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "0\n"


def test_threads_are_no_more_than_the_cores_that_the_process_may_use():
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    program += "from edgepipe.runtime import usable_cores; print(usable_cores())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "1\n"
    assert usable_cores() >= 1
