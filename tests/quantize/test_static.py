"""Quantized graphs: their form, and what they compute, against a fake-quantized forward pass in numpy."""

import numpy as np
import pytest

from edgepipe.convert import ort, tflite
from edgepipe.errors import CalibrationDataMissing, ModelError
from edgepipe.events import Warned
from edgepipe.graph.simplify import Simplify
from edgepipe.quantize.grid import PROBABILITY
from edgepipe.quantize.static import QuantizeStatic
from edgepipe.runtime import infer, open_session

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.fixture
def quantize(make_context):
    """Simplifies and quantizes a model on samples of normal noise, and checks what always holds."""

    def run(model, activation="int8", emit=None, **settings):
        shape = [size or 32 for size in model.inputs[0].shape]
        samples = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        context = make_context(samples, activation=activation, **({"emit": emit} if emit else {}))
        simple = Simplify().apply(model, context)
        before = simple.payload
        result = QuantizeStatic(**settings).apply(simple, context)
        assert simple.payload == before
        assert (result.inputs, result.outputs) == (model.inputs, model.outputs)
        return simple, result, samples

    return run


def sqnr_db(exact, found):
    return 10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum())


CNN = """net (float[n,3,8,8] x) => (float[n,5] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    b = Relu(a)
    c = Conv<pads=[1,1,1,1], group=8>(b, w2, b2)
    d = Clip(c, zero, six)
    e = Conv(d, w3, b3)
    f = Add(e, b)
    g = MaxPool<kernel_shape=[2,2], strides=[2,2]>(f)
    h = GlobalAveragePool(g)
    i = Flatten(h)
    y = Gemm<transB=1>(i, w4, b4)
}"""
CONSTANTS = {
    "w1": normal(8, 3, 3, 3) / 5, "b1": normal(8), "w2": normal(8, 1, 3, 3), "b2": normal(8),
    "w3": normal(8, 8, 1, 1) / 3, "b3": normal(8), "w4": normal(5, 8), "b4": normal(5),
    "zero": np.float32(0), "six": np.float32(6),
}  # fmt: skip


@pytest.fixture
def cnn(build_model):
    return build_model(CNN, **CONSTANTS)


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize("activation", ["int8", "uint8", "int8-symmetric"])
def test_a_small_network_stays_close_to_float(cnn, quantize, compute, ranges, granularity, activation):
    simple, result, samples = quantize(cnn, activation, ranges=ranges, granularity=granularity)
    assert sqnr_db(compute(simple, samples)[0], compute(result, samples)[0]) > 22


def test_every_op_stands_between_dequantize_and_quantize(cnn, quantize, read_qdq):
    qdq = read_qdq(quantize(cnn)[1])
    assert qdq.core() == ["Conv", "Conv", "Conv", "Add", "MaxPool", "GlobalAveragePool", "Flatten", "Gemm"]
    for node in qdq.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for name in node.input:
            assert qdq.producers[name].op_type == "DequantizeLinear"
        takers = [other.op_type for other in qdq.nodes if node.output[0] in other.input]
        assert takers == ["QuantizeLinear"]


def test_weights_and_biases_are_integers_on_their_grids(cnn, quantize, read_qdq):
    qdq = read_qdq(quantize(cnn, bias_correction=False)[1])
    conv = qdq.nodes[[node.op_type for node in qdq.nodes].index("Conv")]
    weight, scales, axis = qdq.constant(conv, 1)
    assert (weight.dtype, weight.shape, axis) == (np.int8, (8, 3, 3, 3), 0)
    assert scales.shape == (8,)
    assert weight.min() >= -127
    np.testing.assert_allclose(
        weight * scales.reshape(-1, 1, 1, 1), CONSTANTS["w1"], atol=scales.max() / 2 * 1.001
    )
    bias, bias_scales, axis = qdq.constant(conv, 2)
    assert (bias.dtype, axis) == (np.int32, 0)
    np.testing.assert_array_equal(bias_scales, np.float32(qdq.grid("x")[0]) * scales)
    np.testing.assert_allclose(bias * bias_scales.astype(float), CONSTANTS["b1"], atol=bias_scales.max())
    stored = {tensor.data_type for tensor in qdq.proto.graph.initializer if int(np.prod(tensor.dims)) > 8}
    assert stored == {3}  # int8: no float weight is left in the file


