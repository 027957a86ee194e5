"""Mixed precision: budgets met by the real file, costs that are what quantizing one layer alone costs."""

import numpy as np
import onnx
import onnxruntime
import pytest

from edgepipe.convert import ort
from edgepipe.errors import RecipeError
from edgepipe.events import Warned, silent
from edgepipe.graph import edit
from edgepipe.model import onnx_model
from edgepipe.quantize.mixed.allocate import QuantizeMixed, overrides_for
from edgepipe.quantize.mixed.resources import make_layer
from edgepipe.quantize.mixed.sensitivity import measured_costs
from edgepipe.quantize.scheme import Override, Scheme, assign
from edgepipe.quantize.static import QuantizeStatic

NETWORK = """
network (float[n, 3, 12, 12] x) => (float[n, 5] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, stem, stem_bias)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1], group = 16> (b, depthwise)
    d = Relu (c)
    e = Conv (d, point, point_bias)
    f = Add (e, b)
    g = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (f, wide, wide_bias)
    h = Relu (g)
    i = GlobalAveragePool (h)
    j = Flatten (i)
    y = Gemm <transB = 1> (j, head, head_bias)
}
"""


@pytest.fixture
def network(build_model):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    wide = normal(32, 16, 3, 3)
    wide[:, 0] *= 6  # one input channel that matters more than others
    return build_model(
        NETWORK,
        stem=normal(16, 3, 3, 3), stem_bias=normal(16), depthwise=normal(16, 1, 3, 3),
        point=normal(16, 16, 1, 1), point_bias=normal(16), wide=wide, wide_bias=normal(32),
        head=normal(5, 32), head_bias=normal(5),
    )  # fmt: skip


@pytest.fixture
def samples():
    return np.random.default_rng(1).normal(size=(24, 3, 12, 12)).astype(np.float32)


def bits_of(model):
    """Bits that the integers of each weight need, by name of the layer's output, and their count."""
    proto = onnx.load_from_string(model.payload)
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    producers = {name: node for node in proto.graph.node for name in node.output}
    found = {}
    for node in proto.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            dequantizer = producers.get(node.input[1])
            if dequantizer is None:
                continue
            integers = constants[dequantizer.input[0]].astype(int)
            found[node.input[1]] = (int(np.abs(integers).max()).bit_length() + 1, integers.size)
    return found


@pytest.mark.parametrize("average", [2.0, 2.5, 3.7, 4.0, 6.0, 8.0])
def test_average_bits_are_met_and_used(network, samples, make_context, average):
    result = QuantizeMixed(average_weight_bits=average).apply(network, make_context(samples))
    bits = bits_of(result)
    assert len(bits) == 5
    spent = sum(width * count for width, count in bits.values()) / sum(count for _, count in bits.values())
    assert average - 1 < spent <= average


@pytest.mark.parametrize("share", [0.85, 0.95])
def test_the_file_keeps_within_its_size(network, samples, make_context, share):
    context = make_context(samples)
    plain = QuantizeStatic().apply(network, context)
    limit = int(share * plain.size_bytes)
    by_share = QuantizeMixed(size_share=share).apply(network, context)
    assert 0.8 * limit < by_share.size_bytes <= limit
    assert QuantizeMixed(size_bytes=limit).apply(network, context).payload == by_share.payload
    assert len(ort.emit(by_share, activation="uint8").payload) <= limit


def test_costs_are_found_on_samples_that_candidates_were_not_rounded_for(network, samples, make_context):
    """More inputs than rows: on the rows that it was rounded for, a layer seems to lose nothing."""
    context = make_context(samples)
    mixed = QuantizeMixed(average_weight_bits=4, rounding="gptq")
    fitting, judging = mixed._samples(network, context)
    assert len(fitting) == len(judging) == 12
    assert not {each.tobytes() for each in fitting} & {each.tobytes() for each in judging}
    nodes, layers = mixed._layers(edit.open_graph(network).graph)
    trials = mixed._trials(network, nodes, layers, context)
    unseen, seen = (measured_costs(network, x, trials[-1:], "sqnr", silent)["y"] for x in (judging, fitting))
    assert unseen[2] > 1.5 * seen[2]
    assert mixed.sensitivities(network, context).costs[-1][:3] == pytest.approx(unseen[:3], rel=1e-4)


