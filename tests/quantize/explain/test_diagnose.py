"""A diagnosis beside what NumPy computes by itself, and beside damage whose place is known."""

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest

from edgepipe.errors import BundleError, DataEmpty, ModelError
from edgepipe.quantize.explain.attribution import Bench, attribute, costliest, sqnr_db
from edgepipe.quantize.explain.diagnose import MOST, diagnose, evenly
from edgepipe.quantize.explain.diagnosis import Diagnosis, decode, encode
from edgepipe.quantize.explain.pairing import pair, same_decisions
from edgepipe.quantize.explain.risk import at_risk
from edgepipe.quantize.explain.splice import rounded_name, splice
from edgepipe.quantize.scheme import Override
from edgepipe.quantize.static import QuantizeStatic
from edgepipe.recipe import load_recipe


@pytest.fixture
def net(build_model):
    """Two branches that meet in an Add, a depthwise conv with Clip, pooling and a linear layer."""
    rng = np.random.default_rng(0)

    def weights(*shape):
        return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    return build_model(
        """net (float[n,3,8,8] x) => (float[n,5] y) {
            a = Conv <pads = [1,1,1,1]> (x, w1, b1)
            r = Relu(a)
            d = Conv <pads = [1,1,1,1], group = 8> (r, w2, b2)
            six = Constant <value_float = 6.0> ()
            zero = Constant <value_float = 0.0> ()
            c = Clip(d, zero, six)
            p = Conv(c, w3)
            s = Add(p, r)
            g = GlobalAveragePool(s)
            f = Flatten(g)
            y = Gemm <transB = 1> (f, w4, b4)
        }""",
        w1=weights(8, 3, 3, 3), b1=weights(8), w2=weights(8, 1, 3, 3), b2=weights(8), w3=weights(8, 8, 1, 1),
        w4=weights(5, 8), b4=weights(5),
    )  # fmt: skip


