"""Watches the board from outside while a child measures: power, clocks, heat, throttling."""

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from device_agent.clock import now_ns
from device_agent.cpu import clock_readings
from device_agent.host import Host
from device_agent.machine import Machine
from device_agent.power import choose_source
from device_agent.protocol import CHUNK, Event, Measurement, Power, Progress, Reading, Samples, Window
from device_agent.sampler import Sampler
from device_agent.thermal import temperature_readings
from device_agent.throttle import throttle_readings

_CLOCK_PERIOD_NS = 500000000
_IDLE_STEP_NS = 250000000


class Watch:
    """A running watch; leaving the context ends its threads, whatever happened."""

    def __init__(self, power_sources: Sequence[str], machine: Machine) -> None:
        self._machine = machine
        self._source, self._note = choose_source(power_sources, machine)
        self._idle: Optional[Window] = None
        self._before = throttle_readings(machine)
        self._board = Sampler(lambda: _board_readings(machine), _CLOCK_PERIOD_NS)
        self._power: Optional[Sampler[float]] = None
        if self._source is not None:
            self._power = Sampler(self._source.read, self._source.period_ns)

    def __enter__(self) -> "Watch":
        if self._power is not None:
            self._power.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._board.stop()
        if self._power is not None:
            self._power.stop()

    def idle(self, duration_ns: int, host: Host) -> None:
        """Samples power while nothing runs, where there is a source; then begins to watch the clocks.

        Raises:
            HostGone: The host hung up.
        """
        if self._power is not None:
            start_ns = now_ns()
            while now_ns() - start_ns < duration_ns:
                host.send(Progress("idle", now_ns() - start_ns, duration_ns))
                left_ns = duration_ns - (now_ns() - start_ns)
                host.wait((), max(0, min(left_ns, _IDLE_STEP_NS)) / 1e9)
            self._idle = Window(start_ns, now_ns())
        self._board.start()

    def complete(self, measurement: Measurement, send: Callable[[Event], None]) -> Measurement:
        """Ends the watch, sends its series, and fills in what the child could not know."""
        after = throttle_readings(self._machine)
        self.__exit__()
        for series, unit, t_ns, values in self._series():
            for first in range(0, len(t_ns), CHUNK):
                last = first + CHUNK
                send(Samples(series, unit, tuple(t_ns[first:last]), tuple(values[first:last])))
        return measurement._replace(
            power=self._power_record(), throttle_before=self._before, throttle_after=after
        )

    def _power_record(self) -> Power:
        if self._source is None or self._power is None:
            return Power("none", "none", "", (), None, 0, self._note)
        source, missed = self._source, self._power.missed
        note = source.note + ("; {} readings failed".format(missed) if missed else "")
        return Power(
            source.name, source.kind, source.coverage, source.rails, self._idle, source.wrap_uj, note
        )

    def _series(self) -> List[Tuple[str, str, List[int], List[float]]]:
        series: Dict[Tuple[str, str], Tuple[List[int], List[float]]] = {}
        if self._source is not None and self._power is not None:
            unit = "uj" if self._source.kind == "counter" else "mw"
            # The thread may still add to its lists if a sensor hangs: take whole pairs only.
            pairs = list(zip(self._power.t_ns, self._power.values))
            series["power", unit] = ([t_ns for t_ns, _ in pairs], [value for _, value in pairs])
        for t_ns, readings in zip(self._board.t_ns, self._board.values):
            for reading in readings:
                prefix = "clock:" if reading.source == "cpufreq" else "temperature:"
                times, values = series.setdefault((prefix + reading.name, reading.unit), ([], []))
                times.append(t_ns)
                values.append(float(reading.value))
        return [(name, unit, times, values) for (name, unit), (times, values) in series.items()]


def _board_readings(machine: Machine) -> Tuple[Reading, ...]:
    return clock_readings(machine) + temperature_readings(machine)
