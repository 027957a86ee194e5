"""The agent as a program, with a fake runtime whose models say how they misbehave."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from device_agent import protocol
from device_agent.machine import Machine
from device_agent.memory import count_oom_kills
from edgepipe.device.zipapp import build_agent

PYTHONS = [f"3.{minor}" for minor in range(6, 14)]


def only(events, kind):
    """The one event of that kind, in an answer that ended well."""
    assert isinstance(events[-1], protocol.Done), events[-1]
    found = [event for event in events if isinstance(event, kind)]
    assert len(found) == 1, found
    return found[0]


def latencies(events):
    found = []
    for event in events:
        if isinstance(event, protocol.Latencies):
            assert event.first == len(found)
            found += event.values_ns
    return found


def failure(events):
    assert isinstance(events[-1], protocol.Failed), events[-1]
    return events[-1]


def is_alive(pid):
    """Whether a process still runs; a zombie that nobody has reaped yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def wait_until(condition, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def find_python(version):
    """An interpreter of that version: pyenv's, or one on PATH."""
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    candidates = [str(path) for path in found] + [shutil.which(f"python{version}") or ""]
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False)
        if done.stdout.startswith(f"Python {version}."):
            return candidate
    return None


@pytest.mark.parametrize("version", PYTHONS)
def test_every_python_from_3_6_on(version, start, fake_plan, quick_bench, root):
    python = find_python(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    agent = start(python=python)
    welcome = only(agent.ask(protocol.Hello()), protocol.Welcome)
    assert welcome.python.startswith(version + ".")
    assert welcome.root == str(root)
    assert welcome.pid == agent.process.pid
    facts = only(agent.ask(protocol.Probe()), protocol.Facts)
    assert facts.python.version == welcome.python
    assert "tflite-runtime" in [runtime.name for runtime in facts.runtimes]
    assert facts.cpu.cores >= 1
    assert facts.memory.total_bytes > facts.memory.available_bytes > 0
    (root / "a").write_bytes(b"abc")
    digests = only(agent.ask(protocol.Digest(("a", "b"))), protocol.Digests)
    assert digests.files[0] == protocol.FileDigest("a", 3, hashlib.sha256(b"abc").hexdigest())
    assert digests.files[1] == protocol.FileDigest("b", None, None)
    plan = fake_plan()
    assert only(agent.ask(protocol.Verify(plan)), protocol.Verification).ok
    answer = agent.ask(quick_bench(plan))
    measurement = only(answer, protocol.Measurement)
    assert len(latencies(answer)) == measurement.runs == 5
    agent.send(protocol.Quit())
    assert isinstance(agent.event(), protocol.Done)
    assert agent.end() == (0, b"")


@pytest.mark.parametrize("form", ["zip", "folder", "module"])
def test_every_form_of_the_agent_starts_its_children(form, start, fake_plan, quick_bench, root, tmp_path):
    command = [sys.executable, "-m", "device_agent"]
    if form == "zip":
        (tmp_path / "agent.pyz").write_bytes(build_agent())
        command = [sys.executable, str(tmp_path / "agent.pyz")]
    elif form == "folder":
        command = [sys.executable, str(Path(protocol.__file__).parent / "__main__.py")]
    agent = start(command=command)
    assert only(agent.ask(quick_bench(fake_plan())), protocol.Measurement).runs == 5


def test_measurement_holds_together(start, fake_plan, quick_bench):
    plan = fake_plan(at_invoke="sleep", seconds=0.002)
    before_ns = time.perf_counter_ns()
    answer = start().ask(quick_bench(plan, warmup_runs=3, min_runs=20, min_duration_ns=100_000_000))
    after_ns = time.perf_counter_ns()
    measurement = only(answer, protocol.Measurement)
    measured = latencies(answer)
    assert measurement.warmup_runs == 3
    assert measurement.runs == len(measured) >= 20
    assert min(measured) >= 2_000_000
    assert measurement.first_inference_ns >= 2_000_000
    # Parent, child and this test read the same clock.
    assert before_ns < measurement.window.start_ns < measurement.window.end_ns < after_ns
    span_ns = measurement.window.end_ns - measurement.window.start_ns
    assert span_ns >= 100_000_000
    assert sum(measured) <= span_ns
    assert measurement.cpu_ns < span_ns  # it slept
    memory = measurement.memory
    assert 0 < memory.start_bytes <= memory.runtime_bytes
    assert memory.peak_bytes >= memory.loaded_bytes > 0
    assert measurement.clock.name == "time.perf_counter_ns"
    assert 0 < measurement.clock.resolution_ns < 1e6
    assert measurement.runtime_version == "2.14.0.fake"
    assert "invoke() alone" in measurement.timed
    assert measurement.power.source == "none"
    assert measurement.power.note == "no power source was asked for"
    assert not [event for event in answer if isinstance(event, protocol.Samples) and event.series == "power"]


def test_max_runs_ends_a_bench(start, fake_plan, quick_bench):
    answer = start().ask(quick_bench(fake_plan(), max_runs=7, min_runs=3, min_duration_ns=10**12))
    assert only(answer, protocol.Measurement).runs == 7


def test_samples_are_fed_in_turn_in_an_order_that_the_seed_draws(start, fake_plan, quick_bench, tmp_path):
    agent = start()
    orders = []
    for number, seed in enumerate((1, 1, 2, 3, 4, 5)):
        log = tmp_path / f"{number}.log"
        plan = fake_plan(samples=4, at_invoke="record", log=str(log))
        agent.ask(quick_bench(plan, seed=seed, warmup_runs=0, min_runs=8))
        fed = list(log.read_bytes())[1:]  # the first inference is that of the first sample
        assert fed[:4] == fed[4:]
        assert sorted(fed[:4]) == [10, 11, 12, 13]
        orders.append(tuple(fed))
    assert orders[0] == orders[1]
    assert len(set(orders)) > 1


def test_long_series_come_in_chunks(start, fake_plan, quick_bench):
    answer = start().ask(quick_bench(fake_plan(), min_runs=protocol.CHUNK * 2 + 1))
    assert [len(event.values_ns) for event in answer if isinstance(event, protocol.Latencies)] == [
        2000,
        2000,
        1,
    ]
    assert len(latencies(answer)) == only(answer, protocol.Measurement).runs


def test_memory_of_the_model_is_seen(start, fake_plan, quick_bench):
    plan = fake_plan(at_load="allocate", bytes=64 << 20)
    memory = only(start().ask(quick_bench(plan)), protocol.Measurement).memory
    assert memory.loaded_bytes - memory.runtime_bytes >= 60 << 20
    assert memory.runtime_bytes - memory.start_bytes < 60 << 20


def test_progress_says_that_a_long_load_lives(start, fake_plan, quick_bench):
    answer = start().ask(quick_bench(fake_plan(at_load="sleep", seconds=2)))
    assert [event.stage for event in answer if isinstance(event, protocol.Progress)].count("load") >= 2
    assert only(answer, protocol.Measurement).load_ns >= 2_000_000_000


def test_verification_of_equal_outputs(start, fake_plan):
    found = only(start().ask(protocol.Verify(fake_plan())), protocol.Verification)
    assert (found.ok, found.samples, found.providers) == (True, 2, ("built-in kernels",))
    assert found.outputs == (protocol.OutputDifference("y", 8, 0, 0.0, 0.0, 0.0, 0, 2, 0),)
    tensors = [bytes([10, 20, 30, 200]), bytes([11, 20, 30, 200])]
    assert found.digests == tuple((hashlib.sha256(each).hexdigest(),) for each in tensors)


def test_verification_of_different_outputs(start, fake_plan):
    agent = start()
    for tolerance, expected in ((1.0, False), (2.0, True)):
        request = protocol.Verify(fake_plan(expected_shift=2), tolerance_steps=tolerance)
        found = only(agent.ask(request), protocol.Verification)
        assert found.ok is expected
        assert found.outputs[0].differing == 2
        assert found.outputs[0].worst_steps == 2.0
        assert found.digests[0] == (hashlib.sha256(bytes([10, 20, 30, 200])).hexdigest(),)


def test_noise_on_standard_output_does_not_reach_the_host(start, fake_plan, quick_bench):
    agent = start()
    plan = fake_plan(at_load="print", at_invoke="print")
    assert only(agent.ask(protocol.Verify(plan)), protocol.Verification).ok
    assert only(agent.ask(quick_bench(plan)), protocol.Measurement).runs == 5
    agent.send(protocol.Quit())
    agent.end()
    assert b"INFO: noise on standard output" in agent.process.stderr.read()


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        ({"at_load": "abort"}, "crashed", "SIGABRT"),
        ({"at_invoke": "abort"}, "crashed", "SIGABRT"),
        ({"at_invoke": "exit"}, "crashed", "status 3"),
        ({"at_invoke": "raise"}, "python-error", "RuntimeError: the interpreter is unhappy"),
        ({"at_load": "allocate", "bytes": 1 << 60}, "out-of-memory", "could not allocate"),
        ({"at_load": "old"}, "runtime-too-old", "CONV_2D"),
        ({"at_load": "full"}, "disk-full", "no room left on the device: /tmp/cache"),
    ],
)
def test_failures_of_the_child_are_answers(model, kind, message, start, fake_plan, quick_bench):
    agent = start()
    failed = failure(agent.ask(quick_bench(fake_plan(**model))))
    assert failed.kind == kind
    assert message in failed.message
    assert only(agent.ask(quick_bench(fake_plan())), protocol.Measurement).runs == 5  # and life goes on


