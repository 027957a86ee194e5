"""What a layer costs at the outputs: against the whole network run with that layer changed."""

import numpy as np
import onnx
import onnxruntime
import pytest
from scipy.special import rel_entr, softmax

from edgepipe.errors import ModelError
from edgepipe.events import silent
from edgepipe.graph import edit
from edgepipe.quantize.mixed.candidates import (
    Constants,
    float_constants,
    input_moments,
    optimized_constants,
    rounded_constants,
)
from edgepipe.quantize.mixed.sensitivity import Trial, measured_costs

NETWORK = """
network (float[{batch}, 3, 8, 8] x) => (float[{batch}, 5] y) {{
    a = Conv <pads = [1, 1, 1, 1]> (x, stem)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1], group = 8> (b, depthwise, depthwise_bias)
    d = Conv <pads = [1, 1, 1, 1], group = 8> (c, depthwise, depthwise_bias)
    e = Add (d, b)
    f = ConvTranspose <strides = [2, 2]> (e, up, up_bias)
    g = GlobalAveragePool (f)
    h = Flatten (g)
    i = MatMul (h, square)
    z = Gemm (i, head, head_bias)
    y = {last} (z)
}}
"""
LAYERS = ["a", "c", "d", "f", "i", "z"]


@pytest.fixture
def make_network(build_model):
    def make(last="Identity", batch="n"):
        rng = np.random.default_rng(0)

        def normal(*shape, gain=1.5):
            return (gain * rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

        return build_model(
            NETWORK.format(last=last, batch=batch),
            stem=normal(8, 3, 3, 3), depthwise=normal(8, 1, 3, 3), depthwise_bias=normal(8),
            up=normal(8, 6, 2, 2), up_bias=normal(6), square=normal(6, 6, gain=1),
            head=normal(6, 5), head_bias=normal(5),
        )  # fmt: skip

    return make


@pytest.fixture
def samples():
    return np.random.default_rng(1).normal(size=(11, 3, 8, 8)).astype(np.float32)


def trials_of(model, widths=(2, 4)):
    nodes = list(edit.nodes(edit.open_graph(model).graph, "Conv", "ConvTranspose", "MatMul", "Gemm"))
    return [
        Trial(
            node.outputs[0].name,
            float_constants(node),
            tuple(rounded_constants(node, bits, "per-channel", None) for bits in widths),
        )
        for node in nodes
    ]


def run(model, x, layer=None, constants=None):
    """The outputs, all of them, with other constants for one layer: the whole network, from the file."""
    proto = model.to_onnx()
    for node in proto.graph.node:
        if node.output[0] == layer:
            del node.input[1:]
            for name, array in (("new_weight", constants.weight), ("new_bias", constants.bias)):
                if array is not None:
                    node.input.append(name)
                    proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    size = model.inputs[0].shape[0] or len(x)
    return np.concatenate([session.run(None, {"x": x[at : at + size]})[0] for at in range(0, len(x), size)])


def noise_to_signal(exact, changed):
    return np.square(exact - changed).sum() / np.square(exact).sum()


def divergence(exact, changed):
    return rel_entr(softmax(exact, 1), softmax(changed, 1)).sum(1).mean()


def divergence_of_probabilities(exact, changed):
    return rel_entr(exact.astype(float), changed).sum(1).mean()


@pytest.mark.parametrize(
    ("last", "measure", "oracle"),
    [
        ("Identity", "sqnr", noise_to_signal),
        ("Identity", "kl", divergence),
        ("Softmax", "kl", divergence_of_probabilities),
    ],
)
def test_costs_are_those_of_the_network_with_one_layer_changed(make_network, samples, last, measure, oracle):
    model = make_network(last)
    trials = trials_of(model)
    costs = measured_costs(model, samples, trials, measure, silent)
    assert list(costs) == LAYERS
    exact = run(model, samples)
    for trial in trials:
        expected = [oracle(exact, run(model, samples, trial.layer, option)) for option in trial.options]
        np.testing.assert_allclose(costs[trial.layer], expected, rtol=2e-3, atol=1e-7)
        assert min(costs[trial.layer]) > 0


def test_a_fixed_batch_is_kept_to(make_network, samples):
    free = measured_costs(make_network(), samples[:9], trials_of(make_network()), "sqnr", silent)
    fixed = make_network(batch=3)
    found = measured_costs(fixed, samples, trials_of(fixed), "sqnr", silent)
    for layer, costs in free.items():
        np.testing.assert_allclose(found[layer], costs, rtol=1e-4)


def test_ops_before_the_first_layer_run_too(build_model, samples):
    """What is normalized, cut or rearranged before the first layer, as in every transformer."""
    body = """{ a = Relu(x)  b = Tanh(x)  c = Conv(a, w)
        d = Flatten(b)  e = Flatten(c)  y = Concat<axis=1>(d, e) }"""
    shape = ",".join(map(str, samples.shape[1:]))
    weight = np.random.default_rng(2).normal(size=(2, samples.shape[1], 1, 1)).astype(np.float32)
    model = build_model(f"net (float[n,{shape}] x) => (float[n,m] y) {body}", w=weight)
    [trial] = trials_of(model)
    [costs] = measured_costs(model, samples, [trial], "sqnr", silent).values()
    exact = run(model, samples)
    expected = [noise_to_signal(exact, run(model, samples, trial.layer, each)) for each in trial.options]
    np.testing.assert_allclose(costs, expected, rtol=2e-3)


def test_a_layer_left_as_it_is_costs_nothing(make_network, samples):
    model = make_network()
    trials = [Trial(each.layer, each.exact, (each.exact,)) for each in trials_of(model)]
    assert all(cost < 1e-12 for (cost,) in measured_costs(model, samples, trials, "sqnr", silent).values())


def test_divergence_is_for_classifiers(build_model):
    model = build_model(
        "g (float[n, 2, 4, 4] x) => (float[n, 2, 4, 4] y) { y = Conv (x, w) }",
        w=np.ones((2, 2, 1, 1), np.float32),
    )
    with pytest.raises(ModelError, match="classes") as caught:
        measured_costs(model, np.zeros((1, 2, 4, 4), np.float32), trials_of(model), "kl", silent)
    assert "sqnr" in caught.value.remedy


@pytest.mark.parametrize(("last", "measure"), [("Identity", "kl"), ("Softmax", "kl"), ("Tanh", "sqnr")])
def test_gradients_foretell_small_errors(make_network, last, measure):
    pytest.importorskip("torch")
    from edgepipe.quantize.mixed.gradients import gradient_costs

    model = make_network(last)
    if last == "Tanh":  # two axes of a feature map: no classes
        proto = model.to_onnx()
        proto.graph.node.append(onnx.helper.make_node("Unsqueeze", ["y", "last_axis"], ["w"]))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "last_axis"))
        proto.graph.output[0].name = "w"
        proto.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1
        from edgepipe.model import onnx_model

        model = onnx_model(proto, "columns")
    x = np.random.default_rng(5).normal(size=(96, 3, 8, 8)).astype(np.float32)
    rng = np.random.default_rng(6)
    trials = [
        Trial(
            each.layer,
            each.exact,
            tuple(_near(each.exact, rng, size) for size in (1e-2, 3e-3)),
        )
        for each in trials_of(model)
    ]
    measured = measured_costs(model, x, trials, measure, silent)
    foretold = gradient_costs(model, x, trials, 0, silent)
    for layer, costs in measured.items():
        np.testing.assert_allclose(foretold[layer], costs, rtol=0.3, atol=1e-9)


