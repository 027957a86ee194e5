"""What is shown of emulated devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgepipe.emulator.device import EmulatedDevice
from edgepipe.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


def devices_table(devices: Sequence[EmulatedDevice]) -> RenderableType:
    """One row a device."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    if not devices:
        return Text("no emulated device; start one: edgepipe emulator up --target raspberrypi4")
    table = Table(box=SIMPLE_HEAD)
    for name in ("target", "state", "address", "cores", "memory"):
        table.add_column(name, overflow="fold")
    for device in devices:
        address = str(device.host) if device.port else ""
        cores, memory = f"{device.cpus:g}", format_bytes(device.memory_bytes)
        table.add_row(device.target, device.state, address, cores, memory)
    return table


def device_summary(device: EmulatedDevice) -> Text:
    """What to do with a device that was started."""
    from rich.text import Text

    name = device.target
    return Text.assemble(
        (f"emulated {name} is up", "bold"),
        f" at {device.host}\n",
        f"use it      edgepipe deploy MODEL --target {name} --emulate --data DATA\n",
        f"log in      edgepipe emulator shell --target {name}\n",
        f"            ssh -F {device.access.config} {name}\n",
        f"take down   edgepipe emulator down --target {name}",
    )


def gone_text(names: Sequence[str]) -> Text:
    """Which devices were taken down."""
    from rich.text import Text

    return Text(f"taken down: {', '.join(names)}" if names else "no emulated device was up")
