"""Scales of what is added, chosen so that integer kernels add without an error of their own.

Kernels bring both operands onto the output's grid by integer factors. XNNPACK's have 21 bits: its
``a_multiplier`` is ``round(scale_a / scale_out * 2**shift)`` (src/microparams-init.c). That moves a few
sums in a million over a tie, which ONNX Runtime's float factors do not, and in a chain of residual sums
every later layer carries such a difference on. Scales whose ratios are such integers to begin with leave
none; they differ from those that calibration chose by less than a millionth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgepipe.quantize.grid import Grid
from edgepipe.quantize.plan import Plan, holder

if TYPE_CHECKING:
    import onnx_ir as ir

FACTOR_BITS = 20
"""The greater factor of a sum lies in [2**20, 2**21)."""
MOST_MOVED = 2.0**-12
"""The greatest part of itself that a scale may move by. One that is so much finer than the other operand's
that it would move further, or become 0, adds less than the kernels' rounding of it could be seen by."""
_SUMS = frozenset({"Add", "Sub"})


def align_sums(
    plan: Plan, groups: Sequence[Sequence[ir.Value]], grids: Mapping[ir.Value, Grid]
) -> dict[ir.Value, Grid]:
    """The same grids with the scales of operands of sums moved by at most 2**-21 of their sum's.

    Args:
        plan: The plan.
        groups: Which tensors share a grid, as `share_grids` gives them; they are moved together.
        grids: Grid of each tensor.

    Returns:
        A grid for each tensor of `grids`; fixed ones, those of 16 bits, and those that would move by more
        than `MOST_MOVED` as they were.
    """
    aligned = dict(grids)
    members = {value: group for group in groups for value in group}
    settled = set(plan.fixed)
    for node in reversed([node for node in plan.schemes if node.op_type in _SUMS]):
        operands = [value for value in node.inputs if value in aligned]
        result = holder(node.outputs[0], aligned)
        if result is None or len(operands) < 2:
            continue
        settled.update(members.get(result, (result,)))
        step = aligned[result].scale
        largest = max(aligned[value].scale for value in operands) / step
        unit = step * 2.0 ** (math.floor(math.log2(largest)) - FACTOR_BITS)
        for value in operands:
            if value not in settled and aligned[value].bits == 8:
                own = aligned[value].scale
                scale = float(np.float32(round(own / unit) * unit))
                if abs(scale - own) <= MOST_MOVED * own:
                    grid = msgspec.structs.replace(aligned[value], scale=scale)
                    aligned.update(dict.fromkeys(members[value], grid))
            settled.update(members.get(value, (value,)))
    return aligned