@pytest.fixture
def x():
    return np.random.default_rng(1).normal(size=(24, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def quantized(net, x, make_context):
    return QuantizeStatic().apply(net, make_context(x))


def run(model, x, *watched):
    """Tensors of a model as the unoptimized runtime computes them."""
    proto = onnx.load_from_string(model.payload)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in watched)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return session.run(list(watched), {model.inputs[0].name: x})


def decibels(signal, given):
    return 10 * np.log10(np.sum(signal.astype("f8") ** 2) / np.sum((given.astype("f8") - signal) ** 2))


def layer(diagnosis, name):
    return next(each for each in diagnosis.layers if each.tensor == name)


def test_layers_are_those_of_the_network_in_order(net, quantized, x):
    diagnosis = diagnose(net, quantized, x)
    assert [(each.tensor, each.op) for each in diagnosis.layers] == [
        ("x", "Input"), ("r", "Conv"), ("d", "Conv"), ("c", "Clip"), ("p", "Conv"), ("s", "Add"),
        ("g", "GlobalAveragePool"), ("y", "Gemm"),
    ]  # fmt: skip
    assert [each.position for each in diagnosis.layers] == list(range(8))


@pytest.mark.parametrize(
    ("lines", "layers"),
    [
        (["y = Relu(x)"], ["x Input", "y Relu"]),
        (["a = Relu(x)", "y = Conv(a, w)"], ["x Input", "a Relu", "y Conv"]),
        (["a = Sigmoid(x)", "r = Clip(a, low, high)", "y = Conv(r, w)"],
         ["x Input", "a Sigmoid", "r Clip", "y Conv"]),
        (["a = Conv(x, w)", "r = Relu(a)", "y = Conv(r, w)"], ["x Input", "r Conv", "y Conv"]),
    ],
)  # fmt: skip
def test_rounding_before_an_activation_function_is_told_where_its_grid_is_another(
    build_model, x, make_context, lines, layers
):
    constants = {
        "w": np.random.default_rng(2).normal(size=(3, 3, 1, 1)).astype(np.float32),
        "low": np.float32(0.1),
        "high": np.float32(0.7),
    }
    used = {name: array for name, array in constants.items() if any(f" {name}" in line for line in lines)}
    model = build_model(f"net (float[n,3,8,8] x) => (float[n,3,8,8] y) {{ {chr(10).join(lines)} }}", **used)
    found = diagnose(model, QuantizeStatic().apply(model, make_context(x)), x)
    assert [f"{each.tensor} {each.op}" for each in found.layers] == layers


def test_an_activation_function_on_the_grid_of_its_input_rounds_nothing(build_model, x, make_context):
    model = build_model("net (float[n,3,8,8] x) => (float[n,3,8,8] y) { y = Relu(x) }")
    x = np.abs(x)
    found = diagnose(model, QuantizeStatic(ranges="minmax").apply(model, make_context(x)), x)
    assert [(each.tensor, each.op) for each in found.layers] == [("x", "Input")]


def test_reached_sqnr_is_that_of_the_two_graphs(net, quantized, x):
    x = x[:MOST]
    diagnosis = diagnose(net, quantized, x)
    names = ("r", "c", "p", "s", "g")
    for name, real in zip(names, run(net, x, *names), strict=True):
        [given] = run(quantized, x, f"{name}.dequantized")
        assert layer(diagnosis, name).sqnr_db == pytest.approx(decibels(real, given), abs=0.02)
    [real], [given] = run(net, x, "y"), run(quantized, x, "y")
    assert layer(diagnosis, "y").sqnr_db == diagnosis.output_sqnr_db
    assert diagnosis.output_sqnr_db == pytest.approx(decibels(real, given), abs=0.02)


def test_own_sqnr_and_clipping_of_a_layer_are_what_numpy_computes(net, x, make_context, read_qdq):
    quantized = QuantizeStatic(ranges="percentile", percentile=97.0).apply(net, make_context(x))
    x = x[:MOST]
    found = layer(diagnose(net, quantized, x), "p")
    graph = read_qdq(quantized)
    node = next(each for each in graph.nodes if each.op_type == "Conv" and each.output[0] == "p")
    integers, scales, _ = graph.constant(node, 1)
    weight = integers[:, :, 0, 0] * scales[:, None]
    bias = np.zeros(8)
    if len(node.input) > 2:
        steps, step, _ = graph.constant(node, 2)
        bias = steps * step
    [c, p] = run(net, x, "c", "p")
    computed = np.einsum("oi,nihw->nohw", weight, c) + bias[:, None, None]
    scale, zero = graph.grid("p")
    rounded = (np.clip(np.rint(computed / scale) + zero, -128, 127) - zero) * scale
    assert found.local_sqnr_db == pytest.approx(decibels(p, rounded), abs=0.05)
    ratios = np.sum((rounded - p) ** 2, (0, 2, 3)) / np.sum(p**2, (0, 2, 3))
    assert found.channel_sqnr_db == pytest.approx(-10 * np.log10(np.median(ratios)), abs=0.05)
    low, high = (-128 - zero) * scale, (127 - zero) * scale
    outside = (p < low - scale / 2) | (p > high + scale / 2)
    assert found.activation.clipped == pytest.approx(outside.mean())
    assert outside.any()
    assert (found.activation.low, found.activation.high) == (p.min(), p.max())
    assert (found.activation.grid_low, found.activation.grid_high) == pytest.approx((low, high))


def test_weights_are_told_as_they_are(net, x, make_context, read_qdq):
    cases = (({}, 8, 8), ({"weight_bits": 4}, 4, 8), ({"granularity": "per-tensor"}, 8, 1))
    for settings, bits, scales in cases:
        quantized = QuantizeStatic(**settings).apply(net, make_context(x))
        weight = layer(diagnose(net, quantized, x), "d").weight
        assert (weight.bits, weight.scales) == (bits, scales)
        graph = read_qdq(quantized)
        node = next(each for each in graph.nodes if each.op_type == "Conv" and each.output[0] in ("c", "d"))
        integers, steps, _ = graph.constant(node, 1)
        rounded = integers * np.reshape(steps, (-1, 1, 1, 1))
        real = onnx.numpy_helper.to_array(next(t for t in net.to_onnx().graph.initializer if t.name == "w2"))
        assert weight.sqnr_db == pytest.approx(decibels(real, rounded), abs=0.02)
        magnitudes = np.abs(rounded).max((1, 2, 3))
        assert weight.channel_spread == pytest.approx(magnitudes.max() / np.median(magnitudes))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_bits": 4},
        {"activation_bits": 16},
        {"activation_bits": 16, "granularity": "per-tensor"},
        {"overrides": (Override(layers=("p",), keep_float=True),)},
    ],
)
def test_the_form_of_the_artifact_does_not_matter(net, x, make_context, settings):
    from edgepipe.convert import ort
    from edgepipe.model import onnx_model

    quantized = QuantizeStatic(**settings).apply(net, make_context(x))
    diagnosis = diagnose(net, quantized, x)
    for activation in ("uint8", "int8"):
        emission = ort.emit(quantized, activation=activation)
        artifact = onnx_model(onnx.load_from_string(emission.payload), "artifact")
        assert same_decisions(pair(net, artifact), pair(net, quantized))
        other = diagnose(net, artifact, x)
        assert [each.name for each in other.layers] == [each.name for each in diagnosis.layers]
        for one, two in zip(diagnosis.layers, other.layers, strict=True):
            assert one.sqnr_db == pytest.approx(two.sqnr_db, abs=0.3)
            assert one.local_sqnr_db == pytest.approx(two.local_sqnr_db, abs=0.3)


