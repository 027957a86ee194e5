"""Power readers, one source a file; every file has the function ``open_source(machine)``."""

from typing import Callable, Dict, NamedTuple, Optional, Sequence, Tuple

from device_agent.machine import Machine
from device_agent.power import battery, hwmon_ina, ina3221, rapl, rpi_pmic
from device_agent.power.source import Source, Unavailable
from device_agent.records import SensorFacts

_OPENERS: Dict[str, Callable[[Machine], Source]] = {
    "rapl": rapl.open_source,
    "ina3221": ina3221.open_source,
    "rpi-pmic": rpi_pmic.open_source,
    "hwmon-ina": hwmon_ina.open_source,
    "battery": battery.open_source,
}


class Choice(NamedTuple):
    """The source to use, or None and why every one tried is out of the question."""

    source: Optional[Source]
    note: str


def choose_source(names: Sequence[str], machine: Machine) -> Choice:
    """Opens the first of the named sources that can be read here."""
    reasons = []
    for name in names:
        if name not in _OPENERS:
            reasons.append("{}: this agent has no such reader".format(name))
            continue
        try:
            source = _OPENERS[name](machine)
        except Unavailable as error:
            reasons.append("{}: {}".format(name, error))
        else:
            return Choice(source, source.note)
    return Choice(None, "; ".join(reasons) or "no power source was asked for")


def sensor_facts(machine: Machine) -> Tuple[SensorFacts, ...]:
    """Tries every source that the agent knows."""
    facts = []
    for name, open_source in _OPENERS.items():
        try:
            source = open_source(machine)
        except Unavailable as error:
            facts.append(SensorFacts(name, False, "", (), str(error)))
        else:
            facts.append(SensorFacts(name, True, source.coverage, source.rails, source.note))
    return tuple(facts)
