"""The agent: built alike everywhere, installed once, asked over SSH, and honest when it fails."""

import ast
import os
import shlex
import shutil
import stat
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import msgspec
import pytest

import device_agent
from device_agent import protocol
from edgepipe.bundle import Manifest, write_bundle
from edgepipe.device.agent import InstalledAgent, agent_digest, find_python, install
from edgepipe.device.local import LocalTransport, clean_environment
from edgepipe.device.push import push
from edgepipe.device.runtimes import Task, is_older, pick_runtime
from edgepipe.device.ssh import connect
from edgepipe.device.upload import ROOT
from edgepipe.device.zipapp import build_agent
from edgepipe.errors import (
    AgentFailed,
    BundleError,
    DeviceDiskFull,
    DeviceError,
    DevicePythonMissing,
    DeviceRuntimeMissing,
    DeviceRuntimeTooOld,
    DeviceTimeout,
    EdgepipeError,
)
from edgepipe.events import StageAdvanced, StageEnded
from edgepipe.golden import seal
from edgepipe.target import Runtime, Target

PACKAGE = Path(device_agent.__file__).parent
ONNXRUNTIME = Runtime(name="onnxruntime", package="onnxruntime", version="1.20")
LITERT = Runtime(name="litert", package="ai-edge-litert", version="2.3")
TFLITE_RUNTIME = Runtime(name="tflite-runtime", package="tflite-runtime", version="2.14")


# --- building ---------------------------------------------------------------------------------------


def test_the_agent_has_the_same_bytes_from_every_copy(tmp_path):
    copy = tmp_path / "elsewhere" / "device_agent"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"compiled")
    (copy / ".DS_Store").write_bytes(b"x")
    for path in copy.rglob("*.py"):
        os.utime(path, (1, 1))
        path.chmod(0o777)
    assert build_agent(copy) == build_agent(PACKAGE) == build_agent()


def test_the_agent_holds_sources_alone_in_order():
    with zipfile.ZipFile(BytesIO(build_agent())) as archive:
        names = archive.namelist()
        assert names == sorted(names)
        assert {"__main__.py", "device_agent/__init__.py", "device_agent/protocol.py"} <= set(names)
        assert all(name.endswith(".py") for name in names)
        for entry in archive.infolist():
            assert (entry.date_time, entry.compress_type) == ((1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED)
            ast.parse(archive.read(entry))


def test_a_changed_source_is_another_agent(tmp_path):
    copy = tmp_path / "device_agent"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "protocol.py").write_text((copy / "protocol.py").read_text() + "\n# changed\n")
    assert build_agent(copy) != build_agent()


# --- installing and probing -------------------------------------------------------------------------


def test_installing_again_sends_nothing(place):
    transport, root = place
    events = []
    first = install(transport, emit=events.append)
    path = root / ROOT / f"agent-{agent_digest()[:12]}.pyz"
    assert path.read_bytes() == build_agent()
    assert (first.path, first.root, first.digest) == (str(path), str(root / ROOT), agent_digest())
    before = path.stat().st_mtime_ns
    again = install(transport, emit=events.append)
    assert path.stat().st_mtime_ns == before
    assert msgspec.structs.replace(again, transport=first.transport) == first
    assert "already there" in events[-1].detail
    assert [entry.name for entry in (root / ROOT).iterdir()] == [path.name]


def test_probe_tells_what_the_device_is(place):
    facts = install(place[0]).probe()
    assert facts.cpu.architecture == os.uname().machine
    assert facts.python.version.split(".")[0] == "3"


def test_the_embedded_device_says_that_it_is_one(embedded):
    with connect(embedded.host, embedded.ssh_options) as transport:
        facts = install(transport).probe()
    assert facts.emulated
    assert facts.cpu.model in embedded.description
    assert facts.python.version == ".".join(map(str, sys.version_info[:3]))


