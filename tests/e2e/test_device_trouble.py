"""Devices that are not there, refuse, or lack something: one clear error, nothing half-written anywhere."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edgepipe import errors
from edgepipe.store import Run

INT8 = ("int8.onnx", "int8.tflite")
SHELL_TOOLS = (
    "sh",
    "cat",
    "cut",
    "df",
    "dirname",
    "grep",
    "mkdir",
    "mv",
    "rm",
    "sed",
    "sha256sum",
    "tail",
    "wc",
)


@pytest.fixture
def untouched(user):
    """Makes sure that a command has left the user's folder as it was."""
    before = user.listing()
    yield
    assert user.listing() == before


def home_of(server):
    return {path.relative_to(server.root).as_posix() for path in server.root.rglob("*")}


def with_path(*folders):
    """Settings of an sshd whose programs see this PATH."""
    path = ":".join(map(str, folders))
    return {"ForceCommand": f'export PATH={path}; cd "$HOME" && exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"'}


# --- not there, or not letting in -------------------------------------------------------------------


def test_nobody_listens(user, untouched, told):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    told(user.run("probe", "--host", f"127.0.0.1:{port}"), errors.HostUnreachable, f"port {port}", "refuse")


def test_a_name_that_nobody_knows(user, untouched, told):
    outcome = user.run("probe", "--host", "pi@no-such-board.invalid")
    told(outcome, errors.HostUnreachable, "no-such-board.invalid")


def test_an_unreachable_host_costs_no_compression(equipped, told):
    before = equipped.listing()
    outcome = equipped.run(
        "deploy", "model.onnx", "--target", "x86", "--data", "val.npz", "--host", "no-such-board.invalid"
    )
    told(outcome, errors.HostUnreachable)
    assert "quantize" not in outcome.stderr
    assert equipped.listing() == before


def test_an_unknown_host_key(user, board, untouched, told):
    user.configure_ssh(board, known=False)
    outcome = user.run("probe", "--host", "board")
    told(outcome, errors.HostKeyUnknown, "SHA256:", "--accept-new-host-key")
    assert not home_of(board) - {
        ".edgepipe",
        ".edgepipe/venv",
        ".edgepipe/venv/bin",
        ".edgepipe/venv/bin/python3",
    }
    user.ok("probe", "--host", "board", "--accept-new-host-key")
    assert user.ok("probe", "--host", "board")  # once is enough


def test_a_changed_host_key(user, board, keygen, tmp_path, untouched, told):
    other = keygen(tmp_path / "other").with_name("other.pub").read_text()
    known_hosts = user.home / ".ssh" / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{board.port} {other}")
    for options in ((), ("--accept-new-host-key",)):
        told(
            user.run("probe", "--host", "board", *options), errors.HostKeyChanged, "SHA256:", "ssh-keygen -R"
        )
    assert known_hosts.read_text() == f"[127.0.0.1]:{board.port} {other}"


def test_a_key_that_is_not_let_in(user, board, keygen, tmp_path, untouched, told):
    key = keygen(tmp_path / "stranger")
    user.configure_ssh(board, IdentityFile=key)
    told(
        user.run("probe", "--host", "board"),
        errors.AuthenticationFailed,
        "stranger",
        f"ssh-copy-id -p {board.port}",
    )


# --- lacking something ------------------------------------------------------------------------------


def test_a_device_without_python(user, bundle, start_openssh, tmp_path, told):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in SHELL_TOOLS:
        (tools / name).symlink_to(shutil.which(name))
    server = start_openssh(**with_path(tools))
    user.configure_ssh(server)
    before = user.listing()
    told(
        user.run("push", "bundle", "--host", "board"),
        errors.DevicePythonMissing,
        "python3",
        "apt-get install",
    )
    assert not home_of(server)
    assert user.listing() == before


def test_a_device_without_a_runtime(equipped, start_openssh, tmp_path, told):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    server = start_openssh(**with_path(tmp_path / "bare" / "bin", "/usr/bin", "/bin"))
    equipped.configure_ssh(server)
    before = equipped.listing()
    outcome = equipped.run("deploy", "model.onnx", "--target", "x86", "--data", "val.npz", "--host", "board")
    told(outcome, errors.DeviceRuntimeMissing, "pip install 'onnxruntime==", "bare/bin/python")
    assert "quantize" not in outcome.stderr
    assert equipped.listing() == before


@pytest.fixture
def tiny_disk(board):
    """Makes the board's ~/.edgepipe a file system of its own with so much room."""
    folder = board.root / ".edgepipe"
    mounted = []

    def mount(size_kib):
        python = (folder / "venv" / "bin" / "python3").read_text()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", folder]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a file system")
        mounted.append(folder)
        (folder / "venv" / "bin").mkdir(parents=True)
        (folder / "venv" / "bin" / "python3").write_text(python)
        (folder / "venv" / "bin" / "python3").chmod(0o755)
        return folder

    yield mount
    for each in mounted:
        subprocess.run(["umount", each], check=True)


@pytest.mark.parametrize("size_kib", [64, 192])
def test_a_disk_without_room(user, bundle, board, tiny_disk, size_kib, told):
    """With 64 KiB not even for the agent; with 192 KiB not for an artifact that is made larger here."""
    folder = tiny_disk(size_kib)
    grow(bundle, "int8.onnx", 200_000)
    before = user.listing()
    told(user.run("push", "bundle", "--host", "board"), errors.DeviceDiskFull, "rm -r ~/.edgepipe/bundles")
    assert user.listing() == before
    assert not [path for path in folder.rglob("*") if path.suffix == ".part"]
    assert bool(list(folder.glob("agent-*.pyz"))) == (size_kib == 192)


