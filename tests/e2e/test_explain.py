"""`edgepipe explain` as a user runs it, on bundles of every kind."""

import json
import re
import tomllib

import msgspec
import numpy as np
import pytest

import edgepipe
from edgepipe import errors
from edgepipe.bundle import DIAGNOSIS, MANIFEST, read_bundle
from edgepipe.quantize.explain.diagnosis import diagnosis_of
from edgepipe.quantize.explain.explanation import Explanation

COMPRESS = ("compress", "model.onnx", "--target", "x86", "--data", "val.npz")
KEYS = {
    *("schema", "model_name", "target", "recipe", "bundle_digest", "data_source", "golden", "samples"),
    *("output_sqnr_db", "layers", "steps", "remedies", "summary"),
}


@pytest.fixture
def bundled(equipped):
    equipped.ok(*COMPRESS, "-o", "bundle")
    return equipped


def test_a_bundle_keeps_its_diagnosis(bundled):
    bundle = read_bundle(bundled.folder / "bundle")
    found = diagnosis_of(bundle)
    assert [layer.name for layer in found.layers] == ["x", "stem", "dw", "head"]
    assert DIAGNOSIS in bundle.manifest.digests()
    (bundled.folder / "bundle" / DIAGNOSIS).write_text("{}")
    assert bundled.run("explain", "bundle").exit_code == errors.BundleError.exit_code


def test_json_holds_everything(bundled):
    found = bundled.ok("explain", "bundle", "--data", "val.npz", "--json").json
    assert found.keys() == KEYS
    explanation = msgspec.convert(found, Explanation)
    assert not explanation.golden
    assert explanation.samples == 16
    assert {each.layer.name for each in explanation.layers} == {"x", "stem", "dw", "head"}
    assert sum(each.share for each in explanation.layers) == pytest.approx(1)
    shares = [each.share for each in explanation.layers]
    assert shares == sorted(shares, reverse=True)
    for each in explanation.layers:
        assert len(each.steps) == len(explanation.steps)


def test_whole_models_are_measured_on_more_samples_than_layers(bundled):
    run = ("explain", "bundle", "--data", "val.npz", "--json")
    few = msgspec.convert(bundled.ok(*run).json, Explanation)
    whole = {step.samples for step in few.steps}
    assert len(whole) == 1
    assert min(whole) > few.samples
    all_of_them = msgspec.convert(bundled.ok(*run, "--samples", "256").json, Explanation)
    assert {all_of_them.samples} == whole
    assert few.steps[-1] == all_of_them.steps[-1]
    assert few.steps[-1].output_sqnr_db == pytest.approx(all_of_them.output_sqnr_db, abs=0.05)


def test_the_table_says_what_matters_at_80_columns(bundled):
    shown = bundled.ok("explain", "bundle", "--data", "val.npz").stdout
    layers = bundled.ok("explain", "bundle", "--data", "val.npz", "--json").json["layers"]
    worst = layers[0]["layer"]["name"]
    assert re.search(rf"\d of 4 layers makes? \d+\.\d % of the error: {worst}", shown)
    for word in ("layer", "range", "clipped", "SQNR", "own", "cost", "16 bits", "float", "recovery step"):
        assert word in shown
    assert "on 16 samples of val.npz" in shown


def test_without_data_the_golden_samples_serve_and_that_is_said(bundled):
    shown = bundled.ok("explain", "bundle").stdout
    assert "on 4 golden samples of the bundle; --data FILE gives more" in " ".join(shown.split())
    found = bundled.ok("explain", "bundle", "--json").json
    assert (found["golden"], found["samples"], found["steps"]) == (True, 4, [])
    assert all(remedy["measured"] == "simulated" for remedy in found["remedies"])


def test_a_remedy_can_be_pasted_and_gains_what_it_says(equipped):
    recipe = equipped.folder / "narrow.toml"
    lines = [
        'description = "narrow"', 'precision = "int8"', "[[passes]]", 'use = "graph.simplify"', "[[passes]]",
        'use = "quantize.static"', "bias_correction = false", "[[passes.overrides]]", 'layers = ["dw"]',
        "weight_bits = 2",
    ]  # fmt: skip
    recipe.write_text("\n".join(lines))
    equipped.ok(*COMPRESS, "--recipe", "narrow.toml", "-o", "bundle")
    found = equipped.ok("explain", "bundle", "--data", "val.npz", "--json").json
    assert found["layers"][0]["layer"]["name"] == "dw"
    assert "dw: the rounding of its weight." in found["summary"]
    remedy = found["remedies"][0]
    assert remedy["measured"] == "requantized"
    assert tomllib.loads(remedy["toml"].replace("passes.overrides", "x"))["x"][0]["layers"][0] == "dw"
    recipe.write_text("\n".join([*lines, remedy["toml"]]))
    equipped.ok(*COMPRESS, "--recipe", "narrow.toml", "-o", "better")
    after = equipped.ok("explain", "better", "--data", "val.npz", "--json").json
    gained = after["output_sqnr_db"] - found["output_sqnr_db"]
    assert gained == pytest.approx(remedy["gain_db"], abs=0.3)
    assert gained > 3


