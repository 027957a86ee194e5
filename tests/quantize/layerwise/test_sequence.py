"""Layer-wise rounding: the walk against whole runs, unfolding against convolutions, what it recovers."""

import os
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edgepipe.events import StageStarted
from edgepipe.graph.simplify import Simplify
from edgepipe.quantize.layerwise.moments import gather, total
from edgepipe.quantize.layerwise.unfold import count_rows, from_matrix, is_unfolded, rows_at, to_matrix
from edgepipe.quantize.layerwise.walk import Walk
from edgepipe.quantize.static import QuantizeStatic

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def sqnr_db(exact, found):
    return 10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum())


CNN = """net (float[n,3,8,8] x) => (float[n,5] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    b = Relu(a)
    c = Conv<pads=[1,1,1,1], group=8>(b, w2, b2)
    d = Clip(c, zero, six)
    e = Conv<strides=[2,2], group=2>(d, w3)
    f = ConvTranspose<strides=[2,2]>(e, w4, b4)
    g = Add(f, b)
    h = GlobalAveragePool(g)
    i = Flatten(h)
    j = Gemm(i, w5)
    y = Gemm<transB=1>(j, w6, b6)
}"""
CONSTANTS = {
    "w1": normal(8, 3, 3, 3) / 5, "b1": normal(8), "w2": normal(8, 1, 3, 3), "b2": normal(8),
    "w3": normal(8, 4, 2, 2) / 3, "w4": normal(8, 8, 2, 2) / 5, "b4": normal(8), "w5": normal(8, 7),
    "w6": normal(5, 7), "b6": normal(5), "zero": np.float32(0), "six": np.float32(6),
}  # fmt: skip
RESULTS = ["a", "c", "e", "f", "j", "y"]


@pytest.fixture
def cnn(build_model):
    return build_model(CNN, **CONSTANTS)


@pytest.fixture
def quantize(make_context):
    def run(model, samples, seed=0, emit=None, **settings):
        context = make_context(samples, seed=seed, **({"emit": emit} if emit else {}))
        simple = Simplify().apply(model, context)
        before = simple.payload
        result = QuantizeStatic(**settings).apply(simple, context)
        assert simple.payload == before
        return simple, result

    return run


def test_a_walk_computes_what_a_whole_run_does(cnn, compute):
    batches = [normal(3, 3, 8, 8), normal(2, 3, 8, 8)]
    walk = Walk(cnn.to_onnx(), RESULTS, batches)
    sources = ["x", "b", "d", "e", "i", "j"]
    expected = [compute(cnn, batch, [*sources[1:], *RESULTS[:-1]]) for batch in batches]
    for step, _ in enumerate(RESULTS):
        taken, given = [list(walk.advance()), walk.compute()]
        for number, (batch, whole) in enumerate(zip(batches, expected, strict=True)):
            source = batch if step == 0 else whole[step]
            result = whole[0] if step == len(RESULTS) - 1 else whole[len(sources) + step]
            np.testing.assert_allclose(taken[number], source, atol=1e-5)
            np.testing.assert_allclose(given[number], result, atol=1e-5)


def test_a_walk_goes_on_with_other_constants_and_changed_outputs(cnn, compute):
    x = normal(4, 3, 8, 8)
    walk = Walk(cnn.to_onnx(), RESULTS, [x])
    walk.advance()
    [first] = walk.compute(2 * CONSTANTS["w1"], CONSTANTS["b1"])
    first += 1
    proto = cnn.to_onnx()
    for tensor in proto.graph.initializer:
        changed = {"w1": 2 * CONSTANTS["w1"], "b1": CONSTANTS["b1"] + 1}.get(tensor.name)
        if changed is not None:
            tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    for _ in RESULTS[1:]:
        walk.advance()
        [last] = walk.compute()
    np.testing.assert_allclose(last, session.run(None, {"x": x})[0], atol=1e-4)


def test_a_walk_keeps_the_live_tensors_alone(cnn):
    walk = Walk(cnn.to_onnx(), RESULTS, [normal(2, 3, 8, 8)])
    seen = []
    for _ in RESULTS:
        walk.advance()
        walk.compute()
        seen.append(sorted(walk._values))
    assert seen[0] == ["a"]
    assert seen[1] == ["b", "c"]  # the Add reads b later
    assert seen[-1] == ["y"]


def node_of(op_type, weight, **attributes):
    constant = ir.Value(name="w", shape=ir.Shape(weight.shape), const_value=ir.tensor(weight, name="w"))
    return ir.node(op_type, [ir.Value(name="x"), constant], attributes)