def test_the_graph_computes_what_fake_quantization_computes(build_model, quantize, compute, read_qdq):
    model = build_model(
        "net (float[n,6] x) => (float[n,4] y) { a = Gemm<transB=1>(x, w, b)  y = Relu(a) }",
        w=normal(4, 6),
        b=normal(4),
    )
    _, result, samples = quantize(model)
    qdq = read_qdq(result)
    assert qdq.core() == ["Gemm"]

    def fake(values, scale, zero_point):
        return (
            np.clip(np.rint(values / np.float32(scale)) + zero_point, -128, 127) - zero_point
        ) * np.float32(scale)

    gemm = qdq.node("Gemm")
    (weight, scales, _), (bias, bias_scales, _) = qdq.constant(gemm, 1), qdq.constant(gemm, 2)
    x = fake(samples, *qdq.grid("x"))
    total = x @ (weight * scales[:, None]).T + bias * bias_scales
    expected = fake(total, *qdq.grid("y"))
    found = compute(result, samples)[0]
    np.testing.assert_allclose(found, expected, atol=1.01 * qdq.grid("y")[0])  # a tie may round either way
    assert (np.abs(found - expected) < 1e-5).mean() > 0.98
    assert found.min() == 0.0  # the Relu is in the grid


def test_bias_correction_removes_the_mean_error(cnn, quantize, compute):
    errors = []
    for corrected in (False, True):
        simple, result, samples = quantize(cnn, granularity="per-tensor", bias_correction=corrected)
        tensors = ["e"]
        exact, found = (
            compute(model, samples, tensors)[1].mean(axis=(0, 2, 3)) for model in (simple, result)
        )
        errors.append(np.abs(exact - found).mean())
    assert errors[1] < 0.6 * errors[0]


def test_activations_are_asymmetric_unless_the_target_wants_otherwise(cnn, quantize, read_qdq):
    assert read_qdq(quantize(cnn)[1]).grid("d")[1] == -128
    symmetric = read_qdq(quantize(cnn, "int8-symmetric")[1])
    zero_points = [
        symmetric.constants[node.input[2]] for node in symmetric.nodes if node.op_type == "QuantizeLinear"
    ]
    assert not np.any(zero_points)
    assert symmetric.core().count("Relu") == 1  # a grid of both signs does not clip at zero
    assert symmetric.core().count("Clip") == 1


def test_pools_and_layout_changes_keep_the_grid(build_model, quantize, read_qdq):
    model = build_model(
        """net (float[n,4,6,6] x) => (float[n,54] y) {
            p = MaxPool<kernel_shape=[2,2]>(x)
            q = AveragePool<kernel_shape=[2,2]>(p)
            s = Slice(q, zeros, threes, axes)
            d = Pad(s, pads)
            t = Transpose<perm=[0,2,3,1]>(d)
            y = Flatten(t)
        }""",
        zeros=np.array([0, 0]), threes=np.array([3, 3]), axes=np.array([2, 3]),
        pads=np.array([0, 1, 0, 0, 0, 1, 0, 0]),
    )  # fmt: skip
    qdq = read_qdq(quantize(model)[1])
    assert len({qdq.grid(name) for name in "xpqsdty"}) == 1


def test_concatenated_tensors_share_one_grid(build_model, quantize, read_qdq):
    model = build_model(
        """net (float[n,3,6,6] x) => (float[n,8,6,6] y) {
            a = Conv(x, w1)
            b = Conv(x, w2)
            c = Relu(b)
            y = Concat<axis=1>(a, c)
        }""",
        w1=normal(4, 3, 1, 1), w2=10 * normal(4, 3, 1, 1),
    )  # fmt: skip
    _simple, result, _samples = quantize(model)
    qdq = read_qdq(result)
    assert len({qdq.grid(name) for name in "acy"}) == 1
    assert "Relu" in qdq.core()  # the shared grid goes below zero


def test_a_fixed_grid_is_moved_onto_a_shared_one(build_model, quantize, read_qdq, compute):
    model = build_model(
        """net (float[n,4] x) => (float[n,12] y) {
            s = Sigmoid(x)
            d = Add(x, x)
            y = Concat<axis=1>(s, d, s)
        }"""
    )
    simple, result, samples = quantize(model)
    qdq = read_qdq(result)
    assert qdq.grid("s") == (PROBABILITY.scale, PROBABILITY.zero_point)
    assert qdq.grid("d") == qdq.grid("y")
    concat = qdq.node("Concat")
    scales = [qdq.constants[qdq.producers[name].input[1]] for name in concat.input]
    assert len(set(map(float, scales))) == 1
    error = np.abs(compute(simple, samples)[0] - compute(result, samples)[0]).max()
    assert error <= 1.6 * qdq.grid("y")[0]