def tools_without_python(folder):
    folder.mkdir(parents=True)
    for name in ("sh", "cat", "cut", "df", "dirname", "grep", "mkdir", "mv", "rm", "sha256sum", "tail", "wc"):
        (folder / name).symlink_to(shutil.which(name))
    return folder


def script(path, text):
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def bare(tmp_path):
    """A transport whose PATH has the basic tools and no Python, and the folder of those tools."""
    tools = tools_without_python(tmp_path / "tools")
    environment = clean_environment(tmp_path / "home") | {"PATH": str(tools)}
    with LocalTransport(tmp_path / "home", environment) as transport:
        yield transport, tools


def test_a_device_without_python(start_openssh, tmp_path):
    tools = tools_without_python(tmp_path / "tools")
    server = start_openssh(SetEnv=f"HOME={tmp_path}/sshd0/home PATH={tools}")
    with connect(server.host, server.ssh_options) as transport:
        assert transport.run(["cat"], stdin=b"works").stdout == b"works"
        with pytest.raises(DevicePythonMissing) as error:
            install(transport)
    assert "apt-get install python3" in error.value.remedy
    assert not (server.root / ROOT).exists()


def test_a_user_without_a_shell(start_openssh):
    server = start_openssh(ForceCommand="echo This account is currently not available. >&2; exit 1")
    with connect(server.host, server.ssh_options) as transport, pytest.raises(DeviceError) as error:
        install(transport)
    assert error.value.what == "the device does not run commands"
    assert error.value.got == "This account is currently not available."


def test_a_server_that_allows_no_session(start_openssh):
    server = start_openssh(MaxSessions=0)
    with connect(server.host, server.ssh_options) as transport, pytest.raises(DeviceError, match="refuses"):
        install(transport)


def test_a_python_too_old_is_named(bare):
    transport, tools = bare
    script(tools / "python3", "echo 3.5.2 /usr/bin/python3; exit 1\n")
    script(tools / "python", "echo 2.7.18 /usr/bin/python; exit 1\n")
    with pytest.raises(DevicePythonMissing) as error:
        find_python(transport)
    assert error.value.got == "/usr/bin/python3 is 3.5.2, /usr/bin/python is 2.7.18"


def test_a_newer_python_beside_an_old_one_is_found(bare):
    transport, tools = bare
    script(tools / "python3", "echo 3.5.2 /usr/bin/python3; exit 1\n")
    (tools / "python3.9").symlink_to(sys.executable)
    _, executable, version = find_python(transport)
    assert version == ".".join(map(str, sys.version_info[:3]))
    assert Path(executable).name == "python3.9"


def test_a_virtual_environment_below_edgepipe_goes_first(place):
    transport, root = place
    (root / ROOT / "venv" / "bin").mkdir(parents=True)
    script(root / ROOT / "venv" / "bin" / "python3", "echo 3.10.0 /there/python3\n")
    assert find_python(transport) == (str(root), "/there/python3", "3.10.0")


# --- a bundle, checked and measured there -----------------------------------------------------------


@pytest.fixture
def bundle(tiny_onnx, tiny_tflite, tmp_path):
    import numpy as np

    x = np.random.default_rng(0).normal(size=(4, 3, 4, 5)).astype(np.float32)
    sealed = [seal(emission, x) for emission in (tiny_onnx(batch=None), tiny_tflite(batch=1))]
    manifest = Manifest(
        edgepipe_version="0", model_name="tiny", model_source="tiny.onnx", model_digest="0" * 64, inputs=(),
        outputs=(), target="x86", recipe="none", seed=0, calibration=None, steps=(),
        artifacts=tuple(artifact for artifact, _ in sealed), versions={},
    )  # fmt: skip
    return write_bundle(
        tmp_path / "bundle", manifest, {k: v for _, files in sealed for k, v in files.items()}
    )


