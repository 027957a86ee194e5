"""Variants that run from their layer on, beside the same networks run whole."""

import numpy as np
import onnx
import pytest

from edgepipe.quantize.explain import attribution
from edgepipe.quantize.explain.attribution import Bench, attribute
from edgepipe.quantize.explain.diagnose import diagnose, open_spliced
from edgepipe.quantize.explain.onward import Course, Variant
from edgepipe.quantize.explain.splice import Parts, Span, splice
from edgepipe.quantize.static import QuantizeStatic

BODY = """net (float[n,3,8,8] x) => (float[n,5] y, float[n,8,8,8] t) {
    a = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r = Relu(a)
    d = Conv <pads = [1,1,1,1], group = 8> (r, w2)
    c = Relu(d)
    t = Sigmoid(c)
    p = Conv(c, w3)
    q = Conv(r, w3)
    m = Concat <axis = 1> (p, q, r)
    g = GlobalAveragePool(m)
    f = Flatten(g)
    y = Gemm <transB = 1> (f, w4)
}"""


@pytest.fixture
def models(build_model, make_context):
    """A network of branches and two outputs, quantized, with samples that do not fill the last batch."""
    random = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "w3": (8, 8, 1, 1), "w4": (5, 24)}
    constants = {name: random.normal(size=shape).astype(np.float32) / 3 for name, shape in shapes.items()}
    net = build_model(BODY, **constants)
    x = random.normal(size=(7, 3, 8, 8)).astype(np.float32)
    return net, QuantizeStatic().apply(net, make_context(x)), x


def spans_of(diagnosis):
    return {
        each.tensor: Span(each.activation.low, each.activation.high)
        for each in diagnosis.layers
        if each.activation
    }


@pytest.mark.parametrize("base", ["float", "rounded"])
def test_every_variant_computes_what_the_whole_network_does(models, base):
    net, quantized, x = models
    spans = spans_of(diagnose(net, quantized, x))
    bench = Bench(net, quantized, x, diagnose(net, quantized, x))
    forms = bench.forms(base)
    others = [form for form in ("float", "rounded", "weight", "grid", "wide") if form != base]
    variants = [
        Variant(each.name, form)
        for form in others
        for each in bench.pairing.junctions
        if each.name in spans or form in ("float", "rounded")
    ]
    batches = [{"x": x[:3]}, {"x": x[3:6]}, {"x": x[6:]}]
    course = Course(Parts(bench.pairing), forms, spans, open_spliced)
    found = dict(course.outputs(variants, batches))
    assert found.keys() == set(variants)
    for variant, outputs in found.items():
        whole = open_spliced(splice(bench.pairing, {**forms, variant.junction: variant.form}, spans=spans))
        for batch, given in zip(batches, outputs, strict=True):
            for exact, one in zip(whole.run(None, batch), given, strict=True):
                np.testing.assert_allclose(one, exact, atol=1e-6)


def test_what_comes_before_a_layer_is_computed_once(models):
    net, quantized, x = models
    opened = []

    def watched(payload):
        opened.append([node.op_type for node in onnx.load_from_string(payload).graph.node])
        return open_spliced(payload)

    bench = Bench(net, quantized, x, diagnose(net, quantized, x))
    course = Course(Parts(bench.pairing), {}, {}, watched)
    variants = [Variant(each.name, "rounded") for each in bench.pairing.junctions]
    counts = {}
    for variant, _ in course.outputs(variants, [{"x": x}]):
        counts[variant.junction] = opened[-1].count("Conv") + opened[-1].count("Gemm")
    assert counts["x"] == 5
    assert counts["r"] == 5  # its own and four behind it
    assert counts["y"] == 1
    advances = sum(ops.count("Conv") for ops in opened) - sum(counts.values()) + 1
    assert advances <= 4


def test_costs_are_the_same_in_portions(models, monkeypatch):
    net, quantized, x = models
    diagnosis = diagnose(net, quantized, x)
    whole = attribute(Bench(net, quantized, x, diagnosis), diagnosis, closely=3)
    monkeypatch.setattr(attribution, "samples_held", lambda model: 4)
    bench = Bench(net, quantized, x, diagnosis)
    assert bench._held == 2
    assert attribute(bench, diagnosis, closely=3) == whole


def test_progress_reaches_every_run(models):
    events = []
    net, quantized, x = models
    diagnosis = diagnose(net, quantized, x)
    attribute(Bench(net, quantized, x, diagnosis), diagnosis, closely=2, emit=events.append)
    done = [event.done for event in events[1:-1]]
    assert done == sorted(done)
    assert len(done) >= len(diagnosis.layers) + 4
    assert done[-1] <= events[0].total
