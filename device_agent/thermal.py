"""Temperatures of the kernel's thermal zones (docs.kernel.org, driver-api/thermal/sysfs-api)."""

from typing import Tuple

from device_agent.machine import Machine
from device_agent.records import Reading


def temperature_readings(machine: Machine) -> Tuple[Reading, ...]:
    """Every thermal zone that can be read now, in thousandths of a degree Celsius."""
    readings = []
    for folder in machine.glob("/sys/class/thermal/thermal_zone[0-9]*"):
        value = machine.integer(folder + "/temp")
        # Some zones of Jetson boards report -256 °C while their part of the chip is off.
        if value is not None and value > -100000:
            name = machine.text(folder + "/type") or folder.rsplit("/", 1)[1]
            readings.append(Reading("temperature", name, value, "mc"))
    return tuple(readings)