def test_pushing_brings_what_is_asked_for(place, bundle):
    transport, root = place
    events = []
    folder = push(transport, bundle, artifacts=["int8.tflite"], emit=events.append)
    there = root / ROOT / folder
    sent = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    golden = {file for one in bundle.artifact("int8.tflite").golden for file in one.digests}
    assert sent == {"int8.tflite"} | golden
    assert all((there / name).read_bytes() == bundle.read(name) for name in sent)
    advanced = [event.done for event in events if isinstance(event, StageAdvanced)]
    assert advanced[-1] == events[0].total == sum((there / name).stat().st_size for name in sent)

    assert push(transport, bundle, emit=events.append) == folder
    assert (there / "float32.onnx").read_bytes() == bundle.read("float32.onnx")
    push(transport, bundle, emit=events.append)
    assert isinstance(events[-1], StageEnded)
    assert events[-1].detail == "already there"


def test_pushing_what_the_bundle_has_not(place, bundle):
    with pytest.raises(BundleError, match=r"int4\.onnx"):
        push(place[0], bundle, artifacts=["int4.onnx"])
    assert not (place[1] / ROOT).exists()


def test_pushing_an_altered_file(place, bundle):
    (bundle.folder / "int8.tflite").write_bytes(b"x")
    with pytest.raises(BundleError, match="altered"):
        push(place[0], bundle)
    assert not (place[1] / ROOT).exists()


QUICK = protocol.Bench(
    plan=protocol.Plan("", "", "litert", 1, (), (), (protocol.Sample((), ()),)),
    warmup_runs=1, warmup_ns=0, min_runs=64, min_duration_ns=1_000_000, idle_ns=0,
)  # fmt: skip


@pytest.mark.parametrize(("name", "runtime"), [("float32.onnx", ONNXRUNTIME), ("int8.tflite", LITERT)])
def test_a_bundle_is_verified_and_measured_over_ssh(embedded, bundle, name, runtime):
    with connect(embedded.host, embedded.ssh_options) as transport:
        agent = install(transport)
        folder = push(transport, bundle)
        task = Task(folder=folder, artifact=bundle.artifact(name), runtime=runtime, threads=1)
        verification = agent.verify(task)
        progress = []
        events = agent.bench(task, QUICK, on_progress=progress.append)
    assert verification.ok
    assert verification.samples == 4
    measured = next(event for event in events if isinstance(event, protocol.Measurement))
    latencies = [ns for event in events if isinstance(event, protocol.Latencies) for ns in event.values_ns]
    assert measured.runs == len(latencies) >= 64
    assert min(latencies) > 0
    assert {event.stage for event in progress} & {"load", "warm-up", "run"}


def test_a_wrong_golden_output_is_noticed_there(embedded, bundle):
    artifact = bundle.artifact("int8.tflite")
    with connect(embedded.host, embedded.ssh_options) as transport:
        agent = install(transport)
        folder = push(transport, bundle)
        path = embedded.root / ROOT / folder / artifact.golden[0].outputs[0]
        path.write_bytes(bytes(byte ^ 0x40 for byte in path.read_bytes()))
        task = Task(folder=folder, artifact=artifact, runtime=LITERT, threads=1)
        assert not agent.verify(task).ok
        push(transport, bundle)
        assert agent.verify(task).ok


def test_a_runtime_that_is_not_there(embedded, bundle):
    task = Task(folder="", artifact=bundle.artifact("int8.tflite"), runtime=TFLITE_RUNTIME, threads=1)
    with connect(embedded.host, embedded.ssh_options) as transport:
        agent = install(transport)
        task = msgspec.structs.replace(task, folder=push(transport, bundle))
        with pytest.raises(DeviceRuntimeMissing) as error:
            agent.verify(task)
    assert "pip install 'tflite-runtime==2.14'" in error.value.remedy


# --- an agent that fails ----------------------------------------------------------------------------


def pretend(place, lines, ending=""):
    """An agent that answers any request with these lines; a shell script in the place of the real one."""
    transport, root = place
    (root / "pretender").write_text(
        "read -r request\n" + "".join(f"printf '%s\\n' {_quoted(line)}\n" for line in lines) + ending
    )
    return InstalledAgent(
        transport=transport, python="sh", python_version="3", path="pretender", root="r", digest="0"
    )