@pytest.mark.parametrize(
    ("expression", "grid"),
    [
        ("Softmax(x)", (1 / 256, -128)),
        ("Sigmoid(x)", (1 / 256, -128)),
        ("Tanh(x)", (1 / 128, 0)),
        ("LogSoftmax(x)", (1 / 16, 127)),
    ],
)
def test_grids_of_the_tflite_specification(build_model, quantize, read_qdq, expression, grid):
    model = build_model(
        f"net (float[n,8] x) => (float[n,2,4] y) {{ a = {expression}  y = Reshape(a, shape) }}",
        shape=np.array([-1, 2, 4]),
    )
    qdq = read_qdq(quantize(model)[1])
    assert qdq.grid("a") == qdq.grid("y") == grid


def test_constants_in_arithmetic_are_quantized(build_model, quantize, read_qdq, compute):
    model = build_model(
        """net (float[n,4,5,5] x) => (float[n,4,5,5] y) {
            a = Mul(x, scale)
            y = Add(shift, a)
        }""",
        scale=normal(4, 1, 1), shift=normal(4, 1, 1),
    )  # fmt: skip
    simple, result, samples = quantize(model)
    qdq = read_qdq(result)
    assert qdq.constant(qdq.node("Mul"), 1)[0].dtype == np.int8
    assert qdq.constant(qdq.node("Add"), 0)[0].dtype == np.int8
    assert sqnr_db(compute(simple, samples)[0], compute(result, samples)[0]) > 35


def test_ops_without_an_integer_kernel_stay_in_float_with_a_warning(build_model, quantize, read_qdq, compute):
    model = build_model(
        "net (float[n,4] x) => (float[n,3] y) { a = Gemm(x, w)  b = Sin(a)  y = Gemm(b, v) }",
        w=normal(4, 4),
        v=normal(4, 3),
    )
    events = []
    simple, result, samples = quantize(model, emit=events.append)
    warnings = [event.text for event in events if isinstance(event, Warned)]
    assert len(warnings) == 1
    assert "Sin" in warnings[0]
    assert warnings[0].startswith("1 op has no integer kernel and stays in float")
    assert read_qdq(result).core() == ["Gemm", "Sin", "Gemm"]
    assert sqnr_db(compute(simple, samples)[0], compute(result, samples)[0]) > 25


def test_dead_channels_and_dead_tensors_have_sound_scales(build_model, quantize, read_qdq, compute):
    weight, bias = normal(4, 3, 1, 1), normal(4)
    weight[1] = 0
    model = build_model(
        "net (float[n,3,5,5] x) => (float[n,4,5,5] y) { a = Conv(x, w, b)  z = Mul(a, zero)  y = Add(a, z) }",
        w=weight, b=bias, zero=np.zeros((4, 5, 5), np.float32),
    )  # fmt: skip
    simple, result, samples = quantize(model)
    qdq = read_qdq(result)
    for name, array in qdq.constants.items():
        if array.dtype == np.float32:
            assert np.isfinite(array).all(), name
            assert (array > np.finfo(np.float32).tiny).all(), name
    assert sqnr_db(compute(simple, samples)[0], compute(result, samples)[0]) > 30


def test_a_shared_weight_serves_each_op_at_its_own_input_scale(build_model, quantize, compute):
    model = build_model(
        "net (float[n,4] x) => (float[n,4] y) { a = Gemm(x, w, b)  y = Gemm(a, w, b) }",
        w=normal(4, 4),
        b=normal(4),
    )
    simple, result, samples = quantize(model)
    assert sqnr_db(compute(simple, samples)[0], compute(result, samples)[0]) > 30


def test_a_tensor_that_is_output_and_input_of_more_keeps_its_name(build_model, quantize, compute):
    model = build_model(
        "net (float[n,4] x) => (float[n,4] a, float[n,3] y) { a = Gemm(x, w)  y = Gemm(a, v) }",
        w=normal(4, 4),
        v=normal(4, 3),
    )
    simple, result, samples = quantize(model)
    for exact, found in zip(compute(simple, samples), compute(result, samples), strict=True):
        assert sqnr_db(exact, found) > 30