def test_other_quantizers_graphs_are_diagnosed_too(net, x, tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        rows = iter([{"x": row[None]} for row in x])

        def get_next(self):
            return next(self.rows, None)

    (tmp_path / "float.onnx").write_bytes(net.payload)
    paths = tmp_path / "float.onnx", tmp_path / "qdq.onnx"
    quantize_static(*paths, Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
    from edgepipe.model import onnx_model

    other = onnx_model(onnx.load(tmp_path / "qdq.onnx"), "other")
    diagnosis = diagnose(net, other, x)
    assert {"x", "r", "p", "s", "y"} <= {each.tensor for each in diagnosis.layers}
    [real], [given] = run(net, x, "y"), run(other, x, "y")
    assert diagnosis.output_sqnr_db == pytest.approx(decibels(real, given), abs=0.02)


def test_a_splice_without_forms_is_the_float_model_and_with_all_the_quantized_one(net, quantized, x):
    pairing = pair(net, quantized)
    everywhere = {junction.name: "rounded" for junction in pairing.junctions}
    for forms, model in (({}, net), (everywhere, quantized)):
        session = onnxruntime.InferenceSession(splice(pairing, forms))
        [expected] = run(model, x, "y")
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=2e-5)


def test_a_layer_alone_is_one_rounded_tensor_in_the_float_model(net, quantized, x):
    """Fed with what the quantized layer gives, the rest of the float model must agree with the splice."""
    pairing = pair(net, quantized)
    session = onnxruntime.InferenceSession(splice(pairing, {"p": "rounded"}, watch=["p", "r"]))
    own = onnxruntime.InferenceSession(splice(pairing, {}, watch=[rounded_name(junction_of(pairing, "p"))]))
    p = own.run(None, {"x": x})[0]
    real, r, y = session.run(None, {"x": x})
    np.testing.assert_allclose(real, run(net, x, "p")[0], atol=1e-5)  # the float graph's own, unrounded
    pooled = (p + r).mean((2, 3))
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in net.to_onnx().graph.initializer}
    np.testing.assert_allclose(y, pooled @ weights["w4"].T + weights["b4"], atol=1e-5)


def junction_of(pairing, name):
    return next(each for each in pairing.junctions if each.name == name)


