"""The driver: what it checks, records and caches. And the laws that hold for every pass there is."""

from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from edgepipe import pipeline
from edgepipe.errors import (
    CalibrationDataMissing,
    DataShapeMismatch,
    DataTypeMismatch,
    OutputError,
    RecipeError,
)
from edgepipe.events import StageEnded, StageStarted
from edgepipe.graph.edit import is_quantized
from edgepipe.passes import Pass
from edgepipe.recipe import Recipe, list_passes, load_pass, load_recipe

RNG = np.random.default_rng(0)


class Fails(Pass, frozen=True, kw_only=True):
    """Must not be called where the cache holds its result."""

    calibrates: bool = False

    def apply(self, model, context):
        raise KeyboardInterrupt


@pytest.fixture
def net(build_model):
    return build_model(
        """net (float[n,3,6,6] x) => (float[n,5] y) {
            a = Conv(x, w, b)
            c = Relu(a)
            g = GlobalAveragePool(c)
            f = Flatten(g)
            h = Identity(f)
            y = Gemm(h, v)
        }""",
        w=RNG.normal(size=(40, 3, 3, 3)).astype(np.float32), b=RNG.normal(size=40).astype(np.float32),
        v=RNG.normal(size=(40, 5)).astype(np.float32),
    )  # fmt: skip


@pytest.fixture
def samples():
    return np.random.default_rng(1).normal(size=(16, 3, 6, 6)).astype(np.float32)


NEEDED_SETTINGS = {"quantize.mixed": {"average_weight_bits": 6.0}}
"""What a pass refuses to work without."""


@pytest.mark.parametrize("name", list_passes())
def test_laws_of_every_pass(name, net, samples, make_context):
    kind = load_pass(name)
    if kind.takes != "onnx":
        pytest.skip(f"{name} takes a {kind.takes} model")
    made = kind(**NEEDED_SETTINGS.get(name, {}))
    before = net.payload, net.digest
    first, second = (made.apply(net, make_context(samples)) for _ in range(2))
    assert (net.payload, net.digest) == before
    assert first.digest == second.digest
    assert first.format == kind.gives
    assert (first.inputs, first.outputs, first.name) == (net.inputs, net.outputs, net.name)
    outputs = onnxruntime.InferenceSession(first.payload).run(None, {"x": samples})
    assert outputs[0].shape == (16, 5)
    assert np.isfinite(outputs[0]).all()
    again = made.apply(first, make_context(samples))
    if is_quantized(first) or name == "graph.simplify":
        assert again.digest == first.digest
    else:  # float to float: done twice, it may move weights a little further, but not what they compute
        repeated = onnxruntime.InferenceSession(again.payload).run(None, {"x": samples})
        np.testing.assert_allclose(repeated[0], outputs[0], rtol=1e-4, atol=1e-4)


def test_each_step_is_recorded(net, samples, make_context):
    events = []
    result, steps = pipeline.run(
        load_recipe("int8"), net, make_context(samples, emit=events.append), cache=None
    )
    simplify, quantize = steps
    assert [simplify.use, quantize.use] == ["graph.simplify", "quantize.static"]
    assert simplify.digest_in == net.digest
    assert simplify.digest_out == quantize.digest_in
    assert quantize.digest_out == result.digest
    assert (simplify.size_in_bytes, quantize.size_out_bytes) == (net.size_bytes, result.size_bytes)
    assert quantize.settings["granularity"] == "per-channel"
    assert quantize.seconds > 0
    assert 20 < quantize.sqnr_db < 60
    stages = [event.stage for event in events if isinstance(event, StageStarted)]
    assert stages == [
        "graph.simplify",
        "quantize.static",
        "calibrate",
        "round weights",
        "round layer by layer",
    ]
    assert [event.detail for event in events if isinstance(event, StageEnded)][-1].endswith(
        "dB on calibration samples"
    )


def test_the_sqnr_of_a_step_is_that_of_the_outputs(net, samples, make_context):
    result, steps = pipeline.run(load_recipe("int8"), net, make_context(samples), cache=None)
    x = samples[: pipeline.COMPARED_SAMPLES]
    exact, found = (
        onnxruntime.InferenceSession(model.payload).run(None, {"x": x})[0] for model in (net, result)
    )
    expected = 10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum())
    assert steps[1].sqnr_db == pytest.approx(expected, abs=0.05)


def test_few_samples_tell_floats_apart(net, samples, make_context, monkeypatch):
    ran = []
    real = pipeline.open_session

    def watched(payload, kind, **options):
        session = real(payload, kind, **options)
        ran.append(0)

        def run(inputs):
            ran[-1] += len(inputs[0])
            return session.run(inputs)

        return SimpleNamespace(run=run)

    monkeypatch.setattr(pipeline, "open_session", watched)
    pipeline.run(load_recipe("int8_fast"), net, make_context(samples), cache=None)
    assert ran == [4, pipeline.COMPARED_SAMPLES, pipeline.COMPARED_SAMPLES]


