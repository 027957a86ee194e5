"""The integers that reals are rounded to."""

from __future__ import annotations


def limits(bits: int) -> tuple[int, int]:
    """The least and the greatest signed integer of so many bits: -128 and 127 for 8."""
    return -(1 << bits - 1), (1 << bits - 1) - 1