def test_the_same_seed_gives_the_same_bytes(cnn, quantize):
    assert quantize(cnn)[1].digest == quantize(cnn)[1].digest


def test_a_quantized_model_passes_through(cnn, quantize, make_context):
    _, result, _ = quantize(cnn)
    assert QuantizeStatic().apply(result, make_context()) is result


def test_without_samples_there_is_no_calibration(cnn, make_context):
    with pytest.raises(CalibrationDataMissing):
        QuantizeStatic().apply(cnn, make_context())


def test_an_opset_without_scales_by_channel_is_refused(build_model, make_context):
    model = build_model("net (float[n,4] x) => (float[n,4] y) { y = Relu(x) }", opset=12)
    with pytest.raises(ModelError, match="opset 12"):
        QuantizeStatic().apply(model, make_context(normal(4, 4)))


def test_an_unusual_clip_that_stays_works_on_integers(build_model, quantize, read_qdq, compute):
    model = build_model(
        """net (float[n,3,6,6] x) => (float[n,8,6,6] y) {
            a = Conv(x, w1)
            b = Clip(a, low, high)
            c = Conv(x, w2)
            y = Concat<axis=1>(b, c)
        }""",
        w1=normal(4, 3, 1, 1), w2=normal(4, 3, 1, 1), low=np.float32(-0.2), high=np.float32(0.3),
    )  # fmt: skip
    simple, result, samples = quantize(model)
    qdq = read_qdq(result)
    assert qdq.producers[qdq.node("Clip").input[0]].op_type == "DequantizeLinear"
    assert qdq.grid("a") == qdq.grid("b") == qdq.grid("y")
    assert np.abs(compute(simple, samples)[0] - compute(result, samples)[0]).max() <= 3 * qdq.grid("y")[0]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("op", "shape"),
    [("Concat<axis=1>", "1,6"), ("Max", "n,3"), ("Min", "n,3"), ("Add", "n,3"), ("Mul", "n,3")],
)
def test_a_constant_takes_part_on_a_grid_that_holds_it(build_model, quantize, compute, op, shape, first):
    inputs = "k, c" if first else "c, k"
    model = build_model(
        f"net (float[{shape[0]},3,6,6] x) => (float[{shape},6,6] y) {{ c = Conv(x, w)  y = {op}({inputs}) }}",
        w=normal(3, 3, 1, 1),
        k=normal(1, 3, 6, 6),
    )
    simple, result, samples = quantize(model, ranges="minmax")
    assert sqnr_db(compute(simple, samples)[0], compute(result, samples)[0]) > 30


@pytest.mark.parametrize("value", [-1.5, 0.5])
def test_what_joins_a_probability_need_not_be_one(build_model, quantize, compute, value):
    model = build_model(
        """net (float[1,3,6,6] x) => (float[1,6,8,8] y, float[1,3,8,8] z) {
            c = Conv(x, w)
            s = Sigmoid(c)
            t = Concat<axis=1>(s, k)
            y = Pad(t, pads)
            z = Pad(s, pads, filler)
        }""",
        w=normal(3, 3, 1, 1), k=np.full((1, 3, 6, 6), value, np.float32),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]), filler=np.float32(value),
    )  # fmt: skip
    simple, result, samples = quantize(model)
    for exact, found in zip(compute(simple, samples), compute(result, samples), strict=True):
        assert sqnr_db(exact, found) > 30


SCALES = """net (float[n,3,8,8] x) => (float[n,5,8,8] y, float[n,4,8,8] z) {{
    a = Conv(x, w)
    b = Conv(x, large)
    j = {join}
    y = Conv(j, v)
    {last}
}}"""
JOINTS = ["Concat<axis=1>(a, b, a)", "Max(a, b)", "Min(b, a)"]


@pytest.fixture
def scales(build_model):
    def build(join, *, factor, read_elsewhere):
        last = "z = Conv(a, u)" if read_elsewhere else "z = Conv(x, t)"
        weight = normal(4, 3, 1, 1)
        return build_model(
            SCALES.format(join=join, last=last),
            w=weight, large=np.roll(weight, 1, 0) * np.float32(factor),
            v=normal(5, 12 if "Concat" in join else 4, 1, 1), u=normal(4, 4, 1, 1), t=normal(4, 3, 1, 1),
        )  # fmt: skip

    return build


