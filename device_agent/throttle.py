"""Whether the board slowed itself down: flags, counters and cooling states, read before and after."""

from typing import Dict, List, Tuple

from device_agent.board import read_board
from device_agent.machine import Machine
from device_agent.records import Reading

# raspberrypi.com/documentation/computers/os.html, get_throttled
_RASPBERRY_PI_BITS = (
    (0, "under-voltage-now"),
    (1, "frequency-capped-now"),
    (2, "throttled-now"),
    (3, "soft-temperature-limit-now"),
    (16, "under-voltage-since-boot"),
    (17, "frequency-capped-since-boot"),
    (18, "throttled-since-boot"),
    (19, "soft-temperature-limit-since-boot"),
)


def throttle_readings(machine: Machine) -> Tuple[Reading, ...]:
    """Everything that this machine tells about throttling, as it stands now."""
    return tuple(_raspberry_pi(machine) + _jetson(machine) + _thermal(machine))


def _raspberry_pi(machine: Machine) -> List[Reading]:
    """The firmware's bits, from vcgencmd or, without it, from the kernel's copy."""
    text = machine.run(("vcgencmd", "get_throttled")).strip() if _is_raspberry_pi(machine) else ""
    if text.startswith("throttled="):
        text = text.partition("=")[2]
    else:
        text = machine.text("/sys/devices/platform/soc/soc:firmware/get_throttled")
    try:
        bits = int(text, 16)
    except ValueError:
        return []
    return [Reading("rpi", name, bits >> bit & 1, "flag") for bit, name in _RASPBERRY_PI_BITS]


def _is_raspberry_pi(machine: Machine) -> bool:
    return read_board(machine).model.startswith("Raspberry Pi")


def _jetson(machine: Machine) -> List[Reading]:
    """Over-current events (NVIDIA Jetson Linux Developer Guide, Platform Power and Performance)."""
    readings = []
    for file in machine.glob("/sys/class/hwmon/hwmon[0-9]*/oc[0-9]*_event_cnt"):
        count = machine.integer(file)
        if count is not None:
            name = file.rsplit("/", 1)[1].partition("_")[0]
            readings.append(Reading("jetson-oc", name, count, "count"))
    return readings


def _thermal(machine: Machine) -> List[Reading]:
    """Throttle events of x86 cores and packages, and how hard each cooling device works."""
    counts: Dict[str, int] = {}
    for kind in ("core", "package"):
        pattern = "/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/{}_throttle_count".format(kind)
        found = [machine.integer(file) for file in machine.glob(pattern)]
        if found:
            # Siblings show the same counter, so the greatest says more than the sum.
            counts[kind] = max(count or 0 for count in found)
    readings = [Reading("thermal", name + "-throttle", count, "count") for name, count in counts.items()]
    for folder in machine.glob("/sys/class/thermal/cooling_device[0-9]*"):
        level = machine.integer(folder + "/cur_state")
        if level is not None:
            number = folder.rsplit("cooling_device", 1)[1]
            name = "{}-{}".format(machine.text(folder + "/type") or "cooling", number)
            readings.append(Reading("thermal", name, level, "level"))
    return readings
