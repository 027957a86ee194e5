"""Intel's and AMD's running average power limit counters (docs.kernel.org/power/powercap)."""

import errno
from typing import List, NamedTuple

from device_agent.machine import Machine
from device_agent.power.source import Source, Unavailable, read_number


class _Domain(NamedTuple):
    name: str
    counter: str
    range_uj: int


class _Counter:
    """Sums the packages' counters and undoes their wrapping, which takes minutes at least."""

    def __init__(self, domains: List[_Domain]) -> None:
        self._domains = domains
        self._last_uj = [read_number(domain.counter) for domain in domains]
        self._total_uj = 0

    def read(self) -> float:
        for index, domain in enumerate(self._domains):
            now_uj = read_number(domain.counter)
            step_uj = now_uj - self._last_uj[index]
            self._total_uj += step_uj if step_uj >= 0 else step_uj + domain.range_uj
            self._last_uj[index] = now_uj
        return float(self._total_uj)


def open_source(machine: Machine) -> Source:
    """Opens the counters of all CPU packages.

    Raises:
        Unavailable: There are none, or only root may read them.
    """
    domains = []
    # intel-rapl-mmio repeats the same packages, and intel-rapl:N:M are parts of package N.
    for folder in machine.glob("/sys/class/powercap/intel-rapl:*"):
        name = machine.text(folder + "/name")
        range_uj = machine.integer(folder + "/max_energy_range_uj")
        if folder.count(":") == 1 and name.startswith("package") and range_uj:
            domains.append(_Domain(name, machine.path(folder + "/energy_uj"), range_uj))
    if not domains:
        raise Unavailable("no package under /sys/class/powercap/intel-rapl:*")
    try:
        counter = _Counter(domains)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise Unavailable(
                "energy_uj is readable by root only: run the agent as root, or chmod it"
            ) from None
        raise Unavailable(str(error)) from None
    except ValueError as error:
        raise Unavailable("energy_uj: {}".format(error)) from None
    return Source(
        name="rapl",
        kind="counter",
        coverage="soc",
        rails=tuple(domain.name for domain in domains),
        period_ns=50000000,
        read=counter.read,
        wrap_uj=min(domain.range_uj for domain in domains),
        note="CPU packages, without main memory, disks and the power supply's losses",
    )
