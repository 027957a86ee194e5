"""A recorded recipe run again: what is turned off and on, in which order, and what cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest

from edgepipe.bundle import MANIFEST, Step, read_bundle
from edgepipe.errors import BundleError, RecipeError, UsageError
from edgepipe.events import StageAdvanced, StageStarted, Warned
from edgepipe.graph.simplify import Simplify
from edgepipe.job import Job
from edgepipe.passes import Pass
from edgepipe.quantize.layerwise.sequence import round_layerwise
from edgepipe.quantize.scheme import Override
from edgepipe.quantize.static import QuantizeStatic
from edgepipe.workflow import Depth, compress, remedies
from edgepipe.workflow.explaining import explain
from edgepipe.workflow.recovery import Progress, Rerun, load_rerun


class Evens(Pass, frozen=True, kw_only=True):
    """Stands for a pass that changes the float model."""


def step(use, **settings):
    sizes = {"size_in_bytes": 1, "size_out_bytes": 1}
    return Step(use=use, settings=settings, digest_in="a", digest_out="b", sqnr_db=None, **sizes)


def test_stages_turn_one_thing_on_at_a_time():
    quantizer = QuantizeStatic(ranges="mse", rounding="gptq", weight_bits=4)
    rerun = Rerun(floats=(Simplify(), Evens()), quantizer=quantizer, source=None, context=None)
    stages = list(rerun.stages())
    assert [name.rpartition(":")[2] for name, _, _ in stages] == [
        " nearest, min/max", "Evens", "ranges = mse", "bias_correction", "rounding = gptq",
    ]  # fmt: skip
    assert [len(floats) for _, floats, _ in stages] == [1, 2, 2, 2, 2]
    first, last = stages[0][2], stages[-1][2]
    assert (first.ranges, first.rounding, first.bias_correction) == ("minmax", "nearest", False)
    assert first.weight_bits == 4  # no recovery: what was asked for
    assert last == quantizer


def test_a_plain_recipe_has_one_stage():
    plain = QuantizeStatic(ranges="minmax", rounding="nearest", bias_correction=False)
    rerun = Rerun(floats=(Simplify(),), quantizer=plain, source=None, context=None)
    assert [each for _, _, each in rerun.stages()] == [plain]


def test_recorded_steps_become_the_passes_that_they_record(make_context):
    override = {"layers": ["a"], "weight_bits": 4, "activation_bits": None, "keep_float": False}
    steps = [step("graph.simplify"), step("quantize.static", ranges="mse", overrides=[override])]
    rerun = load_rerun(steps, None, make_context(), cache=None)
    assert rerun.quantizer == QuantizeStatic(
        ranges="mse", overrides=(Override(layers=("a",), weight_bits=4),)
    )
    assert [type(each) for each in rerun.floats] == [Simplify]
    assert load_rerun(steps[:1], None, make_context(), cache=None) is None


def test_steps_of_another_edgepipe_are_refused(make_context):
    with pytest.raises(RecipeError, match="settings that this edgepipe does not know"):
        load_rerun([step("quantize.static", ranges="bygone")], None, make_context(), cache=None)
    with pytest.raises(RecipeError, match="no such pass"):
        load_rerun([step("quantize.bygone")], None, make_context(), cache=None)


@pytest.fixture
def bundle(tmp_path, build_model):
    rng = np.random.default_rng(0)
    net = build_model(
        """net (float[n,3,6,6] x) => (float[n,4,4,4] y) {
            a = Conv(x, w1)
            r = Relu(a)
            y = Conv(r, w2)
        }""",
        w1=(rng.normal(size=(8, 3, 3, 3)) / 5).astype(np.float32),
        w2=(rng.normal(size=(4, 8, 1, 1)) / 3).astype(np.float32),
    )  # fmt: skip
    (tmp_path / "net.onnx").write_bytes(net.payload)
    np.savez(tmp_path / "val.npz", x=rng.normal(size=(32, 3, 6, 6)).astype(np.float32))
    job = Job(model=str(tmp_path / "net.onnx"), target="x86", data=tmp_path / "val.npz")
    return compress(job, tmp_path / "bundle").bundle


def edited(bundle, edit) -> Path:
    path = bundle.folder / MANIFEST
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    return bundle.folder


def test_a_changed_float_model_needs_the_data_again(bundle):
    def with_equalization(record):
        record["steps"].insert(1, {**record["steps"][-1], "use": "quantize.equalize", "settings": {}})

    with pytest.raises(UsageError, match="changed the float model") as raised:
        explain(edited(bundle, with_equalization))
    assert raised.value.got == "quantize.equalize"
    assert "--data" in raised.value.remedy


def test_another_edgepipes_bundle_is_explained_as_it_is(bundle, tmp_path):
    """Its steps then are those of this one, which is said."""

    def with_other_settings(record):
        record["steps"][-1]["settings"]["weight_bits"] = 3

    told = []
    folder = edited(bundle, with_other_settings)
    found = explain(folder, data=tmp_path / "val.npz", emit=told.append)
    assert any("another model now" in getattr(event, "text", "") for event in told)
    assert found.output_sqnr_db > found.steps[-1].output_sqnr_db + 10
    assert all(each.layer.weight.bits == 8 for each in found.layers if each.layer.weight)


def test_what_the_bundle_holds_is_not_rounded_again(bundle, tmp_path, monkeypatch):
    """Its own weights, rounded layer by layer, are the last step's: only the cheap steps are run."""
    runs = []

    def watched(*arguments):
        runs.append("layer by layer")
        return round_layerwise(*arguments)

    monkeypatch.setattr("edgepipe.quantize.static.round_layerwise", watched)
    monkeypatch.setattr(remedies, "QUICK_WEIGHTS", 0)
    told = []
    found = explain(bundle.folder, data=tmp_path / "val.npz", depth=Depth(samples=256), emit=told.append)
    assert runs == []
    assert [step.name for step in found.steps][-1] == "rounding = gptq"
    assert found.steps[-1].output_sqnr_db == pytest.approx(found.output_sqnr_db, abs=0.02)
    assert found.steps[-2].output_sqnr_db != found.steps[-1].output_sqnr_db
    assert not [event for event in told if isinstance(event, Warned)]
    assert {remedy.measured for remedy in found.remedies} == {"simulated"}
    again = explain(bundle.folder, data=tmp_path / "val.npz", depth=Depth(requantize=True))
    assert {remedy.measured for remedy in again.remedies} == {"requantized"}
    assert len(runs) == len(again.remedies)
    for one, other in zip(found.remedies, again.remedies, strict=True):
        assert (one.kind, one.layers) == (other.kind, other.layers)
        assert one.gain_db == pytest.approx(other.gain_db, abs=1.5)