def test_log_of_a_crash_is_kept(start, fake_plan):
    failed = failure(start().ask(protocol.Verify(fake_plan(at_invoke="abort"))))
    assert "something is rotten" in failed.detail


def test_sigkill_without_an_oom_kill_is_a_crash(start, fake_plan):
    before = count_oom_kills(Machine())
    if before is None:
        pytest.skip("this kernel does not count out-of-memory kills")
    failed = failure(start().ask(protocol.Verify(fake_plan(at_invoke="kill"))))
    if count_oom_kills(Machine()) != before:
        pytest.skip("another process ran out of memory meanwhile")
    assert failed.kind == "crashed"
    assert "SIGKILL" in failed.message


@pytest.fixture
def small_group():
    """A memory control group of 100 MiB (version 1 or 2); gives the file that takes process ids."""
    for base, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        folder = Path(base) / f"edgepipe-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            folder.mkdir()
            if (folder / limit).exists():
                break
            folder.rmdir()
    else:
        pytest.skip("control groups for memory cannot be made here")
    try:
        (folder / limit).write_text(str(100 << 20))
        yield folder / "cgroup.procs"
    finally:
        wait_until(lambda: not (folder / "cgroup.procs").read_text())
        folder.rmdir()


def test_real_out_of_memory_kill(small_group, start, fake_plan, quick_bench):
    enter = ["sh", "-c", f'echo $$ > {small_group} && exec "$@"', "sh"]
    agent = start(prefix=enter)
    facts = only(agent.ask(protocol.Probe()), protocol.Facts)
    assert facts.memory.limit_bytes == 100 << 20
    failed = failure(agent.ask(quick_bench(fake_plan(at_load="allocate", bytes=200 << 20))))
    assert failed.kind == "out-of-memory"
    assert "the kernel counted such a kill" in failed.message
    assert only(agent.ask(quick_bench(fake_plan())), protocol.Measurement).runs == 5
    agent.send(protocol.Quit())
    agent.end()


