"""Ctrl-C at every stage: exit code 130, one line, no process and nothing half-written left behind."""

import contextlib
import json
import os
import re
import signal
import socket
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from edgepipe import workflow
from edgepipe.errors import Interrupted
from edgepipe.events import StageStarted
from edgepipe.job import Effort, Job, Place

QUICK = ("--duration", "0.2", "--min-runs", "64")
DEPLOY = ("deploy", "model.onnx", "--target", "x86", "--emulate", "--data", "val.npz")

# What a terminal does on Ctrl-C, at the moment when a stage begins: SIGINT to the whole process group.
PRESS = """
import os, signal, sys
from edgepipe import cli, events
from edgepipe.cli import show

stage = sys.argv.pop(1)
seen = show.ProgressView.__call__

def press(view, event):
    seen(view, event)
    if isinstance(event, events.StageStarted) and event.stage.startswith(stage):
        os.killpg(os.getpgrp(), signal.SIGINT)

show.ProgressView.__call__ = press
cli.main()
"""


@pytest.fixture
def assert_interrupted(left_behind):
    """Asserts that a process ended by Ctrl-C as it should."""
    return partial(_assert_interrupted, left_behind)


def _assert_interrupted(left_behind, user, process, before):
    stdout, stderr = (stream.decode() for stream in process.communicate(timeout=60))
    assert process.returncode == Interrupted.exit_code, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert "Exception" not in stderr
    assert len(re.findall(r"^error: interrupted", stderr, re.MULTILINE)) == 1, stderr
    left = {
        name
        for name in user.listing() - before
        if not re.fullmatch(r"work/runs(/\.cache(/\w+\.onnx)?)?", name)
    }
    assert not left
    return stderr


@pytest.mark.parametrize("stage", ["load", "connect", "calibrate", "push", "verify", "measure"])
def test_ctrl_c(equipped, stage, assert_interrupted, no_process_names):
    before = equipped.listing()
    process = equipped.start(stage, *DEPLOY, *QUICK, program=("-c", PRESS))
    assert_interrupted(equipped, process, before)
    assert no_process_names(str(equipped.folder.parent))


def test_ctrl_c_while_a_host_does_not_answer(equipped, assert_interrupted):
    before = equipped.listing()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, and says nothing
        port = silent.getsockname()[1]
        process = equipped.start(*DEPLOY[:4], "--host", f"127.0.0.1:{port}", "--data", "val.npz")
        with silent.accept()[0]:
            os.killpg(process.pid, signal.SIGINT)
            assert_interrupted(equipped, process, before)


def test_ctrl_c_while_measuring_on_a_real_server(equipped, board, assert_interrupted, no_process_names):
    before = equipped.listing()
    process = equipped.start(*DEPLOY[:4], "--host", "board", "--data", "val.npz", "--duration", "60")
    for line in process.stderr:
        if line.startswith("✓ verify".encode()):
            break
    os.killpg(process.pid, signal.SIGINT)
    assert_interrupted(equipped, process, before)
    assert no_process_names(f"{board.root}/.edgepipe/agent")
    assert not [path for path in board.root.rglob("*") if path.suffix == ".part"]
    # And again, to the end: what had arrived is there.
    outcome = equipped.ok(*DEPLOY[:4], "--host", "board", "--data", "val.npz", *QUICK, "--json")
    assert "already there" in outcome.stderr
    assert outcome.json["kind"] == "board"


def test_an_interrupt_as_json(equipped):
    process = equipped.start("load", *DEPLOY, "--json", program=("-c", PRESS))
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == Interrupted.exit_code
    assert json.loads(stdout)["error"]["error"] == "Interrupted"


def test_the_wrapper_presses_nothing_by_itself(equipped):
    process = equipped.start("no such stage", "targets", "list", program=("-c", PRESS))
    process.communicate(timeout=60)
    assert process.returncode == 0


# The signal comes to edgepipe alone, as from a service manager or a closed terminal.
SEND = PRESS.replace("os.killpg(os.getpgrp(), signal.SIGINT)", "os.kill(os.getpid(), signal.{})")


@pytest.mark.parametrize(
    ("name", "stage"), [("SIGTERM", "measure"), ("SIGHUP", "push"), ("SIGKILL", "measure")]
)
def test_other_signals(equipped, name, stage, left_behind, no_process_names):
    before = equipped.listing()
    process = equipped.start(stage, *DEPLOY, *QUICK, program=("-c", SEND.format(name)))
    _, stderr = process.communicate(timeout=60)
    assert no_process_names(str(equipped.folder.parent))
    assert b"Traceback" not in stderr
    left = left_behind(before, equipped.listing())
    if name == "SIGKILL":  # nobody can tidy up the run; the embedded device does away with itself
        assert process.returncode == -signal.SIGKILL
        assert not [path for path in left if path.startswith("tmp/edgepipe-device-")]
        assert not [path for path in left if path.startswith("tmp/edgepipe-keys-")]
    else:
        assert process.returncode == 128 + signal.Signals[name]
        assert not left


@pytest.mark.parametrize(
    "beginning",
    ["quantize.static", "write artifacts", "record golden samples", "evaluate int8.onnx", "verify int8"],
)
def test_ctrl_c_in_this_process(equipped, beginning, left_behind):
    """Cheap, and at stages that `test_ctrl_c` leaves out."""
    before, seen = equipped.listing(), []

    def press(event):
        seen.append(getattr(event, "stage", ""))
        if isinstance(event, StageStarted) and event.stage.startswith(beginning):
            raise KeyboardInterrupt

    job = Job(model="model.onnx", target="x86", data=Path("val.npz"))
    with (
        contextlib.chdir(equipped.folder),
        mock.patch("tempfile.tempdir", str(equipped.temporary)),
        pytest.raises(KeyboardInterrupt),
    ):
        workflow.deploy(job, Place(emulate=True), Effort(min_duration_s=0.1), emit=press)
    assert seen[-1].startswith(beginning)
    assert not left_behind(before, equipped.listing())
