"""The INA3221 monitors of Jetson modules.

Sources: docs.kernel.org/hwmon/ina3221 (JetPack 5 and later), NVIDIA's Jetson Linux Developer Guide,
"Software-Based Power Consumption Modeling" and "Power Monitor" of each module (rails; JetPack 4's iio).
"""

from typing import Callable, List, NamedTuple

from device_agent.machine import Machine
from device_agent.power.source import Source, Unavailable, read_number

# Rails that measure all of a module's input: nothing may be added to them.
_TOTALS = ("VDD_IN", "POM_5V_IN", "POM_5V_DC", "VDD_TOTAL")

# Rails that a rail beside them already includes. The AGX Orin's memory rail is measured on the 5 V side, that
# is behind the module's 5 V input VIN_SYS_5V0.
_INCLUDED = ("VDDQ_VDD2_1V8AO",)


class _Rail(NamedTuple):
    name: str
    read_mw: Callable[[], float]


def open_source(machine: Machine) -> Source:
    """Opens the module's total rail or, where there is none, all rails that add up to it.

    Raises:
        Unavailable: This is no Jetson, or its monitors cannot be read.
    """
    rails = _hwmon_rails(machine) or _iio_rails(machine)
    if not rails:
        raise Unavailable("no INA3221 under /sys/bus/i2c/drivers/ina3221 or ina3221x")
    totals = [rail for rail in rails if rail.name in _TOTALS][:1]
    chosen = totals or [rail for rail in rails if rail.name not in _INCLUDED]

    def read() -> float:
        return sum(rail.read_mw() for rail in chosen)

    try:
        read()
    except (OSError, ValueError) as error:
        raise Unavailable(str(error)) from None
    return Source(
        name="ina3221",
        kind="sampled",
        coverage="board",
        rails=tuple(rail.name for rail in chosen),
        # A reading waits for the converter: about 13 ms a rail.
        period_ns=20000000 if totals else 50000000,
        read=read,
        note="the module's input, without the carrier board"
        if totals
        else "sum of the module's supply inputs, without the carrier board",
    )


def _hwmon_rails(machine: Machine) -> List[_Rail]:
    """JetPack 5 and later: in{n}_label, in{n}_input in mV and curr{n}_input in mA."""
    rails = []
    for folder in machine.glob("/sys/bus/i2c/drivers/ina3221/*-004[0-3]/hwmon/hwmon*"):
        for channel in (1, 2, 3):  # in7 is the sum of shunt voltages
            name = machine.text("{}/in{}_label".format(folder, channel))
            enabled = machine.integer("{}/in{}_enable".format(folder, channel))
            if name and name != "NC" and enabled != 0:
                volts = machine.path("{}/in{}_input".format(folder, channel))
                amperes = machine.path("{}/curr{}_input".format(folder, channel))
                rails.append(_Rail(name, _product(volts, amperes)))
    return rails


def _product(millivolts: str, milliamperes: str) -> Callable[[], float]:
    return lambda: read_number(millivolts) * read_number(milliamperes) / 1e3


def _iio_rails(machine: Machine) -> List[_Rail]:
    """JetPack 4: rail_name_{n} and in_power{n}_input in mW."""
    rails = []
    for file in machine.glob("/sys/bus/i2c/drivers/ina3221x/*-004[0-3]/iio:device*/rail_name_[0-2]"):
        folder, _, channel = file.rpartition("/rail_name_")
        name = machine.text(file)
        if name and name != "NC":
            rails.append(_Rail(name, _number(machine.path("{}/in_power{}_input".format(folder, channel)))))
    return rails


def _number(path: str) -> Callable[[], float]:
    return lambda: float(read_number(path))
