import numpy as np
import pytest

from edgepipe.measure import Power, Reading, Series, Window, verdict_of

RNG = np.random.default_rng(0)


def texts(findings):
    return " | ".join(finding.text for finding in findings)


def test_a_calm_measurement_is_valid_without_a_word(calm):
    verdict = verdict_of(calm())
    assert (verdict.state, verdict.reasons, verdict.warnings) == ("VALID", (), ())


def test_every_failure_is_invalid_with_advice(calm):
    from typing import get_args

    from edgepipe.measure.record import Outcome

    for outcome in set(get_args(Outcome)) - {"ok"}:
        verdict = verdict_of(calm((), outcome=outcome, message="it broke", window=None))
        assert verdict.state == "INVALID"
        assert "it broke" in texts(verdict.reasons)
        assert verdict.reasons[0].advice


def test_too_few_runs(calm):
    assert verdict_of(calm([2_000_000] * 64)).state == "VALID"
    verdict = verdict_of(calm([2_000_000] * 63))
    assert verdict.state == "INVALID"
    assert "63 runs" in texts(verdict.reasons)


def test_emulated_is_never_valid_and_embedded_is_marked(calm):
    emulated = verdict_of(calm(kind="emulated", emulation="QEMU user mode"))
    assert emulated.state == "INVALID"
    assert "QEMU user mode" in texts(emulated.reasons)
    embedded = verdict_of(calm(kind="embedded", emulation="embedded on some CPU"))
    assert embedded.state == "VALID"
    assert "some CPU" in texts(embedded.warnings)


def reading(name, value, unit="count"):
    return Reading(source="rpi", name=name, value=value, unit=unit)


@pytest.mark.parametrize(
    ("before", "after", "bad"),
    [
        ([reading("oc1", 3)], [reading("oc1", 3)], False),
        ([reading("oc1", 3)], [reading("oc1", 4)], True),
        ([], [reading("throttled-now", 1, "flag")], True),
        ([reading("cpufreq-cpu0-0", 0, "level")], [reading("cpufreq-cpu0-0", 2, "level")], True),
        ([reading("pwm-fan-1", 1, "level")], [reading("pwm-fan-1", 4, "level")], False),
        ([reading("throttled-now", 1, "flag")], [reading("throttled-now", 1, "flag")], True),
        ([reading("throttled-since-boot", 1, "flag")], [reading("throttled-since-boot", 1, "flag")], False),
        ([reading("throttled-since-boot", 0, "flag")], [reading("throttled-since-boot", 1, "flag")], True),
    ],
)
def test_throttling(calm, before, after, bad):
    verdict = verdict_of(calm(throttle_before=tuple(before), throttle_after=tuple(after)))
    assert (verdict.state == "INVALID") == bad
    assert ("throttled" in texts(verdict.reasons)) == bad


def test_a_provider_that_did_not_run_is_told(calm):
    asked = ("TensorrtExecutionProvider", "CPUExecutionProvider")
    verdict = verdict_of(calm(providers_asked=asked, providers=("CPUExecutionProvider",)))
    (warning,) = verdict.warnings
    assert warning.text == "asked for TensorrtExecutionProvider, ran on CPUExecutionProvider"
    assert "vendor" in warning.advice
    assert verdict_of(calm(providers_asked=asked, providers=asked)).warnings == ()


def test_a_process_that_waits_for_an_accelerator_is_not_starved(calm):
    found = verdict_of(calm(cpu_ns=1_000_000, providers=("CUDAExecutionProvider", "CPUExecutionProvider")))
    assert found.warnings == ()


def clock(window, values):
    times = np.linspace(window.start_ns, window.end_ns, len(values)).astype(int).tolist()
    return Series(name="clock:policy0", unit="khz", t_ns=tuple(times), values=tuple(values))


def test_a_moving_clock_is_told_but_only_within_the_window(calm):
    base = calm()
    moved = verdict_of(calm(series=(clock(base.window, [1.5e6, 1.5e6, 0.6e6]),)))
    assert "0.60 to 1.50 GHz" in texts(moved.warnings)
    before = Window(base.window.start_ns - 10**9, base.window.start_ns - 1)
    assert "clock moved" not in texts(verdict_of(calm(series=(clock(before, [1.5e6, 0.6e6]),))).warnings)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"governors": {"policy0": "ondemand"}}, "governor is ondemand"),
        ({"clock_resolution_ns": 1e6}, "only 2 times what lies between two readings of the clock, 1.00 ms"),
        ({"involuntary_switches": 10_000}, "other load"),
        ({"cpu_ns": 1_000_000}, "other load"),
        ({"cpu_ns": 1_000_000, "threads": 4}, "other load"),
        ({"cores": 4, "load_average": 5.0}, "load average"),
        ({"cores": 2, "threads": 99}, "more threads than cores: 99 on 2"),
    ],
)
def test_conditions_that_weaken(calm, changes, expected):
    verdict = verdict_of(calm(**changes))
    assert verdict.state == "VALID"
    assert expected in texts(verdict.warnings)
    assert all(finding.advice for finding in verdict.warnings)


@pytest.mark.parametrize(
    ("latencies", "expected"),
    [
        (RNG.exponential(1e6, 700) + 1e6, "standard deviation"),
        (np.linspace(2e6, 2.4e6, 700) + RNG.normal(0, 1e4, 700), "slower than the first"),
        (np.linspace(2.4e6, 2e6, 700) + RNG.normal(0, 1e4, 700), "faster than the first"),
        (RNG.permutation(np.repeat([2e6, 2.5e6], 350)) + RNG.normal(0, 1e4, 700), "two clusters"),
    ],
)
def test_samples_that_weaken(calm, latencies, expected):
    assert expected in texts(verdict_of(calm(latencies.astype(int).tolist())).warnings)


def test_energy_that_is_too_short_is_told(calm):
    base = calm()
    series = Series(
        name="power", unit="mw", t_ns=(base.window.start_ns + 1, base.window.end_ns - 1), values=(1.0, 1.0)
    )
    power = Power(source="ina3221", kind="sampled", coverage="board")
    assert "too short for energy" in texts(verdict_of(calm(series=(series,), power=power)).warnings)
