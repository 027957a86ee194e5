"""Results checked on emulated devices, as a user does it: another architecture, real sshd, real Arm runtimes.

They need what `test_real_devices.py` needs, and are skipped or failed likewise.
"""

import json
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgepipe
from edgepipe.emulator import device
from edgepipe.emulator.engine import find_engine
from edgepipe.emulator.image import BASE_REPOSITORY, DEBIAN_NAMES
from edgepipe.errors import EngineMissing
from edgepipe.job import Effort, Job, Place
from edgepipe.target import load_target
from edgepipe.workflow.outputs import Stop, compare_outputs

pytestmark = pytest.mark.xdist_group("emulator")
BRIEF = Effort(min_duration_s=0.1, min_runs=8)


@pytest.fixture(scope="module")
def shared_state(tmp_path_factory):
    return tmp_path_factory.mktemp("emulators")


@pytest.fixture(autouse=True)
def state(shared_state, monkeypatch):
    """The devices of this module outlive its tests, and are nobody else's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(shared_state))


@pytest.fixture(scope="module", autouse=True)
def all_down(shared_state):
    yield
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(shared_state))
        try:
            device.down()
        except EngineMissing:
            return


def needs(name):
    """The target; skips where its device cannot run, and fails there where all must run."""
    target = load_target(name)
    try:
        engine = find_engine()
        base = f"{BASE_REPOSITORY}:{target.emulation.suite}-{DEBIAN_NAMES[target.architecture]}"
        here = [each for each in (base, target.emulation.image) if engine.inspect(each, kind="image")]
        lacking = "" if here else f"{base} is not among the engine's images"
    except EngineMissing as error:
        lacking = error.what
    if lacking and os.environ.get("EDGEPIPE_REQUIRE_EMULATOR"):
        pytest.fail(lacking)
    if lacking:
        pytest.skip(lacking)
    return target


@pytest.fixture(scope="module")
def deployed(tmp_path_factory, shared_state):
    """A store with a run on an emulated Raspberry Pi 4, and the folder of its model and data."""
    needs("raspberrypi4")
    folder = tmp_path_factory.mktemp("deployed")
    random = np.random.default_rng(0)
    y = np.arange(96) % 4
    x = random.normal(size=(4, 3, 8, 8))[y] + random.normal(0, 0.3, (96, 3, 8, 8))
    np.savez(folder / "data.npz", x=x.astype(np.float32), y=y)
    weights = {"w": random.normal(0, 0.3, (8, 3, 3, 3)), "d": random.normal(0, 0.1, (512, 4))}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "d"], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 3, 8, 8]), ("y", [1, 4]))
    ]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, folder / "net.onnx")
    job = Job(
        model=str(folder / "net.onnx"), data=folder / "data.npz", target="raspberrypi4", recipe="int8_fast"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(shared_state))
        run = edgepipe.deploy(job, Place(emulate=True), BRIEF, store=folder / "runs")
    return folder, run


def test_an_emulated_run_is_reproduced_from_its_export(deployed):
    folder, run = deployed
    exported = edgepipe.export_run(folder / "runs", "last", folder / "run.zip", with_inputs=("model", "data"))
    found = edgepipe.reproduce(exported.file, store=folder / "none")
    assert found.verdict == "REPRODUCED", found.first_difference
    assert (found.kind, found.recorded_kind) == ("emulated", "emulated")
    states = {(each.subject, each.artifact): each for each in found.checks}
    for result in run.results:
        name = result.artifact.name
        assert states["file", name].state == "equal"
        assert states["outputs", name].state == "equal"
        assert states["peak memory", name].state in ("equal", "within")
        latency = states["median latency", name]
        assert (latency.state, latency.recorded, latency.found) == ("not compared", "", "")


def test_another_device_output_is_told_with_its_sample(deployed, tmp_path):
    folder, run = deployed
    record = json.loads((folder / "runs" / run.id / "run.json").read_text())
    [result] = [each for each in record["results"] if each["artifact"]["name"] == "int8.tflite"]
    result["verification"]["digests"][1][0] = "0" * 64
    (tmp_path / run.id).mkdir()
    (tmp_path / run.id / "run.json").write_text(json.dumps(record))
    given = edgepipe.workflow.reproducing.Given(bundle=folder / "runs" / run.id / "bundle")
    found = edgepipe.reproduce(run.id, store=tmp_path, given=given)
    assert found.verdict == "DIFFERS"
    assert found.first_difference.startswith("outputs of int8.tflite: ")
    assert "1 of 4 samples, the first is 1" in found.first_difference


def test_integers_are_the_same_on_x86_and_arm64(deployed):
    folder, run = deployed
    stops = [
        Stop(name="x86", place=Place(emulate="native"), target=load_target("x86")),
        Stop(name="raspberrypi4", place=Place(emulate=True), target=needs("raspberrypi4")),
    ]
    report = compare_outputs(folder / "runs" / run.id / "bundle", stops, layers=True)
    assert [(site.architecture, site.kind) for site in report.sites] == [
        ("x86_64", "embedded"), ("aarch64", "emulated"),
    ]  # fmt: skip
    assert len(report.results) == 8
    for each in report.results:
        assert not each.reason
        if each.artifact.startswith("int8"):
            assert each.exact
            assert each.first_layer == ""
        assert each.worst_relative < 1e-5