def _quoted(line):
    return shlex.quote(line if isinstance(line, str) else protocol.encode(line))


@pytest.fixture
def task(bundle):
    return Task(folder="bundles/x", artifact=bundle.artifact("float32.onnx"), runtime=ONNXRUNTIME, threads=1)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("bad-request", AgentFailed),
        ("file-missing", AgentFailed),
        ("python-error", AgentFailed),
        ("crashed", AgentFailed),
        ("out-of-memory", AgentFailed),
        ("timeout", DeviceTimeout),
        ("runtime-missing", DeviceRuntimeMissing),
        ("runtime-too-old", DeviceRuntimeTooOld),
        ("disk-full", DeviceDiskFull),
    ],
)
def test_each_kind_of_failure_has_its_error(place, task, kind, error):
    agent = pretend(place, [protocol.Failed(kind, "it went wrong", "line 1\nline 2")])
    with pytest.raises(error) as raised:
        agent.verify(task)
    assert type(raised.value).exit_code == error.exit_code
    assert "it went wrong" in str(raised.value)
    assert raised.value.where == place[0].description
    assert raised.value.remedy


def test_every_kind_of_the_protocol_is_covered():
    marks = test_each_kind_of_failure_has_its_error.pytestmark
    assert {kind for kind, _ in marks[0].args[1]} == set(protocol.FAILURES)


@pytest.mark.parametrize("kind", ["crashed", "out-of-memory", "timeout"])
def test_the_end_of_the_measuring_process_is_a_result(place, task, kind):
    failed = protocol.Failed(kind, "it went wrong")
    agent = pretend(place, [protocol.Progress("run", 1, 10), failed])
    assert agent.bench(task, QUICK) == (failed,)


def test_a_too_old_runtime_names_the_version_needed(place, task):
    agent = pretend(place, [protocol.Failed("runtime-too-old", "opset 17 is not known")])
    with pytest.raises(DeviceRuntimeTooOld) as error:
        agent.bench(task, QUICK)
    assert error.value.remedy.endswith("'onnxruntime>=1.10'")


def test_an_agent_that_dies(place):
    agent = pretend(place, [], "echo 'MemoryError: no' >&2; exit 9")
    with pytest.raises(AgentFailed) as error:
        agent.probe()
    assert "exit status 9" in error.value.got
    assert "MemoryError: no" in error.value.got


@pytest.mark.parametrize(
    "line", ["hello", '{"v":1,"type":"unknown"}', '{"v":99,"type":"done"}', "{" * 100_000, ""]
)
def test_an_agent_that_speaks_something_else(place, line):
    agent = pretend(place, [line], "read -r more")
    with pytest.raises(AgentFailed, match="not of the protocol") as error:
        agent.probe()
    assert len(str(error.value)) < 2000


def test_an_answer_that_lacks_what_was_asked_for(place):
    with pytest.raises(AgentFailed, match="did not answer"):
        pretend(place, [protocol.Done()]).probe()


def test_an_agent_that_falls_silent(place, monkeypatch):
    monkeypatch.setattr("edgepipe.device.agent.SILENCE_S", 0.2)
    agent = pretend(place, [protocol.Progress("run", 1)], "echo stuck >&2; read -r more")
    with pytest.raises(DeviceTimeout) as error:
        agent.probe()
    assert "0 s" in error.value.got


def test_ctrl_c_while_measuring_leaves_nothing_running(embedded, bundle, no_process_names):
    def interrupt(progress):
        if progress.stage == "run":
            raise KeyboardInterrupt

    endless = QUICK._replace(min_duration_ns=60_000_000_000)
    with connect(embedded.host, embedded.ssh_options) as transport:
        agent = install(transport)
        folder = push(transport, bundle)
        task = Task(folder=folder, artifact=bundle.artifact("int8.tflite"), runtime=LITERT, threads=1)
        with pytest.raises(KeyboardInterrupt):
            agent.bench(task, endless, on_progress=interrupt)
        assert no_process_names(agent.path)
        assert agent.verify(task).ok