@pytest.mark.parametrize(
    ("shape", "weight", "attributes"),
    [
        ((3, 4, 7, 6), (6, 4, 3, 3), {}),
        ((3, 4, 7, 6), (6, 4, 3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
        ((3, 4, 7, 6), (6, 2, 2, 3), {"group": 2, "dilations": [2, 1]}),
        ((3, 4, 7, 6), (8, 1, 3, 3), {"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((3, 4, 7, 6), (8, 1, 3, 3), {"group": 4, "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
        ((3, 4, 9), (6, 4, 3), {"pads": [2, 0]}),
    ],
)
def test_rows_times_the_matrix_are_the_convolution(build_model, compute, shape, weight, attributes):
    x, w = normal(*shape), normal(*weight)
    node = node_of("Conv", w, **attributes)
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Conv", ["x", "w"], ["y"], **attributes)],
            "one",
            [onnx.helper.make_tensor_value_info("x", 1, shape)],
            [onnx.helper.make_empty_tensor_value_info("y")],
            [onnx.numpy_helper.from_array(w, "w")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    [expected] = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    places = np.arange(count_rows(node, expected.shape))[::2]
    found = rows_at(node, x, places, expected.shape) @ to_matrix(node, w)
    flat = np.moveaxis(expected, 1, -1).reshape(-1, weight[0])[places]
    np.testing.assert_allclose(np.concatenate(found, axis=1), flat, atol=1e-4)


@pytest.mark.parametrize(
    ("op_type", "shape", "attributes"),
    [
        ("Conv", (6, 2, 3, 3), {"group": 3}),
        ("Gemm", (4, 5), {}),
        ("Gemm", (4, 5), {"transB": 1}),
        ("MatMul", (4, 5), {}),
    ],
)
def test_matrices_go_there_and_back(op_type, shape, attributes):
    weight = normal(*shape)
    node = node_of(op_type, weight, **attributes)
    assert is_unfolded(node)
    np.testing.assert_array_equal(from_matrix(node, to_matrix(node, weight), shape), weight)


def test_moments_of_all_rows_are_numpys(monkeypatch):
    weight = normal(6, 5)
    node = node_of("MatMul", weight.T)
    real = [normal(4, 7, 5), normal(3, 7, 5)]
    quantized = [each + 0.1 * normal(*each.shape) for each in real]
    shapes = [(4, 7, 6), (3, 7, 6)]
    sums = total(gather(node, real, quantized, shapes, np.random.default_rng(0)))
    rows = np.concatenate([each.reshape(-1, 5) for each in real]).astype(float)
    found = np.concatenate([each.reshape(-1, 5) for each in quantized]).astype(float)
    np.testing.assert_allclose(sums.moments(centered=False).gram[0], found.T @ found / 49, rtol=1e-5)
    np.testing.assert_allclose(sums.moments(centered=False).cross[0], found.T @ rows / 49, rtol=1e-5)
    centered = sums.moments(centered=True)
    np.testing.assert_allclose(centered.gram[0], np.cov(found.T, bias=True), atol=1e-6)
    expected = (found - found.mean(0)).T @ (rows - rows.mean(0)) / 49
    np.testing.assert_allclose(centered.cross[0], expected, atol=1e-6)


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_recovery_comes_closer_to_float_on_new_samples(cnn, quantize, compute, bits, granularity):
    samples, others = normal(64, 3, 8, 8), normal(64, 3, 8, 8)
    found = []
    for rounding in ("nearest", "gptq"):
        simple, result = quantize(cnn, samples, weight_bits=bits, granularity=granularity, rounding=rounding)
        found.append(sqnr_db(compute(simple, others)[0], compute(result, others)[0]))
    assert found[1] > found[0] + (3 if bits < 8 else -0.5)


def test_means_of_linear_outputs_are_those_of_the_float_network(cnn, quantize, compute):
    samples = normal(32, 3, 8, 8)
    errors = []
    for correct in (False, True):
        simple, result = quantize(cnn, samples, weight_bits=3, rounding="gptq", bias_correction=correct)
        exact, rounded = (compute(model, samples, ["e", "f"])[1:] for model in (simple, result))
        errors.append(
            [np.abs(a.mean((0, 2, 3)) - b.mean((0, 2, 3))).max() for a, b in zip(exact, rounded, strict=True)]
        )
    assert (np.array(errors[1]) < 0.02).all()
    assert np.sum(errors[1]) < 0.2 * np.sum(errors[0])


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_stay_on_their_grid(cnn, quantize, read_qdq, bits):
    qdq = read_qdq(quantize(cnn, normal(16, 3, 8, 8), weight_bits=bits, rounding="gptq")[1])
    linears = [node for node in qdq.nodes if node.op_type in ("Conv", "ConvTranspose", "Gemm")]
    assert len(linears) == 6
    for node in linears:
        weight, scales, _ = qdq.constant(node, 1)
        assert np.abs(weight.astype(int)).max() <= 2 ** (bits - 1) - 1
        assert (scales > np.finfo(np.float32).tiny).all()
        bias, bias_scales, _ = qdq.constant(node, 2)
        assert bias.dtype == np.int32
        source = node.input[0].removesuffix(".dequantized")
        np.testing.assert_array_equal(bias_scales, np.float32(qdq.grid(source)[0]) * scales)


def test_dead_channels_and_dead_inputs_are_sound(build_model, quantize, read_qdq, compute):
    weight = normal(4, 3, 3, 3)
    weight[1], weight[:, 2] = 0, 0
    model = build_model(
        """net (float[n,3,5,5] x) => (float[n,2,5,5] y) {
            a = Conv<pads=[1,1,1,1]>(x, w, b)
            r = Relu(a)
            y = Conv(r, v)
        }""",
        w=weight, b=np.array([1, -3, 0, 2], np.float32), v=normal(2, 4, 1, 1),
    )  # fmt: skip
    samples = normal(16, 3, 5, 5)
    samples[:, 0] = 0
    simple, result = quantize(model, samples, rounding="gptq")
    for name, array in read_qdq(result).constants.items():
        if array.dtype == np.float32:
            assert np.isfinite(array).all(), name
            assert (array > np.finfo(np.float32).tiny).all(), name
    assert sqnr_db(compute(simple, samples)[0], compute(result, samples)[0]) > 25


def test_activations_as_large_as_float32_holds_are_rounded_for_like_others(build_model, quantize, compute):
    """Squares of values beyond 1e19 overflow float32: all sums over them need more."""
    random = np.random.default_rng(5)
    constants = {
        "w1": random.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "w2": random.normal(size=(4, 8, 3, 3)).astype(np.float32) / 8,
        "far": np.float32(3e34),
    }
    body = "a = Conv<pads=[1,1,1,1]>(x, w1)\n b = Mul(a, far)\n c = Relu(b)\n y = Conv(c, w2)"
    model = build_model(f"net (float[n,3,8,8] x) => (float[n,4,6,6] y) {{ {body} }}", **constants)
    samples, unseen = (random.normal(size=(24, 3, 8, 8)).astype(np.float32) for _ in range(2))
    simple, plain = quantize(model, samples, weight_bits=4)
    _, found = quantize(model, samples, weight_bits=4, rounding="gptq")
    exact, *results = (compute(each, unseen)[0].astype(np.float64) for each in (simple, plain, found))
    nearest_db, gptq_db = (sqnr_db(exact, result) for result in results)
    assert gptq_db > nearest_db + 1


def test_the_same_seed_gives_the_same_bytes(cnn, quantize):
    samples = normal(16, 3, 8, 8)
    payloads = [quantize(cnn, samples, rounding="gptq", weight_bits=4)[1].payload for _ in range(2)]
    assert payloads[0] == payloads[1]


@pytest.mark.parametrize("count", [1, 3])
def test_few_samples_are_enough_to_run(cnn, quantize, count):
    assert quantize(cnn, normal(count, 3, 8, 8), rounding="gptq")[1].payload


def test_a_fixed_batch_and_a_plain_matrix_product(build_model, quantize, compute):
    model = build_model(
        "net (float[2,3,6] x) => (float[2,3,4] y) { a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, v) }",
        w=normal(6, 8),
        v=normal(8, 4),
    )
    samples = normal(7, 3, 6)
    simple, result = quantize(model, samples, rounding="gptq", weight_bits=4)
    _, plain = quantize(model, samples, weight_bits=4)
    exact, found, other = (compute(each, samples[:2])[0] for each in (simple, result, plain))
    assert sqnr_db(exact, found) > sqnr_db(exact, other)


def test_progress_is_told_layer_by_layer(cnn, quantize):
    events = []
    quantize(cnn, normal(8, 3, 8, 8), rounding="gptq", emit=events.append)
    [stage] = [each for each in events if isinstance(each, StageStarted) and "layer" in each.stage]
    assert stage.total == 6


ON_SOME_CORES = """
import os, sys
from pathlib import Path
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
import os
import subprocess
import sys

import numpy as np
from edgepipe.data import make_dataset
from edgepipe.model import onnx_model
from edgepipe.passes import Context
from edgepipe.quantize.static import QuantizeStatic
from edgepipe.target import load_target
import onnx
model = onnx_model(onnx.load(sys.argv[2]), "net")
data = make_dataset(np.load(sys.argv[3]), None, "samples")
context = Context(target=load_target("x86"), calibration=data, work=Path(sys.argv[2]).parent)
print(QuantizeStatic(rounding="gptq").apply(model, context).digest)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system that assigns cores")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_the_number_of_cores_changes_nothing(build_model, tmp_path):
    model = build_model(
        """net (float[n,8,24,24] x) => (float[n,10] y) {
            a = Conv<pads=[1,1,1,1]>(x, w1)  b = Relu(a)
            c = Conv<pads=[1,1,1,1], group=48>(b, w2)  d = Relu(c)
            e = Conv(d, w3)  g = GlobalAveragePool(e)  h = Flatten(g)  y = Gemm(h, w4)
        }""",
        w1=normal(48, 8, 3, 3) / 8, w2=normal(48, 1, 3, 3), w3=normal(200, 48, 1, 1) / 7, w4=normal(200, 10),
    )  # fmt: skip
    (tmp_path / "net.onnx").write_bytes(model.payload)
    np.save(tmp_path / "x.npy", normal(32, 8, 24, 24))
    paths = [str(tmp_path / name) for name in ("net.onnx", "x.npy")]
    digests = [
        subprocess.run(
            [sys.executable, "-c", ON_SOME_CORES, str(cores), *paths],
            capture_output=True, check=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(cores)},
        ).stdout
        for cores in (1, 2)
    ]  # fmt: skip
    assert digests[0] == digests[1]
