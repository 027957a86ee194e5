"""The processor: what it is, and how fast it is clocked."""

import os
import platform
import struct
from typing import Dict, List, Tuple

from device_agent.machine import Machine
from device_agent.records import CpuFacts, CpuPolicy, Reading

# Arm's MIDR part numbers by implementer, from the Technical Reference Manual of each core.
_ARM_PARTS = {
    ("0x41", "0xc07"): "Cortex-A7",
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd04"): "Cortex-A35",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4b"): "Cortex-A78C",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x4e", "0x003"): "NVIDIA Denver 2",
    ("0x4e", "0x004"): "NVIDIA Carmel",
}


def cpu_facts(machine: Machine) -> CpuFacts:
    """Reads /proc/cpuinfo and cpufreq."""
    blocks = _cpuinfo(machine)
    return CpuFacts(
        model=_model(blocks),
        architecture=userland_architecture(platform.machine(), 8 * struct.calcsize("P")),
        features=_features(blocks),
        cores=_usable_cores(),
        cores_online=_count_cores(machine.text("/sys/devices/system/cpu/online")) or os.cpu_count() or 1,
        policies=tuple(_policy(machine, folder) for folder in _policy_folders(machine)),
    )


def userland_architecture(machine: str, bits: int) -> str:
    """The architecture that programs here are built for.

    Args:
        machine: What uname says, which is the kernel's: Raspberry Pi OS may run a 64-bit kernel below a
            32-bit system.
        bits: Size of the interpreter's pointers.
    """
    if bits == 64:
        return machine
    return {"aarch64": "armv7l", "x86_64": "i686"}.get(machine, machine)


def clock_readings(machine: Machine) -> Tuple[Reading, ...]:
    """The clock of every cpufreq policy now, in kHz."""
    readings = []
    for folder in _policy_folders(machine):
        khz = machine.integer(folder + "/scaling_cur_freq")
        if khz is not None:
            readings.append(Reading("cpufreq", os.path.basename(folder), khz, "khz"))
    return tuple(readings)


def cpuinfo_architecture(machine: Machine) -> str:
    """The family that /proc/cpuinfo describes: "x86", "arm", or "" where it shows neither."""
    keys = {key for block in _cpuinfo(machine) for key in block}
    if "vendor_id" in keys and "flags" in keys:
        return "x86"
    return "arm" if "CPU implementer" in keys else ""


def _cpuinfo(machine: Machine) -> List[Dict[str, str]]:
    """One dict for each block of lines: a block a core, and on Arm one more for the board."""
    blocks: List[Dict[str, str]] = []
    for text in machine.text("/proc/cpuinfo").split("\n\n"):
        pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
        blocks.append({key.strip(): value.strip() for key, value in pairs})
    return blocks


def _model(blocks: List[Dict[str, str]]) -> str:
    names = []
    for block in blocks:
        part = (block.get("CPU implementer", ""), block.get("CPU part", ""))
        name = _ARM_PARTS.get(part) or block.get("model name") or (part[1] and "Arm part " + part[1])
        if name and name not in names:
            names.append(name)
    return " + ".join(names)


def _features(blocks: List[Dict[str, str]]) -> Tuple[str, ...]:
    """Features that every core has, in the order that the first names them."""
    lists = [block.get("flags", block.get("Features", "")).split() for block in blocks]
    lists = [features for features in lists if features]
    if not lists:
        return ()
    common = set(lists[0]).intersection(*lists)
    return tuple(feature for feature in dict.fromkeys(lists[0]) if feature in common)


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _count_cores(ranges: str) -> int:
    """Counts the cores in "0-3,6"."""
    count = 0
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            count += int(last or first) - int(first) + 1
    return count


def _policy_folders(machine: Machine) -> List[str]:
    return machine.glob("/sys/devices/system/cpu/cpufreq/policy[0-9]*")


def _policy(machine: Machine, folder: str) -> CpuPolicy:
    return CpuPolicy(
        name=os.path.basename(folder),
        cores=machine.text(folder + "/affected_cpus"),
        governor=machine.text(folder + "/scaling_governor"),
        current_khz=machine.integer(folder + "/scaling_cur_freq") or 0,
        min_khz=machine.integer(folder + "/scaling_min_freq") or 0,
        max_khz=machine.integer(folder + "/scaling_max_freq") or 0,
    )
