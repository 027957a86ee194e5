"""Ops that move elements: axes follow the layout, grids stay, and no TRANSPOSE is written for CNNs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepipe.convert.tflite import emit
from edgepipe.convert.tflite.lower import RULES
from edgepipe.errors import UnsupportedOp
from edgepipe.quantize import plan

RNG = np.random.default_rng(11)
KERNEL = RNG.normal(size=(4, 3, 1, 1)).astype(np.float32)


def behind_conv(tools, nodes, constants=None, **settings):
    """The nodes read "c", a conv's output [1, 4, 6, 5]."""
    return tools.model(
        [("Conv", ["x", "w"], ["c"], {}), *nodes],
        {"x": [1, 3, 6, 5]},
        {"w": KERNEL, **(constants or {})},
        **settings,
    )


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
def test_concat(tools, axis):
    nodes = [("Relu", ["c"], ["r"], {}), ("Concat", ["c", "r", "c"], ["y"], {"axis": axis})]
    for emission in tools.both(behind_conv(tools, nodes), steps=2):
        assert "TRANSPOSE" not in emission.op_counts


def test_concat_with_a_constant(tools):
    """Option A shortcuts of CIFAR ResNets, as some exporters write them."""
    constants = {"k": np.zeros((1, 2, 6, 5), np.float32)}
    model = behind_conv(tools, [("Concat", ["k", "c", "k"], ["y"], {"axis": 1})], constants)
    tools.both(model)


def test_option_a_shortcut(tools):
    """A strided slice and a pad of channels, added to a strided conv."""
    constants = {
        "starts": np.array([0, 0]),
        "ends": np.array([2**62, 2**62]),
        "axes": np.array([2, 3]),
        "steps": np.array([2, 2]),
        "pads": np.array([0, 2, 0, 0, 0, 2, 0, 0]),
        "v": RNG.normal(size=(8, 4, 3, 3)).astype(np.float32),
    }
    model = behind_conv(
        tools,
        [
            ("Slice", ["c", "starts", "ends", "axes", "steps"], ["s"], {}),
            ("Pad", ["s", "pads"], ["p"], {}),
            ("Conv", ["c", "v"], ["d"], {"strides": [2, 2], "pads": [1] * 4}),
            ("Add", ["d", "p"], ["a"], {}),
            ("Relu", ["a"], ["y"], {}),
        ],
        constants,
    )
    for emission in tools.both(model, steps=2):
        assert not {"TRANSPOSE", "QUANTIZE"} & set(emission.op_counts)


@settings(max_examples=60)
@given(data=st.data())
def test_slice(tools, data):
    shape = (1, 4, 6, 5)
    axes = data.draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=3, unique=True))
    bounds = [(data.draw(st.integers(-7, 7)), data.draw(st.integers(-8, 9))) for _ in axes]
    steps = [data.draw(st.sampled_from([1, 1, 2, 3, -1, -2])) for _ in axes]
    cuts = zip(axes, bounds, steps, strict=True)
    if any(len(range(shape[axis])[slice(*bound, step)]) == 0 for axis, bound, step in cuts):
        return
    starts, ends = zip(*bounds, strict=True)
    constants = {
        "starts": np.array(starts), "ends": np.array(ends), "axes": np.array(axes), "steps": np.array(steps)
    }  # fmt: skip
    emission = tools.same(behind_conv(tools, [("Slice", ["c", *constants], ["y"], {})], constants))
    assert "TRANSPOSE" not in emission.op_counts


@settings(max_examples=40)
@given(
    amounts=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    value=st.sampled_from([None, 0.0, 1.5, -2.0]),
    mode=st.sampled_from(["constant", "reflect"]),
)
def test_pad(tools, amounts, value, mode):
    pads = np.array([0, *amounts[:3], 0, *amounts[3:]])
    constants = {"pads": pads} | ({"value": np.float32(value)} if value is not None else {})
    model = behind_conv(tools, [("Pad", ["c", *constants], ["y"], {"mode": mode})], constants)
    tools.same(model)


def test_int8_pad(tools):
    constants = {"pads": np.array([0, 1, 2, 0, 0, 0, 1, 3])}
    model = behind_conv(tools, [("Pad", ["c", "pads"], ["y"], {})], constants)
    emission = tools.both(model)[1]
    assert emission.op_counts == {"CONV_2D": 1, "PAD": 1}


@pytest.mark.parametrize(("mode", "pads"), [("edge", [1] * 8), ("constant", [0, 0, -1, 0, 0, 0, 0, 0])])
def test_pads_that_tflite_lacks_are_refused(tools, mode, pads):
    model = behind_conv(tools, [("Pad", ["c", "pads"], ["y"], {"mode": mode})], {"pads": np.array(pads)})
    with pytest.raises(UnsupportedOp) as caught:
        emit(model)
    assert caught.value.got == "Pad"


def test_split(tools):
    model = behind_conv(
        tools,
        [
            ("Split", ["c", "sizes"], ["a", "b"], {"axis": 1}),
            ("Relu", ["b"], ["z"], {}),
            ("Concat", ["z", "a"], ["y"], {"axis": 1}),
        ],
        {"sizes": np.array([1, 3])},
    )
    tools.both(model, steps=2)


@pytest.mark.parametrize("indices", [np.array(1), np.array([2, -1, 0])])
@pytest.mark.parametrize("axis", [1, 2])
def test_gather(tools, indices, axis):
    model = behind_conv(tools, [("Gather", ["c", "i"], ["y"], {"axis": axis})], {"i": indices})
    for emission in tools.both(model):
        assert "TRANSPOSE" not in emission.op_counts


