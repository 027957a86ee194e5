"""Emulated devices as a user has them: a real engine, real sshd, Arm builds of the runtimes.

They need a container engine that runs Arm programs, and the bases of `docker/make-base.py` or of the registry
at hand: no test fetches those. Else they are skipped; EDGEPIPE_REQUIRE_EMULATOR=1 makes that a failure.
"""

import json
import os
import shutil
import socket
import subprocess

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgepipe
from edgepipe.device.ssh import connect
from edgepipe.device.ssh_config import SshOptions
from edgepipe.emulator import assets, device
from edgepipe.emulator.engine import find_engine
from edgepipe.emulator.image import BASE_REPOSITORY, DEBIAN_NAMES
from edgepipe.errors import (
    AuthenticationFailed,
    EngineMissing,
    HostKeyChanged,
    UsageError,
    VerificationFailed,
)
from edgepipe.events import StageStarted, Warned
from edgepipe.job import Effort, Job, Place
from edgepipe.report.table import deploy_summary
from edgepipe.target import load_target
from edgepipe.workflow.place import open_device

pytestmark = pytest.mark.xdist_group("emulator")


def base_at_hand(target):
    """Why the target's device cannot be built without fetching a base; "" where it can."""
    try:
        engine = find_engine()
    except EngineMissing as error:
        return f"{error.what}: {error.got}"
    names = (
        f"{BASE_REPOSITORY}:{target.emulation.suite}-{DEBIAN_NAMES[target.architecture]}",
        target.emulation.image,
    )
    here = [name for name in names if engine.inspect(name, kind="image")]
    return "" if here else f"neither {' nor '.join(names)} is among the engine's images"


def needs(target):
    """Skips a test that cannot run here; fails it where all must run."""
    lacking = base_at_hand(target)
    if lacking and os.environ.get("EDGEPIPE_REQUIRE_EMULATOR"):
        pytest.fail(lacking)
    if lacking:
        pytest.skip(lacking)
    return target


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
        assert device.devices() == ()