def _near(constants, rng, size):
    weight = constants.weight * (1 + size * rng.normal(size=constants.weight.shape).astype(np.float32))
    bias = None if constants.bias is None else constants.bias + np.float32(size)
    return Constants(weight, bias)


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounded_weights_are_on_a_grid_that_holds_them(bits, granularity):
    rng = np.random.default_rng(bits)
    weight = rng.standard_t(3, size=(6, 4, 3, 3)).astype(np.float32)
    weight[2] = 0
    graph = onnx.parser.parse_graph("g (float[n, 4, 5, 5] x) => (float[n, 6, 3, 3] y) { y = Conv (x, w) }")
    graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    import onnx_ir

    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    (node,) = onnx_ir.from_proto(proto).graph
    found = rounded_constants(node, bits, granularity, None)
    largest = 2 ** (bits - 1) - 1
    rows = found.weight.reshape(6, -1) if granularity == "per-channel" else found.weight.reshape(1, -1)
    exact = weight.reshape(rows.shape)
    for row, original in zip(rows, exact, strict=True):
        levels = np.unique(np.abs(row[row != 0]))
        assert len(levels) <= largest
        scale = max(np.abs(original).max() / largest, 1e-9)
        plain = np.rint(original / scale) * scale
        np.testing.assert_allclose(row, plain, atol=1e-6 * scale)
    assert not found.weight[2].any()
    np.testing.assert_array_equal(found.bias, np.zeros(6))


def test_optimized_candidates_err_less_where_inputs_are_correlated(build_model):
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(8, 8)).astype(np.float32)
    x = np.einsum("io,nihw->nohw", mixing, rng.normal(size=(16, 8, 6, 6)).astype(np.float32)) + 0.5
    nodes = """
    g (float[n, 8, 6, 6] x) => (float[n, 5] y) {
        a = Conv <pads = [1, 1, 0, 0], strides = [2, 1], group = 2> (x, w)
        b = GlobalAveragePool (a)
        c = Flatten (b)
        y = Gemm <transB = 1> (c, h)
    }
    """
    weights = {"w": rng.normal(size=(6, 4, 3, 3)), "h": rng.normal(size=(5, 6))}
    model = build_model(nodes, **{name: array.astype(np.float32) for name, array in weights.items()})
    ops = list(edit.nodes(edit.open_graph(model).graph, "Conv", "Gemm"))
    moments = input_moments(model, ops, x.astype(np.float32), 0)
    exact = run(model, x)
    for node in ops:
        optimized = optimized_constants(node, (2, 4, 32), "per-channel", moments[node])
        np.testing.assert_array_equal(optimized[2].weight, float_constants(node).weight)
        for bits, found in zip((2, 4), optimized, strict=False):
            layer = node.outputs[0].name
            rounded = run(model, x, layer, found)
            # the bias takes the mean error away, up to the rows that were looked at
            assert np.abs((rounded - exact).mean(0)).max() < 0.1 * np.abs(exact).max()
            levels = np.unique(np.abs(found.weight.reshape(len(found.weight), -1)[0]).round(6))
            assert len(levels) <= 2 ** (bits - 1)
    conv = ops[0]
    rows = _patches(x)
    for group in range(2):
        part = slice(3 * group, 3 * group + 3)
        for bits in (2, 4):
            (best,) = optimized_constants(conv, (bits,), "per-channel", moments[conv])
            nearest = rounded_constants(conv, bits, "per-channel", None)
            errors = [
                (rows[group] @ (each.weight - weights["w"])[part].reshape(3, -1).T).std(0).sum()
                for each in (best, nearest)
            ]
            assert errors[0] < errors[1]


def _patches(x):
    """Inputs of each group of the convolution above, as rows: by slicing."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 0), (1, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2]
    rows = windows.transpose(0, 2, 3, 1, 4, 5)
    return [rows[..., 4 * group : 4 * group + 4, :, :].reshape(-1, 36) for group in range(2)]
