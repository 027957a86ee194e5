import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.measure import Power, Series, Window, energy_of
from edgepipe.measure.energy import energy_in

S = 10**9
TWELVE_SECONDS = Window(5 * S, 17 * S)
IDLE = Window(0, 4 * S)


def sampled(power_mw, *, start=0, end=20 * S, step=S // 10):
    times = tuple(range(start, end + 1, step))
    return Series(name="power", unit="mw", t_ns=times, values=tuple(float(power_mw(t)) for t in times))


def test_constant_power_is_power_times_time():
    assert energy_in(sampled(lambda t: 4000), Window(2 * S, 12 * S)) == pytest.approx(40_000)


def test_the_ends_are_interpolated():
    # Power 100 mW/s * t: the exact integral, though neither end falls on a sample.
    window = Window(3 * S + 12_345_678, 17 * S + 87_654_321)
    exact = 100 * ((window.end_ns / S) ** 2 - (window.start_ns / S) ** 2) / 2
    assert energy_in(sampled(lambda t: 100 * t / S), window) == pytest.approx(exact, rel=1e-9)


@given(st.lists(st.floats(0, 1e5), min_size=10, max_size=50), st.integers(5, 45))
def test_energy_adds_up_over_windows_that_meet_at_a_sample(values, at):
    at = min(at, len(values) - 5)
    series = Series(
        name="power", unit="mw", t_ns=tuple(S * i for i in range(len(values))), values=tuple(values)
    )
    whole = energy_in(series, Window(S, (len(values) - 2) * S))
    parts = [energy_in(series, Window(S, at * S)), energy_in(series, Window(at * S, (len(values) - 2) * S))]
    if None not in parts:
        assert sum(parts) == pytest.approx(whole, abs=1e-6)


def test_samples_outside_the_window_count_only_for_its_ends():
    spiky = sampled(lambda t: 1e9 if t < S or t > 15 * S else 1000)
    assert energy_in(spiky, Window(5 * S, 10 * S)) == pytest.approx(5000)


def test_a_counters_wrap_is_undone():
    wrap = 262_143_328_850
    times = tuple(range(0, 20 * S + 1, S // 10))
    counted = tuple(float((wrap - 10_000_000 + t // 1000 * 5) % wrap) for t in times)  # 5 W
    assert counted[0] > counted[-1]
    series = Series(name="power", unit="uj", t_ns=times, values=counted)
    assert energy_in(series, Window(1 * S, 19 * S), wrap_uj=wrap) == pytest.approx(5000 * 18, rel=1e-6)


def test_a_large_clock_loses_nothing():
    offset = 10**18 + 7
    shifted = sampled(lambda t: 100 * (t - offset) / S, start=offset, end=offset + 20 * S)
    found = energy_in(shifted, Window(offset + 2 * S, offset + 12 * S))
    assert found == pytest.approx(100 * (144 - 4) / 2, rel=1e-9)


@pytest.fixture
def powered(calm):
    def build(power_mw, *, window=TWELVE_SECONDS, runs=1000, idle=IDLE):
        return calm(
            [10**6] * runs,
            window=window,
            series=(sampled(power_mw),),
            power=Power(source="ina3221", kind="sampled", coverage="board", idle=idle),
        )

    return build


def test_gross_and_net_for_each_inference(powered):
    energy = energy_of(powered(lambda t: 2000 if t < 4.5 * S else 5000))
    assert energy.missing == ""
    assert energy.gross_mj == pytest.approx(5000 * 12 / 1000)
    assert energy.net_mj == pytest.approx(3000 * 12 / 1000)
    assert (energy.idle_mw, energy.mean_mw) == (pytest.approx(2000), pytest.approx(5000))
    assert energy.coverage == "board"


def test_no_idle_window_no_net(powered):
    energy = energy_of(powered(lambda t: 5000, idle=None))
    assert energy.net_mj is None
    assert energy.gross_mj == pytest.approx(60)


def test_a_short_window_gives_no_figure(powered):
    energy = energy_of(powered(lambda t: 5000, window=Window(5 * S, 14 * S)))
    assert (energy.missing, energy.gross_mj) == ("too short", None)


def test_few_updates_give_no_figure(calm):
    measurement = calm(
        [10**6] * 1000,
        window=Window(0, 20 * S),
        series=(sampled(lambda t: 1.0, step=S),),
        power=Power(source="rpi-pmic", kind="sampled", coverage="board"),
    )
    assert energy_of(measurement).missing == "too short"


def test_a_counter_that_stands_still_has_no_updates(calm):
    series = Series(
        name="power", unit="uj", t_ns=tuple(np.arange(0, 20 * S, S // 10).tolist()), values=(7.0,) * 200
    )
    measurement = calm(
        [10**6] * 1000, window=Window(S, 19 * S), series=(series,), power=Power(source="rapl", kind="counter")
    )
    energy = energy_of(measurement)
    assert (energy.updates, energy.missing) == (0, "too short")


def test_no_sensor_no_number(calm):
    energy = energy_of(calm())
    assert (energy.source, energy.missing, energy.gross_mj, energy.mean_mw) == ("none", "none", None, None)