def test_timeout_kills_the_child(start, fake_plan, quick_bench):
    agent = start()
    plan = fake_plan(at_invoke="sleep", seconds=60)
    failed = failure(agent.ask(quick_bench(plan, timeout_ns=700_000_000)))
    assert failed.kind == "timeout"
    assert "0.7 s" in failed.message
    assert children_of(agent.process.pid) == []


def test_processes_of_the_child_die_with_it(start, fake_plan, quick_bench, tmp_path):
    pid_file = tmp_path / "pid"
    agent = start()
    agent.send(quick_bench(fake_plan(at_invoke="spawn", pid_file=str(pid_file))))
    wait_until(lambda: pid_file.exists() and pid_file.read_text())
    pid = int(pid_file.read_text())
    assert is_alive(pid)
    agent.hang_up()
    assert agent.end()[0] == 128 + signal.SIGHUP
    wait_until(lambda: not is_alive(pid))


@pytest.mark.parametrize("way", ["end of stdin", "SIGHUP", "SIGTERM", "SIGINT", "SIGKILL"])
def test_child_dies_with_the_agent(way, start, fake_plan, quick_bench, root):
    agent = start()
    agent.send(quick_bench(fake_plan(at_invoke="sleep", seconds=60)))
    assert isinstance(agent.event(), protocol.Progress)
    (child,) = children_of(agent.process.pid)
    assert Path(f"/proc/{child}/oom_score_adj").read_text() == "1000\n"
    before = set(root.rglob("*"))
    if way == "end of stdin":
        agent.hang_up()
    else:
        agent.process.send_signal(getattr(signal, way))
    status, rest = agent.end()
    expected = {"end of stdin": 128 + signal.SIGHUP, "SIGKILL": -signal.SIGKILL}
    assert status == (expected[way] if way in expected else 128 + getattr(signal, way))
    assert b"failed" not in rest
    wait_until(lambda: not is_alive(child))
    assert set(root.rglob("*")) == before


