"""Activations: alone, fused behind other ops, and swallowed by a grid that saturates where they clip."""

import numpy as np
import pytest

from edgepipe.convert.tflite import emit
from edgepipe.errors import UnsupportedOp

RNG = np.random.default_rng(3)
ACTIVATIONS = [
    ("Relu", {}),
    ("Sigmoid", {}),
    ("Tanh", {}),
    ("HardSwish", {}),
    ("HardSigmoid", {}),
    ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    ("LeakyRelu", {"alpha": 0.2}),
    ("Elu", {}),
    ("Softmax", {"axis": 1}),
    ("Softmax", {"axis": -1}),
    ("LogSoftmax", {"axis": 1}),
]


@pytest.mark.parametrize(("op", "attributes"), ACTIVATIONS)
@pytest.mark.parametrize("behind_conv", [False, True])
def test_activation(tools, op, attributes, behind_conv):
    nodes = [("Conv", ["x", "w"], ["c"], {})] if behind_conv else []
    nodes.append((op, ["c" if behind_conv else "x"], ["y"], attributes))
    weight = RNG.normal(size=(4, 3, 1, 1)).astype(np.float32)
    model = tools.model(nodes, {"x": [1, 3, 5, 4]}, {"w": weight} if behind_conv else {})
    # Fixed output grids are coarser than those of the calibrated range: a step there is several here.
    tools.both(model, steps=3 if op in {"HardSigmoid", "Softmax", "LogSoftmax"} else 2)


def clip_model(tools, bounds, *, opset=17):
    low, high = bounds
    weight = RNG.normal(size=(4, 3, 1, 1)).astype(np.float32)
    constants = {"w": weight}
    names = ["c"]
    attributes = {}
    if opset < 11:
        attributes = {k: v for k, v in (("min", low), ("max", high)) if v is not None}
    else:
        constants |= {k: np.float32(v) for k, v in (("low", low), ("high", high)) if v is not None}
        names += ["low" if low is not None else "", "high" if high is not None else ""]
        while not names[-1]:
            names.pop()
    nodes = [("Conv", ["x", "w"], ["c"], {}), ("Clip", names, ["y"], attributes)]
    return tools.model(nodes, {"x": [1, 3, 5, 4]}, constants, opset=opset)


@pytest.mark.parametrize("bounds", [(0, 6), (0, None), (-1, 1)])
@pytest.mark.parametrize("opset", [9, 17])
def test_known_clips_are_fused(tools, bounds, opset):
    emission = tools.same(clip_model(tools, tuple(b if b is None else float(b) for b in bounds), opset=opset))
    assert emission.op_counts == {"CONV_2D": 1}


@pytest.mark.parametrize("bounds", [(0, 1), (-0.5, 0.25), (0.1, None), (None, 0.5), (None, None)])
def test_other_clips_are_bounds(tools, bounds):
    model = clip_model(tools, bounds)
    feeds = tools.feeds(model)
    tools.same(model)
    emission = tools.same_steps(tools.quantize(model, feeds, same_grid={"Clip"}), feeds)
    assert set(emission.op_counts) <= {"CONV_2D", "MAXIMUM", "MINIMUM"}


def test_a_clip_where_the_grid_saturates_writes_nothing(tools):
    """The range after the clip is that of the clip: int8 arithmetic saturates there by itself."""
    model = clip_model(tools, (0.0, 0.5))
    feeds = tools.feeds(model)
    emission = tools.same_steps(tools.quantize(model, feeds, skip={"c"}), feeds)
    assert emission.op_counts == {"CONV_2D": 1}


def test_an_activation_of_a_value_read_twice_is_not_fused(tools):
    weight = RNG.normal(size=(3, 3, 1, 1)).astype(np.float32)
    model = tools.model(
        [("Conv", ["x", "w"], ["c"], {}), ("Relu", ["c"], ["r"], {}), ("Add", ["c", "r"], ["y"], {})],
        {"x": [1, 3, 4, 4]},
        {"w": weight},
    )
    assert tools.both(model)[0].op_counts == {"ADD": 1, "CONV_2D": 1, "RELU": 1}


def test_an_activation_of_an_output_is_not_fused(tools):
    weight = RNG.normal(size=(3, 3, 1, 1)).astype(np.float32)
    model = tools.model(
        [("Conv", ["x", "w"], ["c"], {}), ("Relu", ["c"], ["y"], {})],
        {"x": [1, 3, 4, 4]},
        {"w": weight},
        outputs=("c", "y"),
    )
    tools.both(model, steps=2)


@pytest.mark.parametrize("slope", [(3, 1, 1), (1,), (1, 3, 1, 1)])
@pytest.mark.parametrize("behind_conv", [False, True])
def test_prelu(tools, slope, behind_conv):
    constants = {"k": np.abs(RNG.normal(size=slope)).astype(np.float32)}
    nodes = [("PRelu", ["c" if behind_conv else "x", "k"], ["y"], {})]
    if behind_conv:
        constants["w"] = RNG.normal(size=(3, 3, 1, 1)).astype(np.float32)
        nodes.insert(0, ("Conv", ["x", "w"], ["c"], {}))
    tools.both(tools.model(nodes, {"x": [1, 3, 5, 4]}, constants), steps=2)


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
@pytest.mark.parametrize("op", ["Add", "Mul", "Sub"])
def test_fused_behind_arithmetic(tools, op, activation):
    bounds = ["", "six"] if activation == "Clip" else []
    constants = {"six": np.float32(6), "zero": np.float32(0)} if bounds else {}
    inputs = ["s", "zero", "six"] if bounds else ["s"]
    model = tools.model(
        [(op, ["a", "b"], ["s"], {}), (activation, inputs, ["y"], {})],
        {"a": [1, 3, 4, 4], "b": [1, 3, 4, 4]},
        constants,
    )
    emission = tools.same(model)
    assert emission.op_counts == {op.upper(): 1}


def test_softmax_before_op_set_13_over_many_axes_is_refused(tools):
    model = tools.model([("Softmax", ["x"], ["y"], {"axis": 1})], {"x": [1, 3, 4, 4]}, opset=11)
    with pytest.raises(UnsupportedOp, match="several axes"):
        emit(model)
