"""Agents to talk to: under any interpreter, with fake or real runtimes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from device_agent import protocol

REPOSITORY = Path(__file__).resolve().parents[2]
FAKES = Path(__file__).resolve().parent / "fakes"


class Agent:
    """A running agent; `ask` sends requests and gives all events up to the last answer's end."""

    def __init__(self, command, environment):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )

    def write(self, text):
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def send(self, *requests):
        for request in requests:
            self.write(protocol.encode(request))

    def event(self):
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read().decode()
        return protocol.decode_event(line)

    def answer(self):
        events = [self.event()]
        while not isinstance(events[-1], (protocol.Done, protocol.Failed)):
            events.append(self.event())
        return events

    def ask(self, request):
        self.send(request)
        return self.answer()

    def hang_up(self):
        self.process.stdin.close()

    def end(self):
        """Waits for the end; gives the status and what was still on standard output."""
        rest = self.process.stdout.read()
        return self.process.wait(20), rest

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def start(root):
    """Starts agents; each ends with the test."""
    agents = []

    def start_agent(*, python=sys.executable, fakes=True, command=None, prefix=()):
        path = os.pathsep.join(([str(FAKES)] if fakes else []) + [str(REPOSITORY)])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONHOME", None)
        arguments = command or [str(python), "-m", "device_agent"]
        agents.append(Agent([*prefix, *arguments, "--root", str(root)], environment))
        return agents[-1]

    yield start_agent
    for agent in agents:
        agent.close()


@pytest.fixture
def fake_plan(root):
    """Builds the plan of a fake model: x int8 [1, 4] to itself, two samples as a rule."""

    def build(*, expected_shift=0, samples=2, **model):
        folder = root / "bundle"
        folder.mkdir(exist_ok=True)
        (folder / "model.tflite").write_text(json.dumps({"shape": [1, 4], **model}))
        named = []
        for index in range(samples):
            tensor = bytes([10 + index, 20, 30, 200])
            expected = bytes([tensor[0] + expected_shift]) + tensor[1:]
            (folder / f"{index}.in").write_bytes(tensor)
            (folder / f"{index}.out").write_bytes(expected)
            named.append(protocol.Sample((f"{index}.in",), (f"{index}.out",)))
        port = protocol.Port("x", "int8", (1, 4), 0.5, 3)
        return protocol.Plan(
            folder="bundle",
            artifact="model.tflite",
            runtime="tflite-runtime",
            threads=1,
            inputs=(port,),
            outputs=(port._replace(name="y"),),
            samples=tuple(named),
        )

    return build


@pytest.fixture
def quick_bench():
    """A bench request that takes no longer than it must."""

    def build(plan, **fields):
        settings = {
            "warmup_runs": 1,
            "warmup_ns": 0,
            "min_runs": 5,
            "min_duration_ns": 0,
            "timeout_ns": 20_000_000_000,
            **fields,
        }
        return protocol.Bench(plan, **settings)

    return build


def pick(events, kind):
    """The events of one kind."""
    return [event for event in events if isinstance(event, kind)]