def test_broken_standard_output_ends_the_agent(start, fake_plan, quick_bench):
    agent = start()
    agent.send(quick_bench(fake_plan(at_invoke="sleep", seconds=0.3), min_runs=10**6))
    assert isinstance(agent.event(), protocol.Progress)
    (child,) = children_of(agent.process.pid)
    agent.process.stdout.close()
    assert agent.process.wait(20) == 128 + signal.SIGHUP
    wait_until(lambda: not is_alive(child))


def test_end_of_stdin_after_quit_is_orderly(start, fake_plan, quick_bench):
    agent = start()
    agent.send(quick_bench(fake_plan(at_invoke="sleep", seconds=0.1)), protocol.Quit())
    agent.hang_up()
    assert only(agent.answer(), protocol.Measurement).runs == 5
    assert agent.answer() == [protocol.Done()]
    assert agent.end() == (0, b"")


def test_end_of_stdin_without_quit_still_answers_what_needs_no_child(start):
    agent = start()
    agent.send(protocol.Hello(), protocol.Space())
    agent.hang_up()
    only(agent.answer(), protocol.Welcome)
    assert only(agent.answer(), protocol.FreeSpace).free_bytes > 0
    assert agent.end() == (0, b"")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        "{}",
        "[1]",
        '{"v":7,"type":"hello"}',
        '{"v":1,"type":"explode"}',
        '{"v":1,"type":"probe","root":"/"}',
        '{"v":1,"type":"bench","plan":null}',
        '{"v":1,"type":"hello"}' + " " * (1 << 20),
        "x" * (3 << 20),
        "\x00\x01",
    ],
    ids=lambda line: line[:20],
)
def test_garbage_is_refused_and_the_agent_goes_on(line, start):
    agent = start()
    agent.write(line)
    agent.send(protocol.Hello())
    events = agent.answer()
    refused = 0
    while isinstance(events[-1], protocol.Failed):
        assert events == [events[-1]]
        assert events[-1].kind == "bad-request"
        refused += 1
        events = agent.answer()
    assert refused >= 1 or not line
    only(events, protocol.Welcome)


def test_what_is_missing_is_named(start, fake_plan, quick_bench):
    agent = start()
    plan = fake_plan()
    cases = {
        "nowhere/model.tflite": plan._replace(folder="nowhere"),
        "bundle/other.tflite": plan._replace(artifact="other.tflite"),
        "bundle/gone.in": plan._replace(samples=(protocol.Sample(("gone.in",), ("0.out",)),)),
    }
    for path, bad in cases.items():
        failed = failure(agent.ask(quick_bench(bad)))
        assert failed.kind == "file-missing"
        assert path in failed.message