def test_channel_shuffle(tools):
    """Reshape, Transpose, Reshape as in ShuffleNet: the order changes, so one TRANSPOSE stays."""
    constants = {
        "wide": np.array([1, 2, 2, 6, 5]),
        "back": np.array([1, 4, 6, 5]),
        "v": RNG.normal(size=(2, 4, 1, 1)).astype(np.float32),
    }
    model = behind_conv(
        tools,
        [
            ("Reshape", ["c", "wide"], ["r"], {}),
            ("Transpose", ["r"], ["t"], {"perm": [0, 2, 1, 3, 4]}),
            ("Reshape", ["t", "back"], ["s"], {}),
            ("Conv", ["s", "v"], ["y"], {}),
        ],
        constants,
    )
    for emission in tools.both(model, steps=2):
        assert emission.op_counts["TRANSPOSE"] == 1


def test_a_leading_and_a_trailing_transpose_vanish(tools):
    """What tf2onnx makes of NHWC models: the ports stay NHWC and nothing is moved."""
    model = tools.model(
        [
            ("Transpose", ["x"], ["t"], {"perm": [0, 3, 1, 2]}),
            ("Conv", ["t", "w"], ["c"], {"pads": [1] * 4}),
            ("Relu", ["c"], ["r"], {}),
            ("Transpose", ["r"], ["y"], {"perm": [0, 2, 3, 1]}),
        ],
        {"x": ["n", 6, 5, 3]},
        {"w": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)},
    )
    for emission in tools.both(model):
        assert set(emission.op_counts) <= {"CONV_2D", "RELU"}
        assert emission.inputs[0].permutation == (0, 1, 2, 3)
        assert emission.outputs[0].permutation == (0, 1, 2, 3)


def test_ports_of_an_nchw_model_are_channels_last(tools):
    emission = tools.same(behind_conv(tools, [("Relu", ["c"], ["y"], {})]))
    assert emission.inputs[0].shape == (1, 6, 5, 3)
    assert emission.inputs[0].permutation == (0, 2, 3, 1)
    assert emission.outputs[0].permutation == (0, 2, 3, 1)


def test_the_input_looks_through_other_ops_for_its_layout(tools):
    """Normalization before the first conv must not cost a TRANSPOSE."""
    constants = {"mean": np.ones((3, 1, 1), np.float32), "w": KERNEL}
    model = tools.model(
        [("Sub", ["x", "mean"], ["s"], {}), ("Conv", ["s", "w"], ["y"], {})], {"x": [1, 3, 6, 5]}, constants
    )
    for emission in tools.both(model):
        assert emission.op_counts == {"CONV_2D": 1, "SUB": 1}


@pytest.mark.parametrize(
    ("op", "axes"), [("Squeeze", [2]), ("Unsqueeze", [0]), ("Unsqueeze", [4]), ("Unsqueeze", [2, 3])]
)
def test_unit_axes(tools, op, axes):
    model = tools.model(
        [("ReduceMean", ["x"], ["m"], {"axes": [2]}), (op, ["m", "axes"], ["y"], {})],
        {"x": [1, 3, 6, 5]},
        {"axes": np.array(axes)},
    )
    tools.both(model)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [1], [-1], [1, 2], None])
def test_reductions(tools, op, keepdims, axes):
    attributes = {"keepdims": keepdims}
    constants = {}
    if axes is not None and op == "ReduceSum":
        constants["axes"] = np.array(axes)
    elif axes is not None:
        attributes["axes"] = axes
    model = behind_conv(tools, [(op, ["c", *constants], ["y"], attributes)], constants)
    for emission in tools.both(model, steps=2):
        assert "TRANSPOSE" not in emission.op_counts


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(tools, mode):
    model = tools.model(
        [("DepthToSpace", ["x"], ["y"], {"blocksize": 2, "mode": mode})], {"x": [1, 12, 3, 5]}
    )
    expected = {"DEPTH_TO_SPACE": 1} | ({"GATHER": 1} if mode == "CRD" else {})
    assert [emission.op_counts for emission in tools.both(model, same_grid=("DepthToSpace",))] == [
        expected
    ] * 2


def test_space_to_depth(tools):
    model = tools.model([("SpaceToDepth", ["x"], ["y"], {"blocksize": 3})], {"x": [1, 2, 6, 9]})
    emissions = tools.both(model, same_grid=("SpaceToDepth",))
    assert [emission.op_counts for emission in emissions] == [{"SPACE_TO_DEPTH": 1}] * 2


@pytest.mark.parametrize("op", ["Tile", "Expand"])
@pytest.mark.parametrize(
    ("old", "new"), [([1, 3, 1, 1], [1, 3, 4, 5]), ([1, 1], [1, 7]), ([1, 2, 3], [1, 2, 3])]
)
def test_repetition(tools, op, old, new):
    numbers = [after // before for before, after in zip(old, new, strict=True)] if op == "Tile" else new
    model = tools.model([(op, ["x", "n"], ["y"], {})], {"x": old}, {"n": np.array(numbers)})
    for emission in tools.both(model, same_grid=(op,)):
        assert emission.op_counts.keys() <= {"CONCATENATION"}


def test_every_op_that_is_quantized_can_be_written():
    planned = plan.LINEAR | plan.KEEPING | plan.FREE | plan.FIXED.keys() | plan.CLIPPING
    assert planned - {"Identity"} <= RULES.keys()  # an Identity is read as its input
