"""What this device is and has."""

import os
import platform
import struct
import sys
from typing import Callable

from device_agent.board import firmware, os_name, power_mode, read_board
from device_agent.cpu import cpu_facts
from device_agent.emulation import container, emulation, hypervisor
from device_agent.files import free_space
from device_agent.installed import installed_runtimes, numpy_version
from device_agent.machine import Machine
from device_agent.memory import memory_facts
from device_agent.power import sensor_facts
from device_agent.records import Facts, PythonFacts, SystemFacts
from device_agent.thermal import temperature_readings
from device_agent.throttle import throttle_readings


def probe(
    machine: Machine, root: str, import_runtimes: bool = False, beat: Callable[[], object] = lambda: None
) -> Facts:
    """Gathers everything that can be known without running a model.

    Args:
        machine: What to read.
        root: The agent's folder, whose free room is told.
        import_runtimes: Whether to try importing each runtime, which takes seconds.
        beat: Called several times a second meanwhile; may raise to end it.
    """
    board = read_board(machine)
    cpu = cpu_facts(machine)
    emulated_by = emulation(machine, os.environ, cpu.architecture)
    return Facts(
        board=board.model,
        board_source=board.source,
        cpu=cpu,
        memory=memory_facts(machine),
        system=SystemFacts(os_name(machine), platform.release(), _libc()),
        python=_python(),
        numpy_version=numpy_version(),
        runtimes=installed_runtimes(import_runtimes, beat),
        sensors=sensor_facts(machine),
        throttle=throttle_readings(machine),
        temperatures=temperature_readings(machine),
        power_mode=power_mode(machine),
        firmware=firmware(machine),
        disk_free_bytes=free_space(root, ".").free_bytes,
        load_average=_load_average(machine),
        emulated=bool(emulated_by),
        emulation=emulated_by,
        container=container(machine, os.environ),
        hypervisor=hypervisor(machine),
    )


def _python() -> PythonFacts:
    return PythonFacts(
        platform.python_version(), platform.python_implementation(), sys.executable, 8 * struct.calcsize("P")
    )


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):  # musl
        return ""


def _load_average(machine: Machine) -> float:
    words = machine.text("/proc/loadavg").split()
    try:
        return float(words[0])
    except (IndexError, ValueError):
        return 0.0