def test_costs_rank_the_layer_with_the_damage_first_and_shares_add_up(net, x, make_context):
    """Weights of 2 bits in one layer alone."""
    spoilt = QuantizeStatic(bias_correction=False, overrides=(Override(layers=("p",), weight_bits=2),)).apply(
        net, make_context(x)
    )
    diagnosis = diagnose(net, spoilt, x)
    bench = Bench(net, spoilt, x, diagnosis)
    layers = attribute(bench, diagnosis, closely=2)
    assert layers[0].layer.tensor == "p"
    assert layers[0].share > 0.5
    assert sum(each.share for each in layers) == pytest.approx(1)
    gain = layers[0].gain
    assert gain.weight_sqnr_db < gain.grid_sqnr_db  # it is the weight
    assert gain.float_db > 3 > gain.wide_db
    assert [each.gain is None for each in layers] == [False, False] + [True] * (len(layers) - 2)
    assert costliest(layers, 0.5) == [layers[0]]
    assert min(each.local_sqnr_db for each in diagnosis.layers) == layers[0].layer.local_sqnr_db


def test_what_float_would_gain_is_what_requantizing_gains(net, x, make_context):
    """For a layer that reads floats and whose output nobody else reads, both are the same network."""
    context = make_context(x)
    quantized = QuantizeStatic(bias_correction=False).apply(net, context)
    diagnosis = diagnose(net, quantized, x)
    bench = Bench(net, quantized, x, diagnosis)
    override = Override(layers=("y",), keep_float=True)
    again = QuantizeStatic(bias_correction=False, overrides=(override,)).apply(net, context)
    simulated = bench.gain_db(bench.forms("rounded", {"y"}))
    assert simulated == pytest.approx(bench.gain_of_model_db(again), abs=0.05)
    assert sqnr_db(bench.noise) == pytest.approx(diagnosis.output_sqnr_db, abs=1.5)  # on more samples


def test_the_same_samples_give_the_same_bytes(net, quantized, x):
    assert encode(diagnose(net, quantized, x)) == encode(diagnose(net, quantized, x))


def test_a_diagnosis_is_read_back(net, quantized, x):
    diagnosis = diagnose(net, quantized, x)
    assert decode(encode(diagnosis), "here") == diagnosis
    newer = msgspec.json.encode(msgspec.structs.replace(diagnosis, schema=99))
    with pytest.raises(BundleError, match="newer"):
        decode(newer, "here")
    with pytest.raises(BundleError, match="malformed"):
        decode(b"{}", "here")


def test_models_without_a_common_tensor_are_refused(net, quantized, x, build_model):
    other = build_model(
        "other (float[n,3,8,8] image) => (float[n,3,8,8] probability) { probability = Sigmoid(image) }"
    )
    with pytest.raises(ModelError, match="shares no tensor"):
        diagnose(other, quantized, x)


def test_a_fixed_batch_takes_what_fills_it(build_model, x, make_context):
    net = build_model(
        "net (float[4,3,8,8] x) => (float[4,2,8,8] y) { y = Conv(x, w) }",
        w=np.random.default_rng(0).normal(size=(2, 3, 1, 1)).astype(np.float32),
    )
    quantized = QuantizeStatic().apply(net, make_context(x))
    assert diagnose(net, quantized, x[:7]).samples == 4
    with pytest.raises(DataEmpty):
        diagnose(net, quantized, x[:3])


@pytest.mark.parametrize(("total", "count"), [(10, 3), (3, 10), (1, 1), (100, 16)])
def test_samples_are_chosen_evenly(total, count):
    chosen = evenly(total, count)
    assert len(chosen) == min(total, count) == len(set(chosen))
    assert all(0 <= index < total for index in chosen)


def spread_channel(build_model, factor):
    """A network one of whose channels is `factor` times as wide, undone behind: the same function."""
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(16, 3, 3, 3)) / 5, rng.normal(size=(4, 16, 3, 3)) / 12
    first[0] *= factor
    second[:, 0] /= factor
    return build_model(
        """net (float[n,3,8,8] x) => (float[n,4,4,4] y) {
            a = Conv(x, w1)
            r = Relu(a)
            b = Conv(r, w2)
            c = Relu(b)
            y = Conv(c, w3)
        }""",
        w1=first.astype(np.float32), w2=second.astype(np.float32),
        w3=(rng.normal(size=(4, 4, 1, 1)) / 2).astype(np.float32),
    )  # fmt: skip


