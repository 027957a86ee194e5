"""Memory of the machine, of a process, and the traces that the kernel's out-of-memory killer leaves."""

from typing import Dict, List, Optional

from device_agent.machine import Machine
from device_agent.records import MemoryFacts


def memory_facts(machine: Machine) -> MemoryFacts:
    """Reads /proc/meminfo and the limits of the control groups that hold this process."""
    sizes = _kilobyte_lines(machine.text("/proc/meminfo"))
    return MemoryFacts(
        total_bytes=sizes.get("MemTotal", 0),
        # Kernels before 3.14 do not estimate what is available.
        available_bytes=sizes.get("MemAvailable", sizes.get("MemFree", 0) + sizes.get("Cached", 0)),
        swap_total_bytes=sizes.get("SwapTotal", 0),
        swap_free_bytes=sizes.get("SwapFree", 0),
        limit_bytes=_control_group_limit(machine, sizes.get("MemTotal", 0)),
    )


def resident_bytes(machine: Machine) -> int:
    """Memory of the calling process that is in RAM now (VmRSS); 0 where /proc does not tell."""
    return _kilobyte_lines(machine.text("/proc/self/status")).get("VmRSS", 0)


def peak_resident_bytes(machine: Machine) -> int:
    """The most that the calling process ever had in RAM (VmHWM); 0 where /proc does not tell."""
    return _kilobyte_lines(machine.text("/proc/self/status")).get("VmHWM", 0)


def reset_peak(machine: Machine) -> bool:
    """Sets the peak of the calling process to what it has now (proc(5), clear_refs, Linux 4.0)."""
    try:
        with open(machine.path("/proc/self/clear_refs"), "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def count_oom_kills(machine: Machine) -> Optional[int]:
    """Processes that the kernel killed for want of memory since boot (Linux 4.13); None if unknown."""
    for line in machine.text("/proc/vmstat").splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.isdigit():
            return int(value)
    return None


def _kilobyte_lines(text: str) -> Dict[str, int]:
    """Reads lines such as "VmHWM:   1234 kB" into bytes by name."""
    sizes = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            sizes[name] = int(words[0]) * 1024
    return sizes


def _control_group_limit(machine: Machine, total_bytes: int) -> Optional[int]:
    """The tightest limit of this process's control groups (version 1 or 2), if below the RAM."""
    limits = []
    for file in _limit_files(machine):
        limit = machine.integer(file)  # "max" means none
        if limit is not None and 0 < limit < (total_bytes or limit + 1):
            limits.append(limit)
    return min(limits) if limits else None


def _limit_files(machine: Machine) -> List[str]:
    files: List[str] = []
    for line in machine.text("/proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            folder, file = "/sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            folder, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        names = [name for name in path.split("/") if name and name != ".."]
        # A parent's limit binds as well.
        files.extend("/".join([folder, *names[:depth], file]) for depth in range(len(names) + 1))
    return files