def test_costs_of_wide_weights_are_foretold_well(network, samples, make_context):
    context = make_context(samples)
    mixed = QuantizeMixed(average_weight_bits=4, rounding="gptq")
    nodes, layers = mixed._layers(edit.open_graph(network).graph)
    trials = mixed._trials(network, nodes, layers, context)
    _, judging = mixed._samples(network, context)
    measured = measured_costs(network, judging, trials, "sqnr", silent)
    found = mixed.sensitivities(network, context)
    for layer, costs in zip(found.layers, found.costs, strict=True):
        np.testing.assert_allclose(np.log10(costs), np.log10(measured[layer.result]), atol=0.7)


def test_bit_operations_are_met(network, samples, make_context):
    result = QuantizeMixed(bit_operations_share=0.5).apply(network, make_context(samples))
    macs = [16 * 27 * 144, 16 * 9 * 144, 256 * 144, 32 * 144 * 36, 160]
    bits = [width for width, _ in bits_of(result).values()]
    used = sum(one * width * 8 for one, width in zip(macs, bits, strict=True))
    assert 0.3 < used / (64 * sum(macs)) <= 0.5


def test_the_same_input_gives_the_same_bytes_and_stays_as_it_was(network, samples, make_context):
    before = network.payload
    first, second = (
        QuantizeMixed(average_weight_bits=4, sensitivity=each).apply(network, make_context(samples)).payload
        for each in ("kl", "kl")
    )
    assert first == second
    assert network.payload == before
    taken = [
        QuantizeMixed(average_weight_bits=4, sensitivity="gradient").apply(network, make_context(samples))
        for _ in range(2)
    ]
    assert taken[0].payload == taken[1].payload


def test_mixed_is_never_worse_than_a_single_width(network, samples, make_context):
    context = make_context(samples)

    def error(model):
        run = lambda each: onnxruntime.InferenceSession(each.payload).run(None, {"x": samples})[0]  # noqa: E731
        return np.square(run(model) - run(network)).sum()

    uniform = QuantizeStatic(weight_bits=4).apply(network, context)
    for sensitivity in ("sqnr", "gradient"):
        mixed = QuantizeMixed(average_weight_bits=4, sensitivity=sensitivity).apply(network, context)
        assert error(mixed) <= error(uniform) * 1.0001


def test_a_network_without_weights_is_quantized_all_the_same(build_model, samples, make_context, read_qdq):
    shape = ",".join(map(str, samples.shape[1:]))
    model = build_model(f"net (float[n,{shape}] x) => (float[n,c,h,w] y) {{ y = Sigmoid(x) }}")
    result = QuantizeMixed(average_weight_bits=4).apply(model, make_context(samples))
    assert read_qdq(result).types().count("QuantizeLinear") == 2


def test_overrides_hold(network, samples, make_context):
    overrides = ({"layers": ["y"], "keep_float": True}, {"layers": ["a"], "weight_bits": 7})
    mixed = QuantizeMixed(average_weight_bits=4, overrides=tuple(Override(**each) for each in overrides))
    bits = bits_of(mixed.apply(network, make_context(samples)))
    assert len(bits) == 4
    assert next(width for width, count in bits.values() if count == 16 * 27) == 7


def test_a_layer_called_as_another_s_output_keeps_its_own_bits(samples, make_context):
    """Two nodes, the first named as what the second puts out: each gets what was chosen for it."""
    random = np.random.default_rng(3)
    weights = {"w1": random.normal(size=(16, 3, 3, 3)), "w2": random.normal(size=(4, 16, 1, 1))}
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Conv", ["x", "w1"], ["a"], "y"),
            onnx.helper.make_node("Conv", ["a", "w2"], ["y"], "head"),
        ],
        "net",
        [onnx.helper.make_tensor_value_info("x", 1, ["n", *samples.shape[1:]])],
        [onnx.helper.make_tensor_value_info("y", 1, ["n", 4, None, None])],
        [onnx.numpy_helper.from_array(each.astype(np.float32), name) for name, each in weights.items()],
    )
    model = onnx_model(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), "net"
    )
    context = make_context(samples)
    for name, narrow in (("y", 16 * 27), ("head", 64)):
        kept = QuantizeStatic(overrides=(Override(layers=(name,), weight_bits=4),)).apply(model, context)
        assert {count: bits for bits, count in bits_of(kept).values()} == {432: 8, 64: 8, narrow: 4}
    _, layers = QuantizeMixed(average_weight_bits=4)._layers(edit.open_graph(model).graph)
    chosen = overrides_for(layers, (0, len(layers[1].widths) - 1))
    assigned = assign(edit.open_graph(model).graph, Scheme(), chosen)
    assert [scheme.weight_bits for scheme in assigned.values()] == [2, 8]