def risks(net, x, context, **settings):
    return at_risk(diagnose(net, QuantizeStatic(**settings).apply(net, context), x))


def test_a_sound_network_is_not_at_risk(net, x, build_model, make_context):
    assert risks(net, x, make_context(x)) == ()
    assert risks(spread_channel(build_model, 1), x, make_context(x)) == ()


def test_a_channel_of_outliers_is_named_and_the_remedy_helps(build_model, x, make_context):
    net = spread_channel(build_model, 300)
    [risk, *_] = risks(net, x, make_context(x))
    assert risk.layer == "a"
    assert "few channels are far wider" in risk.text
    assert "quantize.equalize" in risk.remedy
    override = read_override(risk.remedy)
    before, after = (
        diagnose(net, QuantizeStatic(overrides=each).apply(net, make_context(x)), x).output_sqnr_db
        for each in ((), (override,))
    )
    assert after > before + 20


def read_override(remedy):
    import tomllib

    [table] = tomllib.loads(remedy[remedy.index("overrides = ") :])["overrides"]
    return msgspec.convert(table, Override)


def test_narrow_weights_are_named_with_more_bits(net, x, make_context):
    [risk, *_] = risks(net, x, make_context(x), weight_bits=2)
    assert "2 bits" in risk.text
    assert read_override(risk.remedy).weight_bits == 8


def test_one_scale_for_unequal_channels_is_named(build_model, x, make_context):
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(16, 3, 3, 3)) * np.geomspace(0.002, 1, 16)[:, None, None, None]
    back = rng.normal(size=(4, 16, 1, 1)) / np.geomspace(0.002, 1, 16)[:, None, None]
    net = build_model(
        "net (float[n,3,8,8] x) => (float[n,4,6,6] y) { a = Conv(x, w1) y = Conv(a, w2) }",
        w1=weight.astype(np.float32), w2=back.astype(np.float32),
    )  # fmt: skip
    found = risks(net, x, make_context(x), granularity="per-tensor")
    assert any("one scale serves" in risk.text and "per-channel" in risk.remedy for risk in found)


def test_unlike_calibration_samples_show_as_clipping(net, x, make_context):
    [risk, *_] = risks(net, x, make_context(0.3 * x))
    assert "clipped" in risk.text
    assert "calibrate on more samples" in risk.remedy


def test_an_odd_calibration_sample_shows_as_an_unused_grid(net, x, make_context):
    odd = x.copy()
    odd[0] *= 200
    found = risks(net, x, make_context(odd), ranges="minmax")
    assert any("stretched" in risk.text and "mse" in risk.remedy for risk in found)


def test_nothing_is_at_risk_where_the_outputs_are_sound(net, quantized, x):
    diagnosis = diagnose(net, quantized, x)
    spoilt = tuple(
        msgspec.structs.replace(each, channel_sqnr_db=3.0, local_sqnr_db=3.0) for each in diagnosis.layers
    )
    for output, count in ((None, 0), (31.0, 0), (20.0, len(spoilt))):
        found = at_risk(Diagnosis(samples=1, output_sqnr_db=output, layers=spoilt))
        assert len(found) == count


@pytest.mark.parametrize("name", ["int8", "int4", "int16", "dynamic"])
def test_recipes_that_ship_are_diagnosed(name, build_model, x, make_context):
    rng = np.random.default_rng(0)
    model = build_model(
        """net (float[n,3,8,8] x) => (float[n,4,6,6] y) {
            a = Conv(x, w1)
            r = Relu(a)
            y = Conv(r, w2)
        }""",
        w1=(rng.normal(size=(64, 3, 3, 3)) / 5).astype(np.float32),
        w2=(rng.normal(size=(4, 64, 1, 1)) / 8).astype(np.float32),
    )  # fmt: skip
    for each in load_recipe(name).passes:
        before, model = model, each.apply(model, make_context(x))
    diagnosis = diagnose(before, model, x)
    assert {"r"} <= {each.tensor for each in diagnosis.layers}
    assert diagnosis.output_sqnr_db > 10
    assert all(each.activation is None for each in diagnosis.layers) == (name == "dynamic")
