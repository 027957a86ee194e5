"""What the terminal shows of a device."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from device_agent import protocol
from edgepipe.bundle import Pushed
from edgepipe.report import text
from edgepipe.units import format_bytes


def push_summary(pushed: Pushed) -> RenderableType:
    """A bundle that is on a device now."""
    return Text.assemble(
        ("pushed to ", ""), (pushed.host, "bold"), f": {pushed.folder}\n",
        (f"bundle {pushed.bundle_digest[:12]}, agent {pushed.agent_digest[:12]}", "dim"),
    )  # fmt: skip


def facts_table(facts: protocol.Facts) -> RenderableType:
    """What a device says of itself."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts_rows(facts):
        table.add_row(Text(name), Text(value or text.NONE))
    return table


def _facts_rows(facts: protocol.Facts) -> list[tuple[str, str]]:
    cpu, memory, python = facts.cpu, facts.memory, facts.python
    clocks = ", ".join(
        f"{each.name} {each.governor} {each.min_khz / 1e6:.2f} to {each.max_khz / 1e6:.2f} GHz"
        for each in cpu.policies
    )
    runtimes = ", ".join(f"{each.name} {each.version} {each.note}".strip() for each in facts.runtimes)
    sensors = [f"{each.source} ({each.coverage})" for each in facts.sensors if each.available]
    return [
        ("board", facts.board),
        ("emulation", facts.emulation if facts.emulated else "none seen"),
        ("CPU", f"{cpu.model}, {cpu.architecture}, {cpu.cores} of {cpu.cores_online} cores"),
        ("features", " ".join(cpu.features)),
        ("clocks", clocks),
        ("memory", f"{format_bytes(memory.total_bytes)}, {format_bytes(memory.available_bytes)} available"),
        ("system", f"{facts.system.name}, kernel {facts.system.kernel}, {facts.system.libc}"),
        ("firmware", facts.firmware),
        ("power mode", facts.power_mode),
        ("Python", f"{python.version} ({python.bits} bit) {python.executable}"),
        ("numpy", facts.numpy_version or "missing"),
        ("runtimes", runtimes or "none"),
        ("power sensors", ", ".join(sensors) or "none"),
        ("throttling", ", ".join(f"{each.name} {each.value}" for each in facts.throttle)),
        ("temperatures", ", ".join(f"{each.name} {each.value / 1e3:.0f} °C" for each in facts.temperatures)),
        ("load average", f"{facts.load_average:.2f}"),
        ("free disk", format_bytes(facts.disk_free_bytes)),
        ("container", facts.container),
    ]
