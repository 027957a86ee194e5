"""A single-channel INA sensor wired into the board's supply (docs.kernel.org/hwmon/ina2xx)."""

from typing import Callable

from device_agent.machine import Machine
from device_agent.power.source import Source, Unavailable, read_number

_CHIPS = ("ina209", "ina219", "ina220", "ina226", "ina230", "ina231", "ina238", "ina260")


def open_source(machine: Machine) -> Source:
    """Opens the first such sensor.

    Raises:
        Unavailable: There is none, or it cannot be read.
    """
    folders = [
        folder
        for folder in machine.glob("/sys/class/hwmon/hwmon[0-9]*")
        if machine.text(folder + "/name") in _CHIPS
    ]
    if not folders:
        raise Unavailable("no INA sensor among /sys/class/hwmon/*/name")
    folder = folders[0]
    read = _reader(machine, folder)
    try:
        read()
    except (OSError, ValueError) as error:
        raise Unavailable(str(error)) from None
    interval_ms = machine.integer(folder + "/update_interval") or 0
    chip = machine.text(folder + "/name")
    return Source(
        name="hwmon-ina",
        kind="sampled",
        coverage="board",
        rails=("{} {}".format(chip, folder.rsplit("/", 1)[1]),),
        period_ns=max(20, interval_ms) * 1000000,
        read=read,
        note="what the sensor is wired to: for the user to know"
        + ("; the first of {} sensors".format(len(folders)) if len(folders) > 1 else ""),
    )


def _reader(machine: Machine, folder: str) -> Callable[[], float]:
    """Power in mW: the chip's own (uW), else voltage (mV) times current (mA)."""
    power = machine.path(folder + "/power1_input")
    volts = machine.path(folder + "/in1_input")
    amperes = machine.path(folder + "/curr1_input")
    if machine.exists(folder + "/power1_input"):
        return lambda: read_number(power) / 1e3
    return lambda: read_number(volts) * read_number(amperes) / 1e3
