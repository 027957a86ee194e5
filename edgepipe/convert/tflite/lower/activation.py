"""Activations that stand alone, and those that TFLite has only as a chain of other ops."""

from __future__ import annotations

from functools import partial

import numpy as np

from edgepipe.convert.tflite.graph import Grid
from edgepipe.convert.tflite.layout import Layout
from edgepipe.convert.tflite.lower.site import Rule, Site, options, steps_of_inputs
from edgepipe.convert.tflite.program import Options, Tensor

# Output grids that TFLite's int8 specification fixes.
UNIT = Grid((1 / 256,), (-128,))
SIGNED_UNIT = Grid((1 / 128,), (0,))
LOG_PROBABILITY = Grid((16 / 256,), (127,))
# That of Softmax, Sigmoid and Tanh on int16.
UNIT_16 = Grid((1 / 32768,), (0,), bits=16)
# Clips that TFLite has as one op, and can fuse behind others.
FUSED = {(0.0, np.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}


def clip_bounds(settings: dict[str, object]) -> tuple[float, float]:
    """Lower and upper bound of a Clip; infinite where it has none."""
    low, high = settings.get("min"), settings.get("max")
    bounds = [-np.inf if low is None else np.float64(low), np.inf if high is None else np.float64(high)]  # type: ignore[arg-type]
    # Exporters write the largest float32 for "no bound".
    largest = float(np.finfo(np.float32).max)
    return -np.inf if bounds[0] <= -largest else float(bounds[0]), np.inf if bounds[1] >= largest else float(
        bounds[1]
    )


def lower_clip(site: Site) -> None:
    """Relu, Clip: one op where TFLite has it, else MAXIMUM and MINIMUM; nothing where the grid saturates."""
    low, high = (0.0, np.inf) if site.node.op == "Relu" else clip_bounds(site.node.settings)
    source, layout = site.read(), site.layout()
    grid = site.result().grid if site.integer else None
    if grid is not None and grid.saturates_at(low, high):
        site.alias(layout, source)
    elif (low, high) in FUSED:
        site.builder.operator(FUSED[low, high], [source], [site.define(layout)])
    else:
        _clip_by_bounds(site, source, layout, (low, high))


def _clip_by_bounds(site: Site, source: Tensor, layout: Layout, bounds: tuple[float, float]) -> None:
    bounded = [
        (code, bound)
        for code, bound in zip(("MAXIMUM", "MINIMUM"), bounds, strict=True)
        if np.isfinite(bound)
    ]
    if not bounded:
        site.alias(layout, source)
    for index, (code, bound) in enumerate(bounded):
        if index == len(bounded) - 1:
            result = site.define(layout, grid=source.grid)
        else:
            result = site.builder.like(source, f"{site.node.outputs[0]}/part", source.shape)
        limit = site.scalar("bound", bound, source.grid)
        site.builder.operator(code, [source, limit], [result], options("MaximumMinimumOptions"))
        source = result


def lower_fixed(site: Site, code: str, table: str | None, grid: Grid) -> None:
    """Sigmoid, Tanh: their output grid is fixed."""
    grid = grid if site.bits == 8 else UNIT_16
    fields = None if table is None else options(table)
    site.builder.operator(code, [site.read()], [site.define(site.layout(), grid=grid)], fields)


def lower_simple(site: Site, code: str, table: str | None) -> None:
    """An activation that keeps input and output on grids of their own."""
    fields = None if table is None else options(table)
    site.builder.operator(code, [site.read()], [site.define(site.layout())], fields)


def lower_gelu(site: Site) -> None:
    """Gelu, exact or approximated by a tanh."""
    fields = options("GeluOptions", approximate=site.setting("approximate", "none") == "tanh")
    site.builder.operator("GELU", [site.read()], [site.define(site.layout())], fields)


def lower_leaky_relu(site: Site) -> None:
    """LeakyRelu: alpha * x below 0."""
    fields = options("LeakyReluOptions", alpha=float(site.setting("alpha", 0.01)))
    site.builder.operator("LEAKY_RELU", [site.read()], [site.define(site.layout())], fields)


def lower_prelu(site: Site) -> None:
    """PRelu with constant slopes: the slope has the input's rank less the batch, channels last."""
    if site.value(1).data is None:
        raise site.refuse("its slopes are computed at run time")
    layout = site.layout()
    slope = site.operand(1, layout)
    if len(slope.shape) == len(layout.perm):
        slope = site.builder.constant(slope.name, np.asarray(slope.data).reshape(slope.shape[1:]), slope.grid)
    site.builder.operator("PRELU", [site.read(), slope], [site.define(layout)])


def lower_softmax(site: Site, code: str, grid: Grid) -> None:
    """Softmax, LogSoftmax along what must be the tensor's last axis."""
    shape = site.value().shape
    axis = int(site.setting("axis", 1 if site.node.opset < 13 else -1)) % len(shape)
    if site.node.opset < 13 and any(size > 1 for size in shape[axis + 1 :]):
        raise site.refuse(
            "before op set 13 it normalizes over several axes at once", "export with op set 13 or later"
        )
    layout = site.layout()
    if layout.perm[-1] != axis or layout.sizes:
        layout = Layout((*(other for other in layout.perm if other != axis), axis))
    table = options("SoftmaxOptions", beta=1.0) if code == "SOFTMAX" else options("LogSoftmaxOptions")
    grid = grid if site.bits == 8 else UNIT_16
    site.builder.operator(code, [site.read(0, layout)], [site.define(layout, grid=grid)], table)


def lower_hard_sigmoid(site: Site) -> None:
    """HardSigmoid, ``clip(alpha * x + beta, 0, 1)``, as ``alpha * clip(x + beta / alpha, 0, 1 / alpha)``.

    On int8 the sum is written on the grid of [0, 1 / alpha], whose saturation is the clip.
    """
    alpha, beta = float(site.setting("alpha", 0.2)), float(site.setting("beta", 0.5))
    source, layout = site.read(), site.layout()
    top = 1 / alpha
    grid = Grid((float(np.float32(top / 255)),), (-128,)) if site.integer else None
    shifted = site.scratch("shifted", source.shape, grid)
    six = np.isclose(top, 6.0)
    activation = "NONE" if site.integer else "RELU6" if six else "RELU"
    _binary(
        site,
        "ADD",
        [source, site.scalar("shift", beta / alpha)],
        shifted,
        options("AddOptions", fusedActivationFunction=activation),
    )
    if not site.integer and not six:
        clipped = site.scratch("clipped", source.shape)
        _binary(
            site, "MINIMUM", [shifted, site.scalar("top", top)], clipped, options("MaximumMinimumOptions")
        )
        shifted = clipped
    table = options("MulOptions", fusedActivationFunction="NONE")
    _binary(site, "MUL", [shifted, site.scalar("slope", alpha)], site.define(layout), table)


def _binary(site: Site, code: str, inputs: list[Tensor], result: Tensor, table: Options) -> None:
    site.builder.operator(code, [*inputs], [result], table)


RULES = {
    "Relu": Rule(lower_clip, int16=True),
    "Clip": Rule(lower_clip, int16=True),
    "Sigmoid": Rule(partial(lower_fixed, code="LOGISTIC", table=None, grid=UNIT), int16=True),
    "Tanh": Rule(partial(lower_fixed, code="TANH", table=None, grid=SIGNED_UNIT), int16=True),
    "Elu": Rule(partial(lower_simple, code="ELU", table=None)),
    "HardSwish": Rule(
        partial(lower_simple, code="HARD_SWISH", table="HardSwishOptions"),
        steps=steps_of_inputs,
        most_steps=2.0**7,
    ),
    "HardSigmoid": Rule(lower_hard_sigmoid),
    "Gelu": Rule(lower_gelu),
    "LeakyRelu": Rule(lower_leaky_relu, int16=True),
    "PRelu": Rule(lower_prelu),
    "Softmax": Rule(partial(lower_softmax, code="SOFTMAX", grid=UNIT), int16=True),
    "LogSoftmax": Rule(partial(lower_softmax, code="LOG_SOFTMAX", grid=LOG_PROBABILITY)),
}
