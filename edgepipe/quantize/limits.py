"""What lies beyond integer kernels: outputs far finer than what they are summed up from, vanishing values.

Kernels bring what they add up onto the output's grid by a factor, the multiplier of Jacob et al. 2018
(arXiv 1712.05877), equation 5. Where it is large, one step of a product is many steps of the output: the
terms cancel, and what is left of them is less than their own rounding. XNNPACK takes no factor from 256 on
(LiteRT then refuses the whole file), and such an output says nothing on integers anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgepipe.events import Emit, Warned
from edgepipe.graph import edit
from edgepipe.quantize.grid import INT32_MAX, SMALLEST_SCALE, Grid, activation_grid, weight_max
from edgepipe.quantize.plan import Plan, holder, make_plan
from edgepipe.quantize.scheme import node_name

if TYPE_CHECKING:
    import onnx_ir as ir

    Range = tuple[float, float]

MOST_STEPS = 128.0
"""How many steps of the output one step of what is added up may be, and not as many: half of what XNNPACK
takes, as rounding by the error of the output may still widen the steps of weights."""
_TERMS = frozenset({"Add", "Sub"})
_FACTORS = frozenset({"MatMul", "Mul"})
_NAMED = 5
"""How many layers or tensors a warning names before it only counts."""


def keep_within_limits(
    graph: ir.Graph,
    plan: Plan,
    grids: Mapping[ir.Value, Grid],
    ranges: Mapping[ir.Value, Range],
    *,
    symmetric: bool,
    emit: Emit,
) -> tuple[Plan, dict[ir.Value, Grid]]:
    """Leaves layers whose output is too fine for integers in float, and names what is lost otherwise.

    Args:
        graph: The float graph that `plan` was made for.
        plan: What to quantize in it.
        grids: Grid of each tensor of the plan.
        ranges: Least and greatest value seen of each.
        symmetric: As for the plan.
        emit: Gets a warning of those layers, and one of tensors that are taken for zero.

    Returns:
        The plan without those layers, and the grids of what is left in it.
    """
    coarse = [node for node in plan.schemes if _steps(node, plan, grids) >= MOST_STEPS]
    if coarse:
        schemes = dict(plan.schemes)
        inner = {node.outputs[0] for node in coarse}
        for node in (*coarse, *(each for each in plan.clipped if each.inputs[0] in inner)):
            schemes[node] = msgspec.structs.replace(schemes[node], keep_float=True)
        plan = make_plan(graph, schemes, symmetric=symmetric)
        emit(Warned(*_of_coarse(coarse)))
    lost = {value: most for value in plan.tensors if (most := _vanishing(value, grids, ranges))}
    if lost:
        names = _listed(f"{value.name} (at most {most:.1g})" for value, most in lost.items())
        emit(Warned(f"too small for integers, and taken for zero: {names}", "scale the model's numbers up"))
    return plan, {value: grids[value] for value in plan.tensors}


def _of_coarse(nodes: list[ir.Node]) -> tuple[str, str]:
    """Text and remedy."""
    which = "1 layer is" if len(nodes) == 1 else f"{len(nodes)} layers are"
    names = _listed(f"{node.op_type} ({node_name(node)})" for node in nodes)
    text = (
        f"{which} left in float, as output steps are over {MOST_STEPS:.0f} times finer than what is added up"
    )
    return f"{text}: {names}", "terms cancel, or channels differ too much, which quantize.equalize evens out"


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more


def _steps(node: ir.Node, plan: Plan, grids: Mapping[ir.Value, Grid]) -> float:
    """How many steps of a node's output one step of what it adds up is; 0 where that is no question.

    Counted in steps of an output of 8 bits, also where it has 16.
    """
    made = holder(node.outputs[0], grids)
    if made is None or plan.schemes[node].keep_float:
        return 0.0
    steps = 0.0
    if node in plan.linears:
        steps = _product_step(node, plan.schemes[node].weight_bits, grids)
    elif node.op_type in _TERMS:
        steps = max(_step(node, index, grids) for index in range(2))
    elif node.op_type in _FACTORS:
        steps = _step(node, 0, grids) * _step(node, 1, grids)
    return steps / (grids[made].scale * 2.0 ** (grids[made].bits - 8))


def _product_step(node: ir.Node, bits: int, grids: Mapping[ir.Value, Grid]) -> float:
    """The step of a linear op's products in its coarsest channel."""
    step, bias = _step(node, 0, grids), edit.constant_input(node, 2)
    least = 0.0 if bias is None else float(np.abs(bias).max(initial=0.0)) / INT32_MAX
    greatest = float(np.abs(edit.array_at(node, 1)).max(initial=0.0))
    return max(step * greatest / weight_max(bits), least)


def _step(node: ir.Node, index: int, grids: Mapping[ir.Value, Grid]) -> float:
    """The step of an operand: a constant has the grid that holds it, and a float has none, 0."""
    value = node.inputs[index]
    if value is not None and value in grids:
        return grids[value].scale
    array = edit.constant_input(node, index)
    if array is None or not array.size:
        return 0.0
    return activation_grid(float(array.min()), float(array.max())).scale


def _vanishing(value: ir.Value, grids: Mapping[ir.Value, Grid], ranges: Mapping[ir.Value, Range]) -> float:
    """The greatest magnitude of a tensor that is rounded to zero for want of a finer grid; 0 for others."""
    low, high = ranges[value]
    most = max(-low, high, 0.0)
    finest = SMALLEST_SCALE * 2.0 ** grids[value].bits
    return most if most < finest and 2 * most < grids[value].scale else 0.0
