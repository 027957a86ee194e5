"""Transposed convolutions: TRANSPOSE_CONV, cropped where its SAME is not ONNX's pads."""

from __future__ import annotations

import msgspec
import numpy as np

from edgepipe.convert.tflite.layout import channels_last
from edgepipe.convert.tflite.lower.site import Rule, Site, options
from edgepipe.convert.tflite.lower.weights import integer_weights, steps_of_accumulators
from edgepipe.convert.tflite.program import Tensor

# TFLite's order of ONNX's kernel axes [in, out, kh, kw].
_ORDER = (1, 2, 3, 0)


def lower_conv_transpose(site: Site) -> None:
    """ConvTranspose of one group without dilation: ``weight: float32 or int8 [in, out, kh, kw]``."""
    weight = site.value(1)
    if weight.data is None or len(weight.shape) != 4:
        raise site.refuse("its weights are computed at run time, or are not over height and width")
    if int(site.setting("group", 1)) != 1 or set(site.setting("dilations", [1])) != {1}:
        raise site.refuse("it is grouped or dilated")
    strides = [int(stride) for stride in site.setting("strides", [1, 1])]
    sizes, results = site.value().shape[2:], site.result().shape[2:]
    full = [(size - 1) * s + k for size, s, k in zip(sizes, strides, weight.shape[2:], strict=True)]
    before = _pads_before(site, full, results)
    rest = [size - result for size, result in zip(full, results, strict=True)]
    fits = zip(sizes, results, strides, rest, before, strict=True)
    same = all(size == -(-result // s) and r >= 0 and b == r // 2 for size, result, s, r, b in fits)
    valid = not any(rest) and not any(before)
    if any(b + result > size for b, result, size in zip(before, results, full, strict=True)):
        raise site.refuse("its output reaches past its windows")
    kernel, bias = _weights(site)
    source, layout = site.read(0, channels_last(4)), channels_last(4)
    result = site.define(layout)
    whole = (
        result
        if same or valid
        else site.builder.like(result, f"{result.name}/whole", (1, *full, kernel.shape[0]))
    )
    shape = site.integers("shape", whole.shape)
    padding = "SAME" if same and not valid else "VALID"
    fields = options("TransposeConvOptions", padding=padding, strideH=strides[0], strideW=strides[1])
    site.builder.operator("TRANSPOSE_CONV", [shape, kernel, source, bias], [whole], fields)
    if whole is not result:
        _crop(site, whole, result, before)


def _pads_before(site: Site, full: list[int], results: tuple[int, ...]) -> list[int]:
    auto_pad = str(site.setting("auto_pad", "NOTSET"))
    if auto_pad == "NOTSET" and site.setting("output_shape") is None:
        return [int(pad) for pad in site.setting("pads", [0] * 4)[:2]]
    if auto_pad == "VALID":
        return [0, 0]
    if auto_pad == "SAME_LOWER" or site.setting("output_shape") is not None:
        raise site.refuse("its pads follow from its output shape")
    return [max(size - result, 0) // 2 for size, result in zip(full, results, strict=True)]


def _weights(site: Site) -> tuple[Tensor, Tensor]:
    """Kernel [out, kh, kw, in] and bias [out], zeros where there is none."""
    weight, bias = site.value(1), site.value(2) if site.has(2) else None
    name = bias.name if bias else f"{weight.name}/bias"
    if site.integer:
        ready = integer_weights(site, weight, 1, bias)
        grid = msgspec.structs.replace(ready.weight_grid, axis=0)
        kernel = site.builder.constant(weight.name, ready.weight.transpose(_ORDER), grid)
        return kernel, site.builder.constant(name, ready.bias, ready.bias_grid)
    kernel = site.builder.constant(weight.name, weight.real().transpose(_ORDER).astype(np.float32))
    real = np.zeros(weight.shape[1]) if bias is None else bias.real()
    return kernel, site.builder.constant(name, real.astype(np.float32))


def _crop(site: Site, source: Tensor, result: Tensor, before: list[int]) -> None:
    begin = [0, *before, 0]
    end = [start + size for start, size in zip(begin, result.shape, strict=True)]
    bounds = [site.integers("begin", begin), site.integers("end", end), site.integers("step", [1] * 4)]
    site.builder.operator("STRIDED_SLICE", [source, *bounds], [result], options("StridedSliceOptions"))


RULES = {
    "ConvTranspose": Rule(
        lower_conv_transpose, weights=(2,), per_channel=(1,), int16=True, steps=steps_of_accumulators
    ),
}
