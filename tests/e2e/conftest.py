"""A real model with data that it can tell apart, and `edgepipe` as a user runs it: in a folder, at home."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from unittest import mock

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepipe import cli, errors

CLASSES = 4
SAMPLES = 96
QUICK = ("--duration", "0.2", "--min-runs", "64")
OF_THE_DEVELOPER = ("SSH_AUTH_SOCK", "FORCE_COLOR", "NO_COLOR", "TERM", "CLICOLOR_FORCE")
PROGRAM = ("-c", "from edgepipe.cli import main; main()")


class Outcome(msgspec.Struct, frozen=True):
    """How one command ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self):
        """Everything on stdout, which must be one JSON document: without NaN and Infinity, which are none."""
        return json.loads(self.stdout, parse_constant=_refuse)


def _refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


class User:
    """A person in a working folder with a home of their own, who types commands.

    The real home, its SSH keys and its known_hosts are never looked at.
    """

    def __init__(self, folder):
        self.home, self.folder = folder / "home", folder / "work"
        self.home.mkdir(parents=True)
        self.folder.mkdir()
        temporary = folder / "tmp"  # beside, so that what is left in it shows
        temporary.mkdir()
        self.temporary = temporary

    @property
    def environment(self):
        kept = {name: value for name, value in os.environ.items() if name not in OF_THE_DEVELOPER}
        return kept | {"HOME": str(self.home), "TMPDIR": str(self.temporary), "COLUMNS": "120"}

    def run(self, *argv):
        """Runs a command in this process: quick, as everything is imported already."""
        stdout, stderr = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(self.folder),
            mock.patch.dict(os.environ, self.environment, clear=True),
            mock.patch("tempfile.tempdir", str(self.temporary)),
            mock.patch("sys.argv", ["edgepipe", *map(str, argv)]),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            pytest.raises(SystemExit) as end,
        ):
            cli.main([str(word) for word in argv])
        code = end.value.code
        return Outcome(0 if code is None else code, stdout.getvalue(), stderr.getvalue())

    def ok(self, *argv):
        """As `run`, for a command that shall succeed."""
        outcome = self.run(*argv)
        assert outcome.exit_code == 0, f"{argv}: {outcome.stderr}{outcome.stdout}"
        return outcome

    def start(self, *argv, program=PROGRAM, **options):
        """Starts a process of its own, in a process group of its own as a shell does."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [sys.executable, *program, *map(str, argv)],
            cwd=self.folder,
            env=self.environment,
            start_new_session=True,
            **(pipes | options),
        )

    def listing(self):
        """Every file and folder that is the user's or temporary, below the folder that holds both."""
        return {
            str(path.relative_to(self.folder.parent))
            for folder in (self.folder, self.temporary)
            for path in folder.rglob("*")
        }

    def configure_ssh(self, server, *, name="board", known=True, **settings):
        """Writes ~/.ssh/config and known_hosts for a server of `OpenSsh`."""
        folder = self.home / ".ssh"
        folder.mkdir(exist_ok=True)
        entry = {"HostName": "127.0.0.1", "Port": server.port, "IdentityFile": server.key, **settings}
        lines = [f"Host {name}", *(f"  {key} {value}" for key, value in entry.items())]
        (folder / "config").write_text("\n".join(lines) + "\n")
        known_hosts = (server.folder / "known_hosts").read_text() if known else ""
        (folder / "known_hosts").write_text(known_hosts)


def separable(seed=0):
    """Noisy copies of one pattern a class: x float32 [SAMPLES, 3, 8, 8], y int64 [SAMPLES]."""
    random = np.random.default_rng(seed)
    patterns = random.normal(size=(CLASSES, 3, 8, 8))
    y = np.arange(SAMPLES) % CLASSES
    x = patterns[y] + 0.6 * random.normal(size=(SAMPLES, 3, 8, 8))
    return x.astype(np.float32), y.astype(np.int64)