def test_a_layer_may_stay_in_float(network, samples, make_context):
    result = QuantizeMixed(average_weight_bits=25, weight_candidates=(2, 32)).apply(
        network, make_context(samples)
    )
    assert 0 < len(bits_of(result)) < 5


def test_a_budget_out_of_reach_is_refused_before_any_work(network, make_context):
    events = []
    context = make_context(np.zeros((2, 3, 12, 12), np.float32), emit=events.append)
    with pytest.raises(RecipeError, match="budget"):
        QuantizeMixed(average_weight_bits=3, weight_candidates=(4, 8)).apply(network, context)
    assert not [event for event in events if isinstance(event, Warned)]


@pytest.mark.parametrize(
    ("settings", "limit", "least", "most"),
    [
        ({"average_weight_bits": 1.5}, "1.50 bits a weight", "4.00", "8.00 bits a weight"),
        ({"bit_operations_share": 0.25}, "0.25 of what 8 bits throughout need", "0.50", "1.00 of what"),
        ({"size_bytes": 2048}, "2.00 KiB", "", "KiB"),
    ],
)
def test_a_refused_budget_tells_its_unit_and_what_can_be_had(
    network, make_context, settings, limit, least, most
):
    context = make_context(np.ones((2, 3, 12, 12), np.float32))
    with pytest.raises(RecipeError) as caught:
        QuantizeMixed(weight_candidates=(4, 8), **settings).apply(network, context)
    assert f"a limit of {limit}; the candidates reach from {least}" in caught.value.got
    assert caught.value.got.endswith(most) or f"to {most}" in caught.value.got


@pytest.mark.parametrize(
    ("sensitivity", "costs", "told"),
    [
        ("sqnr", [4e-3, 2e-3], "27.0 dB against 24.0 dB"),
        ("sqnr", [9e-6, 2e-6], None),
        ("kl", [0.02, 0.01], "0.01 nats against 0.02 nats"),
        ("kl", [9e-6, 0.0], None),
    ],
)
def test_a_single_width_that_is_better_is_told_where_it_matters(
    network, samples, make_context, monkeypatch, sensitivity, costs, told
):
    monkeypatch.setattr("edgepipe.quantize.mixed.allocate.assignment_costs", lambda *_: costs)
    events = []
    mixed = QuantizeMixed(average_weight_bits=4, sensitivity=sensitivity)
    context = make_context(samples, emit=events.append)
    assert mixed._cheaper((0, 1), (1, 1), network, [], context) == (1, 1)
    assert [told in event.text for event in events] == ([True] if told else [])


@pytest.mark.parametrize("settings", [{}, {"average_weight_bits": 4, "weight_bits": 4}])
def test_settings_that_contradict_the_pass(settings):
    with pytest.raises(RecipeError):
        QuantizeMixed(**settings)


def test_macs_and_bytes_of_layers(network):
    graph = edit.open_graph(network).graph
    nodes = edit.nodes(graph, "Conv", "Gemm")
    layers = [make_layer(node, node.outputs[0].name, (3, 8, 32), 8) for node in nodes]
    assert [layer.macs for layer in layers] == [16 * 27 * 144, 16 * 9 * 144, 256 * 144, 32 * 144 * 36, 160]
    assert [layers[0].stored_bytes(bits) for bits in (3, 8, 32)] == [216, 432, 1728]
    assert layers[-1].bit_operations(3) == 160 * 24
    (narrow, wide) = overrides_for(layers[:2], (0, 1))
    assert (narrow.layers, narrow.weight_bits, wide.layers, wide.weight_bits) == (("a",), 3, ("c",), 8)
