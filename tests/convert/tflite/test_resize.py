"""Resizing: every combination of modes is either the same as in ONNX Runtime, or refused."""

from itertools import product

import numpy as np
import pytest

from edgepipe.convert.tflite import emit
from edgepipe.errors import UnsupportedOp

COORDINATES = ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"]
ROUNDINGS = ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]


def resize(tools, size, **attributes):
    sizes = {"sizes": np.array([1, 3, *size])}
    return tools.model([("Resize", ["x", "", "", "sizes"], ["y"], attributes)], {"x": [1, 3, 4, 5]}, sizes)


@pytest.mark.parametrize("size", [(8, 10), (12, 10), (7, 9), (3, 2), (4, 5), (8, 7)])
@pytest.mark.parametrize(("coordinates", "rounding"), [*product(COORDINATES, ROUNDINGS)])
def test_nearest_is_the_same_or_refused(tools, size, coordinates, rounding):
    modes = {"mode": "nearest", "coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    model = resize(tools, size, **modes)
    try:
        emit(model)
    except UnsupportedOp as refusal:
        assert refusal.got == "Resize"  # noqa: PT017  either outcome is right, a wrong file is not
    else:
        tools.same(model)


@pytest.mark.parametrize("size", [(8, 10), (7, 9), (3, 2), (8, 7)])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_linear(tools, size, coordinates):
    tools.same(resize(tools, size, mode="linear", coordinate_transformation_mode=coordinates))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_what_torch_writes_for_upsampling_by_two(tools, mode):
    nearest = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    linear = {"coordinate_transformation_mode": "half_pixel"}
    attributes = {"mode": mode, **(nearest if mode == "nearest" else linear)}
    model = tools.model(
        [("Resize", ["x", "", "scales"], ["y"], attributes)],
        {"x": [1, 3, 4, 5]},
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    )
    for emission in tools.both(model, same_grid={"Resize"}):
        assert len(emission.op_counts) == 1


def test_cubic_is_refused(tools):
    with pytest.raises(UnsupportedOp, match="cubic"):
        emit(resize(tools, (8, 10), mode="cubic"))
