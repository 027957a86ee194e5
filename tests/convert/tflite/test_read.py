"""Reading ONNX: what is folded, what becomes a grid, and what is refused by name."""

import numpy as np
import pytest

from edgepipe.convert.tflite import check, emit
from edgepipe.convert.tflite.graph import Grid
from edgepipe.convert.tflite.read import read
from edgepipe.errors import ModelError, UnsupportedOp

RNG = np.random.default_rng(2)
STEPS = {"s": np.float32(0.1), "z": np.int8(-5), "t": np.float32(0.2), "u": np.uint8(123)}


def pair(name, result, scale="s", zero="z"):
    return [
        ("QuantizeLinear", [name, scale, zero], [f"{name}_q"], {}),
        ("DequantizeLinear", [f"{name}_q", scale, zero], [result], {}),
    ]


def test_pairs_become_grids(tools):
    model = tools.model([*pair("x", "d"), ("Relu", ["d"], ["r"], {}), *pair("r", "y")], {"x": [1, 3]}, STEPS)
    graph = read(model)
    assert [node.op for node in graph.nodes] == ["Relu"]
    step = float(np.float32(0.1))
    assert graph.values["x"].grid == graph.values["r"].grid == Grid((step,), (-5,))
    assert graph.outputs == (("y", "r"),)


def test_unsigned_grids_are_shifted(tools):
    """uint8 with zero point 123 is int8 with zero point -5: the same reals, the same file."""
    nodes = lambda zero: [*pair("x", "d", zero=zero), ("Relu", ["d"], ["r"], {}), *pair("r", "y", zero=zero)]  # noqa: E731
    signed, unsigned = (emit(tools.model(nodes(zero), {"x": [1, 3]}, STEPS)) for zero in "zu")
    assert signed.payload == unsigned.payload


def test_a_second_grid_is_a_requantization(tools):
    nodes = [
        *pair("x", "d"),
        *pair("d", "e", scale="t"),
        ("Relu", ["e"], ["r"], {}),
        *pair("r", "y", scale="t"),
    ]
    model = tools.model(nodes, {"x": [1, 5]}, STEPS)
    feeds = tools.feeds(model)
    assert tools.same_steps(model, feeds).op_counts == {"MUL": 1, "RELU": 1}


def test_unmarked_moves_take_the_grid_of_their_neighbour(tools):
    """Some quantizers mark only what computes: reshapes and pools between stay on integers here."""
    model = tools.model(
        [
            *pair("x", "d"),
            ("MaxPool", ["d"], ["p"], {"kernel_shape": [2, 2]}),
            ("Flatten", ["p"], ["f"], {}),
            ("Relu", ["f"], ["r"], {}),
            *pair("r", "y", scale="t"),
        ],
        {"x": [1, 3, 4, 4]},
        STEPS,
    )
    feeds = tools.feeds(model)
    emission = tools.same_steps(model, feeds)
    assert "DEQUANTIZE" not in emission.op_counts


@pytest.mark.parametrize("float_weights", [False, True])
@pytest.mark.parametrize("unsigned", [False, True])
def test_both_ways_to_write_weights(tools, float_weights, unsigned):
    """int8 initializers with a DQ, and float initializers with a Q/DQ pair, are the same weights."""
    model = tools.model(
        [("Conv", ["x", "w", "b"], ["y"], {})],
        {"x": [1, 3, 5, 5]},
        {
            "w": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32),
            "b": RNG.normal(size=4).astype(np.float32),
        },
    )
    feeds = tools.feeds(model)
    tools.same_steps(tools.quantize(model, feeds, unsigned=unsigned, float_weights=float_weights), feeds)


def test_transposed_quantized_weights_fold(tools):
    """A Transpose between the DQ and the MatMul moves the axis of the scales too."""
    weight = RNG.integers(-127, 127, size=(5, 8)).astype(np.int8)
    scales = np.linspace(0.01, 0.05, 5, dtype=np.float32)
    model = tools.model(
        [
            *pair("x", "d"),
            ("DequantizeLinear", ["w", "ws", "wz"], ["wd"], {"axis": 0}),
            ("Transpose", ["wd"], ["wt"], {"perm": [1, 0]}),
            ("MatMul", ["d", "wt"], ["m"], {}),
            *pair("m", "y", scale="t"),
        ],
        {"x": [1, 8]},
        STEPS | {"w": weight, "ws": scales, "wz": np.zeros(5, np.int8)},
    )
    feeds = tools.feeds(model)
    assert tools.same_steps(model, feeds).op_counts == {"FULLY_CONNECTED": 1}


def test_a_dequantized_constant_in_a_float_graph_is_float(tools):
    """What tf2onnx makes of TFLite files with compressed weights."""
    weight = RNG.integers(-127, 127, size=(5, 8)).astype(np.int8)
    model = tools.model(
        [("DequantizeLinear", ["w", "s", "z"], ["wd"], {}), ("Gemm", ["x", "wd"], ["y"], {"transB": 1})],
        {"x": [1, 8]},
        STEPS | {"w": weight},
    )
    emission = tools.same(model)
    assert emission.precision == "float32"
    assert emission.op_counts == {"FULLY_CONNECTED": 1}