def test_sample_of_the_wrong_size_is_a_bad_request(start, fake_plan, quick_bench):
    plan = fake_plan()
    bad = plan._replace(inputs=(plan.inputs[0]._replace(shape=(1, 5)),))
    failed = failure(start().ask(quick_bench(bad)))
    assert failed.kind == "bad-request"
    assert failed.message == "0.in: 4 bytes, but port x is int8 [1, 5] of 5 bytes"


def test_missing_runtime(start, fake_plan, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    agent = start(python=bare / "bin" / "python", fakes=False)
    facts = only(agent.ask(protocol.Probe()), protocol.Facts)
    assert facts.runtimes == ()
    assert facts.numpy_version is None
    failed = failure(agent.ask(protocol.Verify(fake_plan())))
    assert failed.kind == "runtime-missing"
    assert "No module named 'numpy'" in failed.message


def test_runtime_whose_import_breaks(start, fake_plan, root):
    folder = root.parent / "broken"
    (folder / "tflite_runtime").mkdir(parents=True)
    (folder / "tflite_runtime" / "__init__.py").write_text("")
    (folder / "tflite_runtime" / "interpreter.py").write_text("raise ImportError('_ARRAY_API not found')")
    agent = start(prefix=["env", f"PYTHONPATH={folder}:{Path(protocol.__file__).parents[1]}"])
    facts = only(agent.ask(protocol.Probe(import_runtimes=True)), protocol.Facts)
    (broken,) = [runtime for runtime in facts.runtimes if runtime.name == "tflite-runtime"]
    assert broken.imports is False
    assert broken.note == "ImportError: _ARRAY_API not found"
    failed = failure(agent.ask(protocol.Verify(fake_plan())))
    assert failed.kind == "runtime-missing"
    assert "_ARRAY_API not found" in failed.message


def test_long_import_gives_signs_of_life_and_ends_with_the_host(start, root):
    folder = root.parent / "slow"
    (folder / "tflite_runtime").mkdir(parents=True)
    (folder / "tflite_runtime" / "__init__.py").write_text("")
    (folder / "tflite_runtime" / "interpreter.py").write_text("import time; time.sleep(60)")
    agent = start(prefix=["env", f"PYTHONPATH={folder}:{Path(protocol.__file__).parents[1]}"])
    agent.send(protocol.Probe(import_runtimes=True))
    assert agent.event().stage == "probe"
    agent.hang_up()
    assert agent.end()[0] == 128 + signal.SIGHUP


def test_space_is_that_of_the_file_system(start, root):
    space = only(start().ask(protocol.Space("not/there/yet")), protocol.FreeSpace)
    assert space.path == "not/there/yet"
    assert space.total_bytes == shutil.disk_usage(root).total


def test_remove_stays_below_the_root(start, root, tmp_path):
    agent = start()
    (root / "bundles" / "b").mkdir(parents=True)
    (root / "bundles" / "b" / "file").write_text("")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("")
    (root / "link").symlink_to(outside)
    for path in (".", "..", "../outside", str(outside), "/", "link/file", "bundles/../..", "~"):
        assert failure(agent.ask(protocol.Remove(path))).kind == "bad-request"
    assert (outside / "file").exists()
    assert only(agent.ask(protocol.Remove("bundles/b")), protocol.Removed) == protocol.Removed(
        "bundles/b", True
    )
    assert only(agent.ask(protocol.Remove("bundles/b")), protocol.Removed) == protocol.Removed(
        "bundles/b", False
    )
    assert only(agent.ask(protocol.Remove("link")), protocol.Removed).existed
    assert sorted(path.name for path in root.iterdir()) == ["bundles"]
    assert (outside / "file").exists()


def test_agent_writes_nothing(start, fake_plan, quick_bench, root, tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    agent = start(prefix=["env", f"TMPDIR={temporary}"])
    plan = fake_plan()
    before = sorted(root.rglob("*"))
    agent.ask(protocol.Probe())
    agent.ask(protocol.Verify(plan))
    agent.ask(quick_bench(plan))
    agent.send(protocol.Quit())
    agent.end()
    assert sorted(root.rglob("*")) == before
    assert list(temporary.iterdir()) == []