def test_compress_warns_of_a_layer_at_risk(equipped):
    (equipped.folder / "narrow.toml").write_text(
        'description = "narrow"\nprecision = "int8"\n[[passes]]\nuse = "quantize.static"\nweight_bits = 2\n'
    )
    told = equipped.ok(*COMPRESS, "--recipe", "narrow.toml").stderr
    assert re.search(r"warning: layer \w+ is at risk: its weight has 2 bits", told)
    assert "weight_bits = 8" in told
    assert "is at risk" not in equipped.ok(*COMPRESS).stderr


def test_what_was_clipped_on_purpose_is_told(equipped):
    (equipped.folder / "narrow.toml").write_text(
        'description = "narrow"\nprecision = "int8"\n[[passes]]\nuse = "quantize.static"\n'
        'ranges = "percentile"\npercentile = 90.0\n'
    )
    equipped.ok(*COMPRESS, "--recipe", "narrow.toml", "-o", "bundle")
    found = equipped.ok("explain", "bundle", "--data", "val.npz", "--json").json
    assert any("of its output is clipped" in sentence for sentence in found["summary"])
    assert [step["name"] for step in found["steps"]][:2] == ["plain: nearest, min/max", "ranges = percentile"]
    assert found["steps"][1]["output_sqnr_db"] < found["steps"][0]["output_sqnr_db"]


def test_integer_ports_make_no_difference(equipped):
    found = []
    for ports in ("float32", "integer"):
        equipped.ok(*COMPRESS, "--ports", ports, "-o", ports)
        found.append(equipped.ok("explain", ports, "--data", "val.npz", "--json").json)
    first, second = ({each["layer"]["tensor"]: each["share"] for each in one["layers"]} for one in found)
    assert first == pytest.approx(second, abs=0.01)


def test_a_quantized_source_is_explained_against_its_float_model(bundled):
    artifact = bundled.folder / "bundle" / "int8.onnx"
    bundled.ok("compress", artifact, "--target", "x86", "--data", "val.npz", "-o", "foreign")
    assert bundled.run("explain", "foreign", "--data", "val.npz").exit_code == errors.UsageError.exit_code
    found = bundled.ok("explain", "foreign", "--against", "model.onnx", "--json").json
    assert {each["layer"]["name"] for each in found["layers"]} == {"x", "stem", "dw", "head"}


def test_a_bundle_of_before_is_explained_too(bundled):
    """Diagnoses are younger than bundles."""
    manifest = bundled.folder / "bundle" / MANIFEST
    record = json.loads(manifest.read_text())
    del record["diagnosis"]
    manifest.write_text(json.dumps(record))
    (bundled.folder / "bundle" / DIAGNOSIS).unlink()
    assert diagnosis_of(read_bundle(bundled.folder / "bundle")) is None
    assert bundled.ok("explain", "bundle", "--json").json["layers"]


def test_a_float_bundle_has_nothing_to_explain(equipped, told):
    equipped.ok(*COMPRESS, "--recipe", "float32", "-o", "bundle")
    told(equipped.run("explain", "bundle"), errors.BundleError, "no quantized ONNX artifact", "recipe")


def test_another_float_model_is_refused(bundled, told):
    from onnx import TensorProto, helper, save

    port = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in ("u", "v")]
    graph = helper.make_graph([helper.make_node("Relu", ["u"], ["v"])], "other", port[:1], port[1:])
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        bundled.folder / "o.onnx",
    )
    told(bundled.run("explain", "bundle", "--against", "o.onnx"), errors.ModelError, "shares no tensor")


def test_other_data_measures_but_does_not_run_the_recipe_again(bundled):
    x = np.random.default_rng(5).normal(size=(8, 3, 8, 8)).astype(np.float32)
    np.savez(bundled.folder / "other.npz", x=x)
    outcome = bundled.ok("explain", "bundle", "--data", "other.npz", "--json")
    assert "its recipe is not run again" in outcome.stderr
    assert (outcome.json["samples"], outcome.json["steps"]) == (8, [])


def test_an_html_report_beside_it(bundled):
    bundled.ok("explain", "bundle", "-o", "layers.html")
    page = (bundled.folder / "layers.html").read_text()
    assert "<svg" in page
    assert not re.search(r"https?:|<script|<link|<img", page)


def test_python_mirrors_the_command(bundled):
    folder = bundled.folder
    explanation = edgepipe.explain(folder / "bundle", data=folder / "val.npz")
    found = bundled.ok("explain", "bundle", "--data", "val.npz", "--json").json
    assert json.loads(msgspec.json.encode(explanation))["layers"] == found["layers"]


def test_the_run_and_its_report_show_the_layers(deployed):
    [record] = deployed.folder.glob("runs/*/run.json")
    diagnosis = json.loads(record.read_text())["diagnosis"]
    assert [each["name"] for each in diagnosis["layers"]] == ["x", "stem", "dw", "head"]
    assert "SQNR of each layer along the network" in (record.parent / "report.html").read_text()
