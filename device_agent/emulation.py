"""Whether this is the hardware that it looks like.

QEMU's user mode rewrites /proc/self/exe for the program that it runs, but neither /proc/thread-self/exe
(seen with 7.2) nor what the host's kernel says of its processor.
"""

import os
import re
from typing import Mapping

from device_agent.cpu import cpuinfo_architecture
from device_agent.machine import Machine

_X86 = ("x86_64", "i386", "i486", "i586", "i686")
_VENDORS = (
    "QEMU",
    "VMware",
    "innotek",
    "VirtualBox",
    "Xen",
    "Microsoft",
    "Amazon EC2",
    "Google",
    "Parallels",
)


def emulation(machine: Machine, environment: Mapping[str, str], architecture: str) -> str:
    """What emulates this device and how that was seen; "" for hardware that is what it seems.

    Args:
        machine: Where to look.
        environment: Environment variables of the agent.
        architecture: What uname says: "aarch64".
    """
    if environment.get("EDGEPIPE_EMBEDDED"):
        return "edgepipe's embedded device: this host's own processor"
    if environment.get("EDGEPIPE_EMULATED"):
        return "an emulated device (EDGEPIPE_EMULATED={})".format(environment["EDGEPIPE_EMULATED"])
    program = _target(machine, "/proc/thread-self/exe")
    if os.path.basename(program).startswith("qemu-"):
        return "QEMU user mode ({})".format(program)
    shown = cpuinfo_architecture(machine)
    actual = "x86" if architecture in _X86 else "arm" if architecture.startswith(("arm", "aarch")) else ""
    if shown and actual and shown != actual:
        return "user-mode emulation (/proc/cpuinfo is of {}, uname says {})".format(shown, architecture)
    return ""


def container(machine: Machine, environment: Mapping[str, str]) -> str:
    """The container that this runs in: "docker", "podman", "lxc", ..., or ""."""
    if environment.get("container"):
        return environment["container"]
    if machine.exists("/.dockerenv"):
        return "docker"
    if machine.exists("/run/.containerenv"):
        return "podman"
    text = machine.text("/run/systemd/container")
    if text:
        return text
    match = re.search(r"/(docker|lxc|kubepods|libpod)\b", machine.text("/proc/1/cgroup"))
    return match.group(1) if match else ""


def hypervisor(machine: Machine) -> str:
    """The virtual machine that this runs in, "" where none is seen."""
    vendor = machine.text("/sys/class/dmi/id/sys_vendor")
    product = machine.text("/sys/class/dmi/id/product_name")
    if any(name in vendor for name in _VENDORS) and "Surface" not in product:
        return " ".join(word for word in (vendor, product) if word)
    kind = machine.text("/sys/hypervisor/type")
    if kind:
        return kind
    flags = re.search(r"^flags\s*:.*\bhypervisor\b", machine.text("/proc/cpuinfo"), re.MULTILINE)
    return "unnamed (the processor's hypervisor flag is set)" if flags else ""


def _target(machine: Machine, link: str) -> str:
    try:
        return os.readlink(machine.path(link))
    except OSError:
        return ""