# --- which runtime ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "needed", "older"),
    [
        ("1.9.0", "1.10", True),
        ("1.10", "1.10.0", False),
        ("1.10.0", "1.10", False),
        ("2.14.0", "2.5", False),
        ("2.5.0.post1", "2.5", False),
        ("1.20rc1", "1.20", False),
        ("", "1.10", False),
        ("1.10", "", False),
    ],
)
def test_versions_are_numbers(version, needed, older):
    assert is_older(version, needed) is older


@pytest.fixture
def facts_with(embedded):
    """The facts of the embedded device, with other runtimes."""
    with connect(embedded.host, embedded.ssh_options) as transport:
        facts = install(transport).probe()
    return lambda *runtimes: facts._replace(runtimes=runtimes)


TARGET = Target(
    name="board", title="Board", architecture="x86_64", cpu="", cores=4, memory_mb=1, os="", python="3.11",
    runtimes=(LITERT, TFLITE_RUNTIME, ONNXRUNTIME), activation="int8", threads=4,
)  # fmt: skip


def found(name, version, *, imports=None, note=""):
    return protocol.RuntimeFacts(name, name, version, imports, note)


def test_the_first_runtime_that_is_there_is_taken(bundle, facts_with):
    artifact = bundle.artifact("int8.tflite")
    both = facts_with(found("tflite-runtime", "2.14.0"), found("litert", "2.3.0"))
    assert pick_runtime(artifact, TARGET, both, "board") is LITERT
    one = facts_with(found("tflite-runtime", "2.14.0"), found("litert", "2.3.0", imports=False, note="no"))
    assert pick_runtime(artifact, TARGET, one, "board") is TFLITE_RUNTIME


def test_litert_runs_what_was_made_for_tflite_runtime(bundle, facts_with):
    target = msgspec.structs.replace(TARGET, runtimes=(TFLITE_RUNTIME,))
    runtime = pick_runtime(
        bundle.artifact("int8.tflite"), target, facts_with(found("litert", "2.3.0")), "board"
    )
    assert (runtime.name, runtime.version) == ("litert", "2.3.0")


def test_a_runtime_too_old_is_told_before_anything_is_sent(bundle, facts_with):
    with pytest.raises(DeviceRuntimeTooOld) as error:
        pick_runtime(
            bundle.artifact("float32.onnx"), TARGET, facts_with(found("onnxruntime", "1.9.0")), "board"
        )
    assert error.value.got == "onnxruntime 1.9.0"
    assert "'onnxruntime>=1.10'" in error.value.remedy


def test_a_newer_runtime_behind_an_old_one_is_taken(bundle, facts_with):
    facts = facts_with(found("litert", "0.9"), found("tflite-runtime", "2.14.0"))
    assert pick_runtime(bundle.artifact("int8.tflite"), TARGET, facts, "board") is TFLITE_RUNTIME


@pytest.mark.parametrize(
    ("runtimes", "said"),
    [
        ((), "no runtime"),
        ((found("onnxruntime", "1.20"),), "onnxruntime 1.20"),
        ((found("litert", "2.3", imports=False, note="GLIBC_2.38 not found"),), "GLIBC_2.38 not found"),
    ],
)
def test_no_runtime_names_what_is_there_and_what_to_install(bundle, facts_with, runtimes, said):
    with pytest.raises(DeviceRuntimeMissing) as error:
        pick_runtime(bundle.artifact("int8.tflite"), TARGET, facts_with(*runtimes), "board")
    assert said in error.value.got
    assert "'ai-edge-litert==2.3' or " in error.value.remedy


def test_a_target_that_cannot_run_the_format(bundle, facts_with):
    target = msgspec.structs.replace(TARGET, runtimes=(ONNXRUNTIME,))
    with pytest.raises(EdgepipeError) as error:
        pick_runtime(bundle.artifact("int8.tflite"), target, facts_with(), "board")
    assert "target that runs" in error.value.remedy