@pytest.mark.parametrize("join", JOINTS)
def test_readers_of_a_narrow_input_do_not_lose_bits_to_a_wide_one(scales, quantize, compute, read_qdq, join):
    simple, result, samples = quantize(scales(join, factor=30, read_elsewhere=True))
    qdq = read_qdq(result)
    assert qdq.grid("j") == qdq.grid("b")
    assert qdq.grid("j")[0] > 10 * qdq.grid("a")[0]
    scales_in = {float(qdq.constants[qdq.producers[name].input[1]]) for name in qdq.producers["j"].input}
    assert scales_in == {qdq.grid("j")[0]}
    assert sqnr_db(compute(simple, samples)[1], compute(result, samples)[1]) > 30


@pytest.mark.parametrize("join", JOINTS)
@pytest.mark.parametrize(("factor", "read_elsewhere"), [(30, False), (1, True)])
def test_inputs_share_one_grid_where_no_reader_loses_by_it(
    scales, quantize, read_qdq, join, factor, read_elsewhere
):
    qdq = read_qdq(quantize(scales(join, factor=factor, read_elsewhere=read_elsewhere))[1])
    assert qdq.grid("a") == qdq.grid("b") == qdq.grid("j")
    taken = [qdq.producers[name] for name in qdq.producers["j"].input]
    assert all(qdq.producers[each.input[0]].input[0] in ("a", "b") for each in taken)


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_a_model_with_nothing_to_quantize_is_refused(build_model, make_context, dtype):
    model = build_model(f"net ({dtype}[n,4] x) => ({dtype}[n,4] y) {{ e = Exp(x)  y = Abs(e) }}")
    with pytest.raises(ModelError, match="nothing in the model can be quantized") as caught:
        QuantizeStatic().apply(model, make_context(normal(8, 4)))
    assert caught.value.got == ("Exp, Abs on float32" if dtype == "float" else "Exp, Abs on float16")
    assert ("export" in caught.value.remedy) == (dtype == "float16")


@pytest.mark.parametrize("function", ["Relu(p)", "Clip(p, zero, six)", "Clip(p, low, six)"])
@pytest.mark.parametrize("activation", ["int8", "int8-symmetric"])
@pytest.mark.parametrize("pads", [0, 1])
def test_an_average_pool_and_its_function_share_one_grid(
    build_model, quantize, compute, read_qdq, function, activation, pads
):
    border, size = f"[{pads},{pads},{pads},{pads}]", 5 + 2 * pads
    model = build_model(
        f"""net (float[n,3,8,8] x) => (float[n,8,{size},{size}] y) {{
            c = Conv(x, w, b)
            p = AveragePool<kernel_shape=[2,2], pads={border}, count_include_pad=1>(c)
            y = {function}
        }}""",
        w=normal(8, 3, 3, 3) / 5, b=np.full(8, -1, np.float32),
        zero=np.float32(0), six=np.float32(6), low=np.float32(-0.1),
    )  # fmt: skip
    simple, result, samples = quantize(model, activation)
    exact, found = compute(simple, samples)[0], compute(result, samples)[0]
    assert sqnr_db(exact, found) > (26 if activation == "int8" else 20)
    outputs = []
    for emission in (ort.emit(result, activation=activation), tflite.emit(result)):
        session = open_session(emission.payload, emission.format)
        outputs += infer(session, emission.inputs, emission.outputs, samples)
    step = read_qdq(result).grid("y.float")[0]
    assert np.abs(outputs[0] - outputs[1]).max() <= 1.01 * step
    assert np.mean(np.abs(outputs[0] - outputs[1]) > 0.5 * step) < 0.002


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ("kernel_shape=[2,2], pads=[1,1,1,1]", 7),
        ("kernel_shape=[3,3], strides=[2,2], ceil_mode=1", 3),  # its last windows overhang
    ],
)
def test_an_average_of_fewer_elements_at_the_border_keeps_the_grid_of_its_input(
    settings, size, build_model, quantize, read_qdq
):
    model = build_model(
        f"""net (float[n,3,8,8] x) => (float[n,8,{size},{size}] y) {{
            c = Conv(x, w) p = AveragePool<{settings}>(c) y = Relu(p)
        }}""",
        w=normal(8, 3, 3, 3),
    )
    qdq = read_qdq(quantize(model)[1])
    assert qdq.grid("p") == qdq.grid("c")
