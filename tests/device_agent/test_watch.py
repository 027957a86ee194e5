"""The watch beside a measurement, on recorded boards whose files change under it."""

import itertools
import os
import threading
import time

import pytest

from device_agent.clock import now_ns, read_clock
from device_agent.host import Host, HostGone
from device_agent.machine import Machine
from device_agent.protocol import (
    ChildMemory,
    Clock,
    Done,
    Measurement,
    Power,
    Progress,
    Reading,
    Samples,
    Window,
    decode_event,
)
from device_agent.sampler import Sampler
from device_agent.watch import Watch

BLANK = Measurement(
    load_ns=1,
    import_ns=1,
    first_inference_ns=1,
    warmup_runs=0,
    runs=1,
    window=Window(0, 1),
    timed="",
    clock=Clock("", 1.0),
    memory=ChildMemory(0, 0, 0, 0, ""),
    cpu_ns=0,
    involuntary_switches=0,
    power=Power("none", "none", "", (), None, 0, ""),
    throttle_before=(),
    throttle_after=(),
    runtime_version="",
    providers=(),
    threads=1,
    affinity=(),
)


@pytest.fixture
def pipes():
    """A Host on pipes, with the far ends."""
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    with os.fdopen(in_write, "wb") as requests, os.fdopen(out_read, "rb") as events:
        yield Host(in_read, out_write), requests, events
        os.close(out_write)
    os.close(in_read)


@pytest.fixture
def tree(tmp_path):
    files = {
        "proc/device-tree/model": "Raspberry Pi 4 Model B\0",
        "sys/class/hwmon/hwmon0/name": "ina226\n",
        "sys/class/hwmon/hwmon0/power1_input": "2500000\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "61000\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1800000\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "0\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def machine(tree):
    return Machine(str(tree), lambda argv: "")


def test_idle_then_load(tree, pipes):
    host, _, events = pipes
    sent = []
    with Watch(("rapl", "hwmon-ina"), machine(tree)) as watch:
        started_ns = now_ns()
        watch.idle(300_000_000, host)
        ended_ns = now_ns()
        (tree / "sys/class/hwmon/hwmon0/power1_input").write_text("4000000\n")
        (tree / "sys/devices/platform/soc/soc:firmware/get_throttled").write_text("50005\n")
        time.sleep(0.5)
        found = watch.complete(BLANK, sent.append)
    power = found.power
    assert (power.source, power.kind, power.coverage) == ("hwmon-ina", "sampled", "board")
    assert started_ns <= power.idle.start_ns < power.idle.end_ns <= ended_ns
    assert power.idle.end_ns - power.idle.start_ns >= 300_000_000
    series = {event.series: event for event in sent if isinstance(event, Samples)}
    assert set(series) == {"power", "clock:policy0", "temperature:cpu-thermal"}
    assert [event.unit for event in series.values()] == ["mw", "khz", "mc"]
    idle = [
        value
        for t_ns, value in zip(series["power"].t_ns, series["power"].values, strict=True)
        if t_ns < power.idle.end_ns
    ]
    assert len(idle) >= 2
    assert set(idle) == {2500.0}
    assert series["power"].values[-1] == 4000.0
    assert list(series["power"].t_ns) == sorted(series["power"].t_ns)
    assert set(series["temperature:cpu-thermal"].values) == {61000.0}
    assert not any(reading.value for reading in found.throttle_before)
    assert Reading("rpi", "throttled-now", 1, "flag") in found.throttle_after
    progress = decode_event(events.readline())
    assert (progress.stage, progress.total) == ("idle", 300_000_000)
    assert isinstance(progress, Progress)


def test_without_a_source_there_is_no_idle_and_no_number(tree, pipes):
    host, _, _ = pipes
    sent = []
    with Watch(("rapl",), machine(tree)) as watch:
        started_ns = now_ns()
        watch.idle(60_000_000_000, host)
        assert now_ns() - started_ns < 30_000_000_000
        found = watch.complete(BLANK, sent.append)
    assert found.power.source == "none"
    assert found.power.idle is None
    assert "rapl: no package" in found.power.note
    assert all(event.series != "power" for event in sent)


def test_sensor_that_fails_is_counted(tree, pipes):
    host, _, _ = pipes
    with Watch(("hwmon-ina",), machine(tree)) as watch:
        (tree / "sys/class/hwmon/hwmon0/power1_input").unlink()
        watch.idle(100_000_000, host)
        found = watch.complete(BLANK, lambda event: None)
    assert "readings failed" in found.power.note


def test_hang_up_ends_the_watch(tree, pipes):
    host, requests, _ = pipes
    requests.close()
    with pytest.raises(HostGone), Watch(("hwmon-ina",), machine(tree)) as watch:
        watch.idle(60_000_000_000, host)
    assert not [thread for thread in threading.enumerate() if thread.name == "sampler"]


def test_sign_of_life_repeats_the_progress_of_this_request_only(pipes):
    host, _, events = pipes
    host.send(Progress("run", 5, 9))
    host.wait((), 1.2)
    host.send(Done())
    host.wait((), 1.2)
    said = [decode_event(events.readline()) for _ in range(4)]
    assert said == [Progress("run", 5, 9), Progress("run", 5, 9), Done(), Progress("load", 0)]


def test_sampler_reads_no_more_often_than_told():
    sampler = Sampler(lambda: 1, 20_000_000)
    sampler.start()
    time.sleep(0.5)
    sampler.stop()
    steps = [later - earlier for earlier, later in zip(sampler.t_ns, sampler.t_ns[1:], strict=False)]
    assert 2 <= len(sampler.values) <= 26
    assert min(steps) > 0


def test_hanging_sensor_does_not_hang_the_agent():
    blocked = threading.Event()
    sampler = Sampler(blocked.wait, 1)
    sampler.start()
    sampler.stop()  # comes back although the reading never ends
    assert sampler.values == []
    blocked.set()


def test_clock_is_the_monotonic_one():
    before_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert before_ns <= now_ns() <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert read_clock().resolution_ns > 0


def test_resolution_is_the_least_time_between_readings(monkeypatch):
    readings = itertools.chain.from_iterable((tick, tick, tick) for tick in itertools.count(0, 52))
    monkeypatch.setattr("device_agent.clock.now_ns", lambda: next(readings))
    assert read_clock().resolution_ns == 52
