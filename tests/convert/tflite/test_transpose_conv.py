"""Transposed convolutions: every geometry is either the same as in ONNX Runtime, or refused."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgepipe.convert.tflite import emit
from edgepipe.errors import UnsupportedOp


@st.composite
def geometries(draw):
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    strides = [draw(st.integers(1, 3)) for _ in range(2)]
    pads = [draw(st.integers(0, k - 1)) for k in (*kernel, *kernel)]
    extra = [draw(st.integers(0, s - 1)) for s in strides]
    size = [draw(st.integers(1, 5)) for _ in range(2)]
    for axis in range(2):
        assume(
            (size[axis] - 1) * strides[axis] + kernel[axis] - pads[axis] - pads[axis + 2] + extra[axis] > 0
        )
    return {"kernel_shape": kernel, "strides": strides, "pads": pads, "output_padding": extra}, size


def build(tools, attributes, size, *, bias=True):
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(3, 4, *attributes["kernel_shape"])).astype(np.float32)}
    if bias:
        constants["b"] = rng.normal(size=4).astype(np.float32)
    return tools.model(
        [("ConvTranspose", ["x", *constants], ["y"], attributes)], {"x": [1, 3, *size]}, constants
    )


@settings(max_examples=80)
@given(case=geometries(), bias=st.booleans())
def test_the_same_or_refused(tools, case, bias):
    model = build(tools, *case, bias=bias)
    try:
        emit(model)
    except UnsupportedOp as refusal:
        assert "past its windows" in refusal.what  # noqa: PT017  either outcome is right, a wrong file is not
        return
    tools.both(model)


@pytest.mark.parametrize(
    ("kernel", "pad", "extra", "ops"),
    [
        (2, 0, 0, {"TRANSPOSE_CONV"}),
        (4, 1, 0, {"TRANSPOSE_CONV"}),
        (3, 1, 1, {"STRIDED_SLICE", "TRANSPOSE_CONV"}),
    ],
)
def test_what_decoders_use(tools, kernel, pad, extra, ops):
    """Kernels that double a map: the first two are TFLite's own paddings, the third needs a crop."""
    attributes = {
        "kernel_shape": [kernel] * 2, "strides": [2, 2], "pads": [pad] * 4, "output_padding": [extra] * 2
    }  # fmt: skip
    for emission in tools.both(build(tools, attributes, [5, 6])):
        assert set(emission.op_counts) == ops


def test_groups_are_refused(tools):
    constants = {"w": np.ones((4, 1, 2, 2), np.float32)}
    model = tools.model([("ConvTranspose", ["x", "w"], ["y"], {"group": 4})], {"x": [1, 4, 3, 3]}, constants)
    with pytest.raises(UnsupportedOp, match="grouped"):
        emit(model)
