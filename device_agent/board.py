"""Which board this is, and the vendor's settings of it."""

import re
from typing import NamedTuple

from device_agent.machine import Machine


class Board(NamedTuple):
    """The board's model and the file that told it; both "" where nothing does."""

    model: str
    source: str


def read_board(machine: Machine) -> Board:
    """Reads the device tree's model (Arm boards) or the firmware tables (PCs)."""
    for path in ("/proc/device-tree/model", "/sys/firmware/devicetree/base/model"):
        model = machine.text(path)
        if model:
            return Board(model, path)
    folder = "/sys/class/dmi/id"
    words = [machine.text("{}/{}".format(folder, name)) for name in ("sys_vendor", "product_name")]
    model = " ".join(word for word in words if word)
    return Board(model, folder if model else "")


def power_mode(machine: Machine) -> str:
    """The power mode of a Jetson: "MAXN", "15W", ...; "" elsewhere."""
    if not machine.exists("/etc/nv_tegra_release"):
        return ""
    match = re.search(r"^NV Power Mode:\s*(.+)$", machine.run(("nvpmodel", "-q")), re.MULTILINE)
    return match.group(1).strip() if match else ""


def firmware(machine: Machine) -> str:
    """The vendor's release: "L4T R36.4.3" (Jetson) or "bootloader 2024/09/23" (Raspberry Pi 4 and 5)."""
    release = re.search(
        r"^# R(\d+) \(release\), REVISION: ([0-9.]+)", machine.text("/etc/nv_tegra_release"), re.MULTILINE
    )
    if release:
        return "L4T R{}.{}".format(*release.groups())
    if read_board(machine).model.startswith("Raspberry Pi"):
        date = re.match(r"\s*(\d{4}/\d{2}/\d{2})", machine.run(("vcgencmd", "bootloader_version")))
        if date:
            return "bootloader " + date.group(1)
    return ""


def os_name(machine: Machine) -> str:
    """PRETTY_NAME of os-release(5)."""
    text = machine.text("/etc/os-release") or machine.text("/usr/lib/os-release")
    match = re.search(r"^PRETTY_NAME=(.*)$", text, re.MULTILINE)
    return match.group(1).strip().strip("\"'") if match else ""
