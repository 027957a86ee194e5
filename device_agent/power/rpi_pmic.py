"""The Raspberry Pi 5's power management chip, read through the firmware.

Source: raspberrypi.com/documentation/computers/os.html, vcgencmd pmic_read_adc. Older boards have no
current sensor.
"""

import re
from typing import Dict, Tuple

from device_agent.board import read_board
from device_agent.machine import Machine
from device_agent.power.source import Source, Unavailable

_COMMAND = ("vcgencmd", "pmic_read_adc")
_LINE = re.compile(r"^\s*(\w+)_([AV])\s+(?:current|volt)\(\d+\)=([0-9.]+)[AV]\s*$")


def open_source(machine: Machine) -> Source:
    """Opens the sum over all rails that have both a voltage and a current.

    Raises:
        Unavailable: This is no Raspberry Pi 5, or vcgencmd is missing or may not be used.
    """
    if not read_board(machine).model.startswith("Raspberry Pi"):
        raise Unavailable("not a Raspberry Pi")
    rails = tuple(sorted(_rails_mw(machine.run(_COMMAND))))
    if not rails:
        raise Unavailable("vcgencmd pmic_read_adc gives no currents: only the Raspberry Pi 5 has the sensor")

    def read() -> float:
        powers_mw = _rails_mw(machine.run(_COMMAND))
        if tuple(sorted(powers_mw)) != rails:
            raise ValueError("the rails of pmic_read_adc changed")
        return sum(powers_mw.values())

    return Source(
        name="rpi-pmic",
        kind="sampled",
        coverage="board",
        rails=rails,
        period_ns=200000000,  # each reading starts a process
        read=read,
        note="sum of the PMIC's rails, without USB devices, HATs and the PMIC's own losses",
    )


def _rails_mw(text: str) -> Dict[str, float]:
    """Power of each rail from lines such as ``VDD_CORE_A current(7)=1.59A``."""
    readings: Dict[Tuple[str, str], float] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            readings[match.group(1), match.group(2)] = float(match.group(3))
    return {
        rail: 1e3 * amperes * readings[rail, "V"]
        for (rail, unit), amperes in readings.items()
        if unit == "A" and (rail, "V") in readings
    }
