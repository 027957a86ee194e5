"""Networks at the ends of what integers and float32 hold: right, or named; never lost in silence."""

import numpy as np
import pytest

from edgepipe.convert import ort, tflite
from edgepipe.events import Warned
from edgepipe.graph.simplify import Simplify
from edgepipe.quantize.scheme import Override
from edgepipe.quantize.static import QuantizeStatic
from edgepipe.runtime import infer, open_session

SHAPE = (4, 6, 6)


@pytest.fixture
def samples():
    return np.random.default_rng(3).normal(size=(16, *SHAPE)).astype(np.float32)


@pytest.fixture
def quantize(build_model, make_context, samples):
    """Quantizes a network of `x`; gives the float and the quantized model, and the warnings."""

    def build(body, settings=None, **constants):
        warned = []

        def note(event):
            if isinstance(event, Warned):
                warned.append(event.text)

        rng = np.random.default_rng(0)
        normal = {name: rng.normal(size=(4, 4, 3, 3)).astype(np.float32) / 6 for name in ("w0", "w1", "w2")}
        model = build_model(
            f"net (float[n,4,6,6] x) => (float[n,a,b,c] y) {{ {body} }}", **(normal | constants)
        )
        context = make_context(samples, emit=note)
        simple = Simplify().apply(model, context)
        return simple, QuantizeStatic(**(settings or {})).apply(simple, context), warned

    return build


def outputs(model, x, compute):
    """Of the graph, and of both artifacts."""
    results = [compute(model, x)[0]]
    for emission in (ort.emit(model, activation="uint8"), tflite.emit(model)):
        session = open_session(emission.payload, emission.format)
        results += infer(session, emission.inputs, emission.outputs, x)
    return results


def sqnr_db(exact, found):
    exact, found = np.asarray(exact, np.float64), np.asarray(found, np.float64)
    return 10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum())


PADDED = "Conv<pads=[1,1,1,1]>"


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize(("power", "bits"), [(-12, 8), (-15, 8), (-12, 16)])
def test_small_activations_are_as_good_as_others(quantize, samples, compute, power, bits, rounding):
    body = f"a = {PADDED}(x, w0) b = Mul(a, down) c = {PADDED}(b, w1) d = Relu(c) e = Mul(d, up)"
    body += f" y = {PADDED}(e, w2)"
    factors = {"down": np.float32(10.0**power), "up": np.float32(10.0**-power)}
    exact, model, warned = quantize(body, {"activation_bits": bits, "rounding": rounding}, **factors)
    assert not warned
    for found in outputs(model, samples, compute):
        assert sqnr_db(compute(exact, samples)[0], found) > 25


@pytest.mark.parametrize("power", [-11, -15])
def test_small_weights_are_as_good_as_others(quantize, samples, compute, power):
    small = (np.random.default_rng(1).normal(size=(4, 4, 3, 3)) * 10.0**power).astype(np.float32)
    body = f"a = {PADDED}(x, w0) b = {PADDED}(a, small) c = Mul(b, up) y = {PADDED}(c, w2)"
    exact, model, warned = quantize(body, small=small, up=np.float32(10.0**-power))
    assert not warned
    for found in outputs(model, samples, compute):
        assert sqnr_db(compute(exact, samples)[0], found) > 25


def test_values_that_no_grid_holds_are_named(quantize):
    body = f"a = {PADDED}(x, w0) b = Mul(a, down) c = {PADDED}(b, w1) y = Sigmoid(c)"
    _, _, warned = quantize(body, down=np.float32(1e-22))
    assert len(warned) == 1
    assert "too small for integers, and taken for zero: a (at most" in warned[0]


COPIES = np.zeros((4, 4, 1, 1), np.float32)
COPIES[::2, 0], COPIES[1::2, 1] = 1, 1
APART = np.array([1, 0, -1, 1e-5] * 2, np.float32).reshape(2, 4, 1, 1)
"""Takes the difference of two channels that are equal but for their rounding, and a little of a third."""
CANCELLING = {
    "convolution": "c = Conv(x, copies) y = Conv(c, apart)",
    "with an activation": "c = Conv(x, copies) d = Conv(c, apart) y = Relu(d)",
    "with a bias": "c = Conv(x, copies) y = Conv(c, apart, bias)",
    "difference": "c = Conv(x, copies) d = Conv(x, almost) y = Sub(c, d)",
    "product of two": "c = Conv(x, copies) d = Mul(c, spike) e = Mul(x, other) y = Mul(d, e)",
}
OPS = {"difference": "Sub", "product of two": "Mul"}
ALMOST = COPIES + np.float32(2e-4)
SPIKES = np.float32([1, 0, 0, 0]).reshape(4, 1, 1)
OTHERS = np.float32([1e-4, 1, 1, 1]).reshape(4, 1, 1)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("name", CANCELLING)
def test_a_layer_that_integers_say_nothing_of_stays_in_float(quantize, samples, compute, name, rounding):
    constants = {
        "copies": COPIES, "apart": APART, "bias": np.full(2, 1e-5, np.float32), "almost": ALMOST,
        "spike": SPIKES, "other": OTHERS,
    }  # fmt: skip
    _, model, warned = quantize(CANCELLING[name], {"rounding": rounding}, **constants)
    assert len(warned) == 1
    assert "left in float" in warned[0]
    assert f" {OPS.get(name, 'Conv')} (" in warned[0]
    for found in outputs(model, samples, compute):
        np.testing.assert_allclose(found, outputs(model, samples, compute)[0], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("left", ["node_1", "node_2", "node_3"])
def test_layers_in_float_are_let_alone(quantize, left):
    body = "c = Conv(x, copies) d = Conv(x, almost) e = Sub(c, d) f = Sub(e, c) y = Sub(d, f)"
    settings = {"overrides": (Override(layers=(left,), keep_float=True),)}
    assert quantize(body, settings, copies=COPIES, almost=ALMOST)[1]
