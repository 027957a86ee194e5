"""Layer normalization, which TFLite has as a chain of float ops."""

from __future__ import annotations

import numpy as np

from edgepipe.convert.tflite.layout import plain
from edgepipe.convert.tflite.lower.site import Rule, Site, options
from edgepipe.convert.tflite.program import Tensor


def lower_layer_normalization(site: Site) -> None:
    """LayerNormalization: ``gamma (x - mean) / sqrt(variance + epsilon) + beta`` over the last axes."""
    shape = site.value().shape
    first = int(site.setting("axis", -1)) % len(shape)
    constant = all(site.value(index).data is not None for index in range(1, len(site.node.inputs)))
    if len(site.node.outputs) > 1 or not constant:
        raise site.refuse("only its first output is written, with a constant scale and bias")
    layout = plain(len(shape))
    source = site.read(0, layout)
    axes = site.integers("axes", range(first, len(shape)))
    reduced = (*shape[:first], *(1,) * (len(shape) - first))
    mean = _mean(site, source, axes, reduced, "mean")
    squares = _binary(site, "SQUARED_DIFFERENCE", (source, mean), "squares", "SquaredDifferenceOptions")
    variance = _mean(site, squares, axes, reduced, "variance")
    epsilon = site.scalar("epsilon", float(site.setting("epsilon", 1e-5)))
    shifted = _binary(site, "ADD", (variance, epsilon), "shifted", "AddOptions")
    inverse = site.scratch("inverse", reduced)
    site.builder.operator("RSQRT", [shifted], [inverse])
    centred = _binary(site, "SUB", (source, mean), "centred", "SubOptions")
    current = _binary(site, "MUL", (centred, inverse), "normal", "MulOptions")
    steps = [("MUL", "MulOptions"), ("ADD", "AddOptions")][: len(site.node.inputs) - 1]
    for index, (code, table) in enumerate(steps, start=1):
        value = site.value(index)
        operand = site.builder.constant(value.name, value.real().astype(np.float32))
        result = site.define(layout) if index == len(steps) else site.scratch("scaled", shape)
        fields = options(table, fusedActivationFunction="NONE")
        site.builder.operator(code, [current, operand], [result], fields)
        current = result


def _mean(site: Site, source: Tensor, axes: Tensor, shape: tuple[int, ...], suffix: str) -> Tensor:
    result = site.scratch(suffix, shape)
    site.builder.operator("MEAN", [source, axes], [result], options("ReducerOptions", keepDims=True))
    return result


def _binary(site: Site, code: str, operands: tuple[Tensor, Tensor], suffix: str, table: str) -> Tensor:
    shape = np.broadcast_shapes(operands[0].shape, operands[1].shape)
    result = site.scratch(suffix, shape)
    fused = {} if table == "SquaredDifferenceOptions" else {"fusedActivationFunction": "NONE"}
    site.builder.operator(code, list(operands), [result], options(table, **fused))
    return result


RULES = {"LayerNormalization": Rule(lower_layer_normalization, integer=False)}