def test_identity_and_dropout_vanish(tools):
    model = tools.model(
        [("Identity", ["x"], ["i"], {}), ("Dropout", ["i"], ["d"], {}), ("Relu", ["d"], ["y"], {})],
        {"x": [1, 3]},
    )
    assert tools.same(model).op_counts == {"RELU": 1}


def test_what_no_output_needs_is_left_out(tools):
    model = tools.model([("Exp", ["x"], ["unused"], {}), ("Relu", ["x"], ["y"], {})], {"x": [1, 3]})
    assert tools.same(model).op_counts == {"RELU": 1}


def test_free_batch_becomes_one(tools):
    emission = emit(tools.model([("Relu", ["x"], ["y"], {})], {"x": ["n", 3]}))
    assert emission.inputs[0].shape == emission.outputs[0].shape == (1, 3)


def test_a_free_size_is_refused(tools):
    model = tools.model([("Relu", ["x"], ["y"], {})], {"x": [1, 3, "h", "w"]})
    with pytest.raises(ModelError, match="fixed size") as caught:
        check(model)
    assert caught.value.where == "x"


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf, -1.0])
def test_a_scale_that_is_no_positive_number_is_refused(tools, scale):
    model = tools.model(pair("x", "y"), {"x": [1, 3]}, STEPS | {"s": np.float32(scale)})
    with pytest.raises(ModelError, match="positive"):
        check(model)


def test_an_activation_per_channel_is_refused(tools):
    constants = {"s": np.ones(3, np.float32), "z": np.zeros(3, np.int8)}
    with pytest.raises(UnsupportedOp, match="per channel"):
        check(tools.model(pair("x", "y"), {"x": [1, 3]}, constants))


def test_other_widths_are_refused(tools):
    constants = {"s": np.float32(0.1), "z": np.int64(0)}
    with pytest.raises(UnsupportedOp, match="int64"):
        check(tools.model(pair("x", "y"), {"x": [1, 3]}, constants, opset=21))


def test_an_unknown_op_is_named_before_any_work(tools):
    nodes = [("Relu", ["x"], ["r"], {}), ("Det", ["r"], ["y"], {"name": "the_one"})]
    with pytest.raises(UnsupportedOp) as caught:
        check(tools.model(nodes, {"x": [1, 3, 3]}))
    assert caught.value.where == "node the_one"
    assert caught.value.got == "Det"
    assert caught.value.remedy


def test_a_shape_that_depends_on_data_is_refused(tools):
    with pytest.raises(UnsupportedOp, match="depends on data"):
        check(tools.model([("NonZero", ["x"], ["y"], {})], {"x": [1, 3]}))


def test_a_setting_that_is_computed_is_refused(tools):
    nodes = [("Cast", ["k"], ["i"], {"to": 7}), ("Reshape", ["x", "i"], ["y"], {})]
    with pytest.raises(UnsupportedOp):
        check(tools.model(nodes, {"x": [1, 4], "k": [2]}))


def test_a_constant_output_is_refused(tools):
    model = tools.model([("Relu", ["k"], ["y"], {})], {"x": [1, 3]}, {"k": np.ones(3, np.float32)})
    with pytest.raises(ModelError, match="constant"):
        check(model)


def test_foreign_domains_are_refused(tools):
    model = tools.model([("Relu", ["x"], ["y"], {})], {"x": [1, 3]})
    proto = model.to_onnx()
    proto.graph.node[0].domain = "com.example"
    from edgepipe.model import onnx_model

    with pytest.raises(UnsupportedOp, match=r"com\.example"):
        check(onnx_model(proto, "m"))


@pytest.mark.parametrize("element", ["double", "float16"])
@pytest.mark.parametrize("body", ["c = Cast<to=1>(x)  y = Conv(c, w)", "y = Relu(x)"])
def test_an_input_that_is_no_float32_is_refused(build_model, element, body):
    result = "float" if "Cast" in body else element
    model = build_model(
        f"net ({element}[n,3,4,4] x) => ({result}[n,3,4,4] y) {{ {body} }}",
        w=np.ones((3, 3, 1, 1), np.float32),
    )
    with pytest.raises(UnsupportedOp):
        check(model)


def test_what_lies_between_casts_from_float32_computes_in_float32(build_model, tools):
    model = build_model(
        """net (float[1,8] x) => (float[1,8] y) {
            h = Cast<to=10>(x)
            r = Relu(h)
            y = Cast<to=1>(r)
        }"""
    )
    assert emit(model).op_counts == {"RELU": 1}


def test_types_that_do_not_fit_are_refused(build_model):
    model = build_model(
        "net (float[1,8] x) => (double[1,8] y) { d = Cast<to=11>(x)  y = Add(d, k) }", k=np.ones(8)
    )
    with pytest.raises(UnsupportedOp, match="Add"):
        check(model)
