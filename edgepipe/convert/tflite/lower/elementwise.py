"""Element-wise arithmetic, with broadcasting."""

from __future__ import annotations

from functools import partial

from edgepipe.convert.tflite.layout import Layout, plain
from edgepipe.convert.tflite.lower.site import Rule, Site, options, steps_of_inputs, steps_of_products


def shared_layout(site: Site) -> Layout:
    """The layout for an element-wise op: that of the first input of full rank which is not plain."""
    rank = len(site.result().shape)
    inputs = [index for index in range(len(site.node.inputs)) if site.value(index).data is None]
    layouts = [site.layout(index) for index in inputs if len(site.value(index).shape) == rank]
    chosen = next((layout for layout in layouts if layout != plain(rank)), plain(rank))
    # Features in an order of their own can meet constants (which are rearranged), not computed values.
    return plain(rank) if chosen.sizes and len(inputs) > 1 and set(layouts) != {chosen} else chosen


def lower_arithmetic(site: Site, code: str, table: str) -> None:
    """Add, Sub, Mul, Div: two inputs on grids of their own."""
    layout = shared_layout(site)
    operands = [site.operand(0, layout), site.operand(1, layout)]
    fields = options(table, fusedActivationFunction=site.node.activation)
    site.builder.operator(code, operands, [site.define(layout)], fields)


def lower_division(site: Site) -> None:
    """Div: on int8, where TFLite has none, a MUL by the reciprocal of a constant scalar."""
    if not site.integer:
        return lower_arithmetic(site, "DIV", "DivOptions")
    layout = shared_layout(site)
    reciprocal = site.scalar("reciprocal", 1 / float(site.value(1).real().reshape(())))
    fields = options("MulOptions", fusedActivationFunction=site.node.activation)
    return site.builder.operator("MUL", [site.operand(0, layout), reciprocal], [site.define(layout)], fields)


def lower_sum(site: Site) -> None:
    """Sum of two; of one, nothing is written."""
    if len(site.node.inputs) == 1:
        site.alias(site.layout(), site.read())
    elif len(site.node.inputs) == 2:
        lower_arithmetic(site, "ADD", "AddOptions")
    else:
        raise site.refuse("it adds more than two tensors", "add them in pairs, so that each sum has a scale")


def lower_extremum(site: Site, code: str) -> None:
    """Max, Min: all inputs on the grid of the output; more than two are taken in turn."""
    layout = shared_layout(site)
    grid = site.result().grid if site.integer else None
    left = site.operand(0, layout, grid)
    count = len(site.node.inputs)
    for index in range(1, count):
        right = site.operand(index, layout, grid)
        last = index == count - 1
        result = (
            site.define(layout)
            if last
            else site.builder.like(left, f"{site.node.outputs[0]}/part", left.shape)
        )
        site.builder.operator(code, [left, right], [result], options("MaximumMinimumOptions"))
        left = result


def lower_unary(site: Site, code: str, table: str | None) -> None:
    """A function of each element, in the layout that the input has."""
    layout = site.layout()
    site.builder.operator(code, [site.read()], [site.define(layout)], options(table) if table else None)


def lower_requantize(site: Site) -> None:
    """A value read on a second grid: readers convert it themselves."""
    site.alias(site.layout(), site.read())


RULES = {
    "Add": Rule(partial(lower_arithmetic, code="ADD", table="AddOptions"), int16=True, steps=steps_of_inputs),
    "Sum": Rule(lower_sum, int16=True, steps=steps_of_inputs),
    "Sub": Rule(partial(lower_arithmetic, code="SUB", table="SubOptions"), int16=True, steps=steps_of_inputs),
    "Mul": Rule(
        partial(lower_arithmetic, code="MUL", table="MulOptions"), int16=True, steps=steps_of_products
    ),
    "Div": Rule(lower_division, scalars=(1,)),
    "Max": Rule(partial(lower_extremum, code="MAXIMUM"), int16=True),
    "Min": Rule(partial(lower_extremum, code="MINIMUM"), int16=True),
    "Abs": Rule(partial(lower_unary, code="ABS", table="AbsOptions"), integer=False),
    "Exp": Rule(partial(lower_unary, code="EXP", table="ExpOptions"), integer=False),
    "Log": Rule(partial(lower_unary, code="LOG", table=None), integer=False),
    "Neg": Rule(partial(lower_unary, code="NEG", table="NegOptions"), integer=False),
    "Sqrt": Rule(partial(lower_unary, code="SQRT", table=None), integer=False),
    "Requantize": Rule(lower_requantize, crosses=True),
}