def cnn(x, y, seed=0):
    """Random convolutions with a linear classifier on top that least squares fits to the samples: ONNX."""
    random = np.random.default_rng(seed)
    stem = random.normal(scale=0.3, size=(8, 3, 3, 3)).astype(np.float32)
    depthwise = random.normal(scale=0.4, size=(8, 1, 3, 3)).astype(np.float32)
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 8 * 4 * 4])
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["a"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node(
            "Conv", ["b", "depthwise"], ["c"], name="dw", pads=[1, 1, 1, 1], strides=[2, 2], group=8
        ),
        helper.make_node("Relu", ["c"], ["d"], name="relu2"),
        helper.make_node("Flatten", ["d"], ["features"], name="flatten"),
    ]
    weights = [numpy_helper.from_array(stem, "stem"), numpy_helper.from_array(depthwise, "depthwise")]
    found = evaluate_onnx(model_of(nodes, [features], weights), x)
    goal = np.eye(CLASSES)[y] - 1 / CLASSES
    ridge = 0.1 * np.trace(found.T @ found) / found.shape[1] * np.eye(found.shape[1])
    head = np.linalg.solve(found.T @ found + ridge, found.T @ goal).astype(np.float32)
    nodes.append(helper.make_node("Gemm", ["features", "head", "bias"], ["logits"], name="head"))
    weights += [
        numpy_helper.from_array(head, "head"),
        numpy_helper.from_array(np.full(CLASSES, 1 / CLASSES, np.float32), "bias"),
    ]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])
    return model_of(nodes, [logits], weights)


def model_of(nodes, outputs, weights, shape=("n", 3, 8, 8)):
    """An ONNX model on `x` that was checked."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def evaluate_onnx(model, x):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, {"x": x})[0].astype(np.float64)


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A folder with model.onnx and val.npz."""
    folder = tmp_path_factory.mktemp("sources")
    x, y = separable()
    onnx.save(cnn(x, y), folder / "model.onnx")
    np.savez(folder / "val.npz", x=x, y=y)
    return folder


@pytest.fixture
def user(tmp_path):
    """Somebody with an empty folder."""
    return User(tmp_path)


@pytest.fixture
def equipped(user, sources):
    """Somebody whose folder holds model.onnx and val.npz."""
    for file in sources.iterdir():
        (user.folder / file.name).write_bytes(file.read_bytes())
    return user


@pytest.fixture(scope="session")
def deployed(tmp_path_factory, sources):
    """Somebody who deployed to the embedded device: their `runs` holds one run. Not to be changed."""
    someone = User(tmp_path_factory.mktemp("deployed"))
    for file in sources.iterdir():
        (someone.folder / file.name).write_bytes(file.read_bytes())
    someone.outcome = someone.ok(
        "deploy", "model.onnx", "--target", "x86", "--emulate", "--data", "val.npz", *QUICK, "--json"
    )
    return someone


def serve_tests(server):
    """Makes `python3` on an `OpenSsh` server the Python that runs the tests, with its runtimes."""
    (server.root / ".edgepipe" / "venv" / "bin").mkdir(parents=True, exist_ok=True)
    wrapper = server.root / ".edgepipe" / "venv" / "bin" / "python3"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)


@pytest.fixture
def board(user, openssh):
    """The ~/.ssh/config name of a real OpenSSH server that has the runtimes, with nothing on it yet."""
    for entry in openssh.root.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    serve_tests(openssh)
    user.configure_ssh(openssh)
    return openssh


def _told(outcome, error, *words):
    """The one error block, which says what, where or what was found, and what to do; no traceback."""
    assert outcome.exit_code == error.exit_code, outcome.stderr + outcome.stdout
    assert "Traceback" not in outcome.stderr
    assert outcome.stdout == ""
    assert len(re.findall(r"^error: ", outcome.stderr, re.MULTILINE)) == 1, outcome.stderr
    block = outcome.stderr[outcome.stderr.index("error: ") :]
    if error is not errors.UsageError:  # which is about what is not there
        assert re.search(r"^ +(where|got): .", block, re.MULTILINE), block
    assert re.search(r"^ +do: .", block, re.MULTILINE), block
    for word in words:
        assert word in block, f"{word!r} is not in: {block}"
    return block


def _left_behind(before, after):
    """New files but for finished ones of the cache, and the folder that holds it."""
    return {
        name
        for name in after - before
        if name not in {"work/runs", "work/runs/.cache"}
        and not re.fullmatch(r"work/runs/.cache/\w+\.onnx", name)
    }


@pytest.fixture(scope="session")
def told():
    """Asserts that a command ended with one error, and gives its text: `told(outcome, error, *words)`."""
    return _told


@pytest.fixture(scope="session")
def left_behind():
    """What is new of two listings, but for finished work that the cache keeps."""
    return _left_behind


@pytest.fixture
def bundle(deployed, user):
    """The folder of a bundle that is the user's to change."""
    shutil.copytree(next(deployed.folder.glob("runs/*/bundle")), user.folder / "bundle")
    return user.folder / "bundle"