def test_results_come_from_the_cache_while_nothing_changes(net, samples, make_context, tmp_path):
    cache, recipe = tmp_path / "cache", load_recipe("int8")
    fresh, steps = pipeline.run(recipe, net, make_context(samples), cache=cache)
    again, cached = pipeline.run(recipe, net, make_context(samples), cache=cache)
    assert again == fresh
    assert [step.cached for step in steps] == [False, False]
    assert [step.cached for step in cached] == [True, True]
    assert [step.sqnr_db for step in cached] == [step.sqnr_db for step in steps]


def test_the_key_holds_all_that_a_result_depends_on(net, samples, make_context):
    quantize = load_pass("quantize.static")
    keys = [
        pipeline.cache_key(quantize(), net, make_context(samples)),
        pipeline.cache_key(quantize(ranges="percentile"), net, make_context(samples)),
        pipeline.cache_key(quantize(), net, make_context(samples[:8])),
        pipeline.cache_key(quantize(), net, make_context(samples, activation="int8-symmetric")),
        pipeline.cache_key(quantize(), net, make_context(samples, seed=1)),
        pipeline.cache_key(load_pass("graph.simplify")(), net, make_context(samples)),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == pipeline.cache_key(quantize(), net, make_context(samples))


@pytest.mark.parametrize("damage", [b"", b"not a model", b"0" * 64 + b"\nnot a model"])
def test_a_damaged_cache_file_is_made_anew(net, samples, make_context, tmp_path, damage):
    fresh, _ = pipeline.run(load_recipe("int8"), net, make_context(samples), cache=tmp_path / "cache")
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(damage)
    again, steps = pipeline.run(load_recipe("int8"), net, make_context(samples), cache=tmp_path / "cache")
    assert again == fresh
    assert not any(step.cached for step in steps)


def test_the_cache_keeps_the_newest_results(net, samples, make_context, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "CACHED_RESULTS", 2)
    recipe = load_recipe("float32")
    for seed in range(4):
        pipeline.run(recipe, net, make_context(samples, seed=seed), cache=tmp_path)
    assert len(list(tmp_path.glob("*.onnx"))) == 2
    _, (newest,) = pipeline.run(recipe, net, make_context(samples, seed=3), cache=tmp_path)
    _, (oldest,) = pipeline.run(recipe, net, make_context(samples, seed=0), cache=tmp_path)
    assert (newest.cached, oldest.cached) == (True, False)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_nothing_in_the_cache(
    net, samples, make_context, tmp_path, monkeypatch, interruption
):
    def interrupted(*_):
        raise interruption

    monkeypatch.setattr(pipeline.Path, "replace", interrupted)
    with pytest.raises((KeyboardInterrupt, OutputError)):
        pipeline.run(load_recipe("float32"), net, make_context(samples), cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_made_is_reported(net, samples, make_context, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cache"):
        pipeline.run(load_recipe("float32"), net, make_context(samples), cache=tmp_path / "file" / "cache")


def test_an_interrupted_pass_leaves_nothing_in_the_cache(net, samples, make_context, tmp_path):
    recipe = Recipe(name="mine", description="", passes=(Fails(),))
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(recipe, net, make_context(samples), cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_samples_are_checked_before_any_work(net, samples, make_context):
    recipe = load_recipe("int8")
    with pytest.raises(CalibrationDataMissing, match="--data"):
        pipeline.run(recipe, net, make_context(), cache=None)
    with pytest.raises(CalibrationDataMissing):
        pipeline.run(recipe, net, make_context(samples[:0]), cache=None)
    with pytest.raises(DataShapeMismatch, match=r"\[6, 6, 3\]"):
        pipeline.run(recipe, net, make_context(np.moveaxis(samples, 1, -1)), cache=None)
    with pytest.raises(DataTypeMismatch, match="float64"):
        pipeline.run(recipe, net, make_context(samples.astype(np.float64)), cache=None)


def test_a_recipe_without_calibration_needs_no_samples(net, make_context):
    result, steps = pipeline.run(load_recipe("float32"), net, make_context(), cache=None)
    assert steps[0].sqnr_db is None
    assert "Identity" not in [node.op_type for node in result.to_onnx().graph.node]


def test_a_model_of_another_format_is_refused(net, samples, make_context):
    import msgspec

    other = msgspec.structs.replace(net, format="torch")
    with pytest.raises(RecipeError, match="takes an onnx model, but the model is torch"):
        pipeline.run(load_recipe("float32"), other, make_context(samples), cache=None)


def test_a_quantized_model_passes_through_without_samples(net, samples, make_context):
    result, _ = pipeline.run(load_recipe("int8"), net, make_context(samples), cache=None)
    again, steps = pipeline.run(load_recipe("int8"), result, make_context(), cache=None)
    assert again.digest == result.digest
    assert steps[1].sqnr_db is None