@pytest.fixture
def raspberrypi4():
    """A Raspberry Pi 4 that is up."""
    return device.up(needs(load_target("raspberrypi4")))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A convolution and a dense layer that tell four patterns apart, with data: the arguments of a job."""
    folder = tmp_path_factory.mktemp("model")
    random = np.random.default_rng(0)
    patterns = random.normal(size=(4, 3, 8, 8)).astype(np.float32)
    y = np.arange(96) % 4
    x = patterns[y] + random.normal(0, 0.3, (96, 3, 8, 8)).astype(np.float32)
    weights = {
        "w": random.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32),
        "d": random.normal(0, 0.1, (512, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "patterns",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, folder / "patterns.onnx")
    np.savez(folder / "patterns.npz", x=x.astype(np.float32), y=y)
    return {"model": str(folder / "patterns.onnx"), "data": folder / "patterns.npz", "recipe": "int8_fast"}


def ssh(found, *argv):
    options = SshOptions(
        config_path=found.access.folder / "none",
        known_hosts_path=found.access.known_hosts,
        identity_files=(found.access.identity,),
        use_agent=False,
    )
    with connect(found.host, options) as link:
        return link.run(list(argv)).stdout.decode().strip()


def test_up_again_gives_the_same_device_and_does_nothing(raspberrypi4):
    events = []
    again = device.up(load_target("raspberrypi4"), emit=events.append)
    assert again == raspberrypi4
    assert not [event for event in events if not isinstance(event, Warned)]
    assert device.devices() == (raspberrypi4,)
    assert raspberrypi4.memory_bytes <= 4 << 30


def test_a_session_runs_on_the_boards_processor(raspberrypi4):
    told = ssh(raspberrypi4, "sh", "-c", "echo $QEMU_CPU $EDGEPIPE_EMULATED; uname -m; id -u")
    assert told.split() == ["cortex-a72", "raspberrypi4", "aarch64", "1500"]


def test_the_user_has_no_rights(raspberrypi4):
    told = ssh(
        raspberrypi4, "sh", "-c",
        "exec 2>&1; touch /sys/x /etc/x /opt/edgepipe/x; grep CapEff /proc/self/status; "
        "cat /etc/ssh/ssh_host_ed25519_key",
    )  # fmt: skip
    assert told.count("Read-only file system") + told.count("Permission denied") == 4
    assert "CapEff:\t0000000000000000" in told
    assert "PRIVATE" not in told


def test_only_the_key_of_this_device_lets_in(raspberrypi4, tmp_path, fresh_key):
    options = SshOptions(
        config_path=tmp_path / "none",
        known_hosts_path=raspberrypi4.access.known_hosts,
        identity_files=(fresh_key,),
        prompt=lambda question: "edge",
        use_agent=False,
    )
    with pytest.raises(AuthenticationFailed):
        connect(raspberrypi4.host, options)
    root = msgspec.structs.replace(raspberrypi4.host, user="root")
    with pytest.raises(AuthenticationFailed):
        connect(root, msgspec.structs.replace(options, identity_files=(raspberrypi4.access.identity,)))


@pytest.fixture
def fresh_key(tmp_path):
    import paramiko

    path = tmp_path / "id_ecdsa"
    paramiko.ECDSAKey.generate(bits=256).write_private_key_file(str(path))
    return path


def test_another_server_on_its_port_is_refused(raspberrypi4, tmp_path, fresh_key):
    import paramiko

    line = raspberrypi4.access.known_hosts.read_text().split()
    other = paramiko.ECDSAKey.from_private_key_file(str(fresh_key))
    known = tmp_path / "known_hosts"
    known.write_text(f"{line[0]} {other.get_name()} {other.get_base64()}\n")
    with pytest.raises(HostKeyChanged):
        connect(raspberrypi4.host, SshOptions(config_path=tmp_path / "none", known_hosts_path=known))


def test_ssh_itself_gets_in_with_the_files_that_were_written(raspberrypi4):
    if not shutil.which("ssh"):
        pytest.skip("no ssh")
    command = [
        "ssh",
        "-o",
        "BatchMode=yes",
        "-F",
        raspberrypi4.access.config,
        "raspberrypi4",
        "echo",
        "$QEMU_CPU",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "cortex-a72\n", done.stderr


def test_the_agent_tells_the_board_and_that_it_is_emulated(raspberrypi4):
    with open_device(Place(emulate=True), lambda event: None, load_target("raspberrypi4")) as found:
        facts = found.facts
    assert found.kind == "emulated"
    assert facts.emulated
    assert facts.board == "Raspberry Pi 4 Model B Rev 1.4"
    assert (facts.cpu.model, facts.cpu.architecture, facts.cpu.cores_online) == ("Cortex-A72", "aarch64", 4)
    limited = raspberrypi4.memory_bytes < facts.memory.total_bytes
    assert facts.memory.limit_bytes == (raspberrypi4.memory_bytes if limited else None)
    assert facts.container in ("docker", "podman")
    assert {runtime.name: runtime.version for runtime in facts.runtimes} == {
        "litert": "2.3.0",
        "onnxruntime": "1.31.1",
    }


@pytest.mark.parametrize("name", ["raspberrypi4", "raspberrypi3", "x86"])
def test_deploy_verifies_bit_for_bit_and_tells_no_time(name, model, tmp_path, capsys):
    target = needs(load_target(name))
    job = Job(target=name, **model)
    effort = Effort(min_duration_s=0.1)
    run = edgepipe.deploy(job, Place(emulate="docker"), effort, store=tmp_path / "runs")
    assert run.kind == "emulated"
    assert run.host == f"emulated {name} ({find_engine().kind})"
    assert {each.artifact.format for each in run.results} == set(target.formats)
    for each in run.results:
        assert each.verification.ok
        if each.artifact.precision == "int8":
            for output in each.verification.outputs:
                # tflite-runtime's kernels of 2023 round some halves the other way than the host's LiteRT.
                assert output.differing == 0 or (name == "raspberrypi3" and output.worst_steps <= 1)
        assert each.measurement.outcome == "ok"
        assert each.measurement.kind == "emulated"
        assert "emulated device" in each.measurement.emulation
    from rich.console import Console

    Console(width=140).print(deploy_summary(run, tmp_path / "runs"))
    assert "emulated" in capsys.readouterr().out


def test_a_processor_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    """Stands for QEMU's silently wrong kernels: golden outputs that this processor does not give."""
    target = needs(load_target("raspberrypi-zero2w"))
    folder = tmp_path / "docker"
    shutil.copytree(assets.docker_folder(), folder)
    file = folder / "selftest" / "golden.json"
    golden = json.loads(file.read_text())
    golden["tflite"]["outputs"][2][3] += 40
    file.write_text(json.dumps(golden))
    for module in ("edgepipe.emulator.assets", "edgepipe.emulator.image"):
        monkeypatch.setattr(f"{module}.docker_folder", lambda: folder)
    with pytest.raises(VerificationFailed) as caught:
        device.up(target)
    assert "raspberrypi-zero2w" in caught.value.what
    assert "tflite: outputs are off by 40 steps" in caught.value.got
    assert "cortex-a53" in caught.value.where
    assert "raspberrypi-zero2w" not in {each.target for each in device.devices()}
    assert not device.access_to("raspberrypi-zero2w").folder.exists()


@pytest.mark.parametrize("moment", ["start", "self-test"])
def test_ctrl_c_leaves_no_container(moment):
    target = needs(load_target("raspberrypi3"))
    device.down(target.name)

    def press(event):
        if isinstance(event, StageStarted) and event.stage.startswith(moment):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device.up(target, emit=press)
    assert target.name not in {each.target for each in device.devices()}


def test_a_device_that_somebody_stopped_is_started_anew():
    target = needs(load_target("raspberrypi3"))
    first = device.up(target)
    find_engine().run("kill", first.container)
    assert [each.state for each in device.devices() if each.target == target.name] == ["exited"]
    second = device.up(target)
    assert second.state == "running"
    assert ssh(second, "uname", "-m") == "armv7l"


def test_down_leaves_nothing():
    target = needs(load_target("raspberrypi3"))
    gone = device.up(target)
    assert device.down(target.name) == (target.name,)
    assert device.down(target.name) == ()
    assert not gone.access.folder.exists()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", gone.port), 5).close()


def test_a_container_without_a_target_is_asked_for_one():
    with (
        pytest.raises(UsageError, match="not said"),
        open_device(Place(emulate="docker"), lambda event: None),
    ):
        raise AssertionError