def rewrite(bundle, change, *, keep=None):
    """Changes the manifest, which a bundle's digest is made from: it stays whole. Few artifacts are quick."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["artifacts"] = [each for each in manifest["artifacts"] if keep is None or each["name"] in keep]
    for artifact in manifest["artifacts"]:
        change(artifact)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def grow(bundle, name, size_bytes):
    with (bundle / name).open("ab") as file:
        file.write(bytes(size_bytes))
    data = (bundle / name).read_bytes()

    def change(artifact):
        if artifact["name"] == name:
            artifact |= {"digest": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}

    rewrite(bundle, change)


def test_runtimes_too_old_for_the_model(user, bundle, told):
    """The bundle claims to need runtimes of the far future, as no real one that is too old is at hand."""
    rewrite(bundle, lambda artifact: artifact.update(needs={"onnxruntime": "99.1", "litert": "99.1"}))
    before = user.listing()
    outcome = user.run("bench", "bundle", "--emulate", "--duration", "0.1")
    told(outcome, errors.DeviceRuntimeTooOld, "too old", "pip install 'onnxruntime>=99.1'")
    assert user.listing() == before


def test_one_runtime_too_old_leaves_the_other_measured(user, bundle):
    needs = {"onnxruntime": "99.1", "litert": "1.0"}
    rewrite(bundle, lambda artifact: artifact.update(needs=needs), keep=INT8)
    outcome = user.ok("bench", "bundle", "--emulate", "--duration", "0.1", "--min-runs", "64", "--json")
    assert outcome.stderr.count("warning: the device's onnxruntime is too old") == 1
    results = msgspec.convert(outcome.json, Run).results
    assert [bool(each.measurement) for each in results] == [False, True]
    assert all("too old" in each.skipped for each in results if not each.measurement)


def test_a_runtime_that_fails_on_one_artifact_leaves_the_others_measured(user, bundle):
    (bundle / "int8.tflite").write_bytes(b"no flatbuffer")
    grow(bundle, "int8.tflite", 0)
    rewrite(bundle, lambda artifact: None, keep=INT8)
    outcome = user.ok("bench", "bundle", "--emulate", "--duration", "0.1", "--min-runs", "64", "--json")
    assert outcome.stderr.count("warning: ") == 1
    results = {each.artifact.name: each for each in msgspec.convert(outcome.json, Run).results}
    assert "int8.tflite" not in {name for name, each in results.items() if each.measurement}
    assert results["int8.tflite"].skipped
    assert results["int8.onnx"].measurement.outcome == "ok"


def test_a_runtime_that_fails_on_every_artifact(user, bundle, told):
    for name in INT8:
        (bundle / name).write_bytes(b"no model")
        grow(bundle, name, 0)
    rewrite(bundle, lambda artifact: None, keep=INT8)
    before = user.listing()
    told(
        user.run("bench", "bundle", "--emulate", "--duration", "0.1"),
        errors.AgentFailed,
        "fails on int8.onnx",
        "Protobuf parsing failed",
    )
    assert user.listing() == before


def test_a_device_that_computes_something_else(user, bundle, told):
    """The golden outputs of int8.tflite are changed, so that a sound device differs from them."""

    def change(artifact):
        if artifact["name"] != "int8.tflite":
            return
        for golden in artifact["golden"]:
            for name in golden["outputs"]:
                data = bytes(byte ^ 0x40 for byte in (bundle / name).read_bytes())
                (bundle / name).write_bytes(data)
                golden["digests"][name] = hashlib.sha256(data).hexdigest()

    rewrite(bundle, change, keep=INT8)
    outcome = user.run("bench", "bundle", "--emulate", "--duration", "0.1", "--min-runs", "64")
    told(outcome, errors.VerificationFailed, "int8.tflite", "64 steps")
    (record,) = user.folder.glob("runs/*/run.json")  # what was found is kept, to be looked into
    results = {
        each.artifact.name: each for each in msgspec.json.decode(record.read_bytes(), type=Run).results
    }
    assert not results["int8.tflite"].verification.ok
    assert results["int8.tflite"].measurement is None
    assert results["int8.onnx"].measurement.outcome == "ok"


# --- gone on the way --------------------------------------------------------------------------------


def test_a_connection_that_is_lost_while_measuring(user, bundle, board, no_process_names):
    rewrite(bundle, lambda artifact: None, keep=INT8)
    before = user.listing()
    process = user.start("bench", "bundle", "--host", "board", "--duration", "60")
    shown = b""
    for line in process.stderr:
        shown += line
        if line.startswith("✓ verify".encode()):
            break
    for session in sessions_of(board):
        os.kill(session, signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=60)
    shown = (shown + stderr).decode()
    assert process.returncode == errors.HostUnreachable.exit_code, shown
    assert stdout == b""
    assert "error: the connection to the device was lost" in shown
    assert "Traceback" not in shown
    assert user.listing() == before
    assert no_process_names(f"{board.root}/.edgepipe/agent")


def sessions_of(server):
    """Processes of an sshd that serve a connection."""
    pid = server._server.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
