"""Formatting of quantities for people. Numbers are stored in the unit that their name ends with."""

from __future__ import annotations


def format_ns(duration_ns: float) -> str:
    """A duration in the unit that gives three significant digits: ``1.23 ms``."""
    for limit, divisor, unit in ((1e3, 1.0, "ns"), (1e6, 1e3, "µs"), (1e9, 1e6, "ms")):
        if duration_ns < limit:
            return f"{_three_digits(duration_ns / divisor)} {unit}"
    return f"{_three_digits(duration_ns / 1e9)} s"


def format_bytes(size_bytes: float) -> str:
    """A size in binary units: ``1.21 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{_three_digits(size_bytes)} {unit}"
        size_bytes /= 1024
    return f"{_three_digits(size_bytes)} GiB"


def format_mj(energy_mj: float) -> str:
    """An energy, given in millijoules: ``12.3 mJ``."""
    return f"{_three_digits(energy_mj)} mJ" if energy_mj < 1e3 else f"{_three_digits(energy_mj / 1e3)} J"


def format_mw(power_mw: float) -> str:
    """A power, given in milliwatts: ``4.56 W``."""
    return f"{_three_digits(power_mw)} mW" if power_mw < 1e3 else f"{_three_digits(power_mw / 1e3)} W"


def format_share(share: float) -> str:
    """A share between 0 and 1 as per cent: ``98.4 %``."""
    return f"{100 * share:.1f} %"


def _three_digits(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