def test_progress_of_runs_goes_on_within_each(bundle, tmp_path):
    events = []
    explain(bundle.folder, data=tmp_path / "val.npz", emit=events.append)
    for name in ("run the recipe step by step", "try what would help"):
        [start] = [each for each in events if isinstance(each, StageStarted) and each.stage == name]
        done = [each.done for each in events if isinstance(each, StageAdvanced) and each.stage == name]
        assert done == sorted(done)
        assert done[-1] == start.total
        assert len(set(done)) > start.total // Progress.UNITS + 2
    stages = [event.stage for event in events if isinstance(event, StageStarted)]
    assert len(stages) == len(set(stages)) == 4


def test_samples_that_the_data_holds_twice_serve_once(bundle, tmp_path):
    x = np.load(tmp_path / "val.npz")["x"]
    np.savez(tmp_path / "twice.npz", x=np.concatenate([x[::-1], x]))
    told = []
    found = explain(bundle.folder, data=tmp_path / "twice.npz", depth=Depth(samples=256), emit=told.append)
    assert not [event for event in told if isinstance(event, Warned)]
    assert found.output_sqnr_db == pytest.approx(found.steps[-1].output_sqnr_db)


def test_results_are_kept_where_a_cache_is_given(bundle, tmp_path):
    first = explain(bundle.folder, data=tmp_path / "val.npz", cache=tmp_path / "cache")
    kept = sorted((tmp_path / "cache").glob("*.onnx"))
    assert kept
    assert explain(bundle.folder, data=tmp_path / "val.npz", cache=tmp_path / "cache") == first
    assert sorted((tmp_path / "cache").glob("*.onnx")) == kept
    assert read_bundle(bundle.folder).digest == bundle.digest


def test_narrow_weights_are_offered_8_bits(tmp_path, build_model):
    rng = np.random.default_rng(0)
    net = build_model(
        "net (float[n,3,6,6] x) => (float[n,4,4,4] y) { a = Conv(x, w1) r = Relu(a) y = Conv(r, w2) }",
        w1=(rng.normal(size=(8, 3, 3, 3)) / 5).astype(np.float32),
        w2=(rng.normal(size=(4, 8, 1, 1)) / 3).astype(np.float32),
    )
    (tmp_path / "net.onnx").write_bytes(net.payload)
    np.savez(tmp_path / "val.npz", x=rng.normal(size=(32, 3, 6, 6)).astype(np.float32))
    job = Job(model=str(tmp_path / "net.onnx"), target="x86", data=tmp_path / "val.npz", recipe="int4")
    folder = compress(job, str(tmp_path / "bundle")).bundle.folder
    told = []
    found = explain(folder, data=tmp_path / "val.npz", emit=told.append)
    [wider] = [each for each in found.remedies if each.kind == "8 bits"]
    assert "weight_bits = 8" in wider.toml
    assert wider.gain_db > 3
    assert wider.measured == "requantized"
    assert not [event for event in told if "another edgepipe" in getattr(event, "text", "")]


def test_a_dynamic_bundle_is_refused_with_the_reason(tmp_path, build_model):
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    net = build_model("net (float[n,64] x) => (float[n,64] y) { y = MatMul(x, w) }", w=weight)
    (tmp_path / "net.onnx").write_bytes(net.payload)
    np.savez(tmp_path / "val.npz", x=np.random.default_rng(1).normal(size=(8, 64)).astype(np.float32))
    job = Job(model=str(tmp_path / "net.onnx"), target="x86", data=tmp_path / "val.npz", recipe="dynamic")
    with pytest.raises(BundleError, match="at run time have no ranges"):
        explain(compress(job, tmp_path / "bundle").bundle.folder)
