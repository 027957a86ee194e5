"""The main job and every command around it, as typed, on the embedded device and on OpenSSH's own server."""

import json
import re
import shutil

import msgspec
import numpy as np
import onnx
import pytest

from edgepipe.bundle import read_bundle
from edgepipe.device.agent import agent_digest
from edgepipe.errors import TargetError
from edgepipe.evaluate import wilson
from edgepipe.measure import latency_of
from edgepipe.store import Run

QUICK = ("--duration", "0.2", "--min-runs", "64")
ARTIFACTS = ["float32.onnx", "float32.tflite", "int8.onnx", "int8.tflite"]
COMPRESS = ("compress", "model.onnx", "--target", "x86", "--data", "val.npz")
LITERT_ALONE = """
extends = "x86"
title = "my box"
threads = 2

[[runtimes]]
name = "litert"
package = "ai-edge-litert"
version = "2.3.0"
"""


def run_of(user):
    (path,) = (user.folder / "runs").glob("*/run.json")
    return path.parent, msgspec.json.decode(path.read_bytes(), type=Run)


# --- the main job on the embedded device ------------------------------------------------------------


def test_the_record_is_what_was_printed(deployed):
    folder, run = run_of(deployed)
    assert deployed.outcome.json == json.loads((folder / "run.json").read_text())
    assert folder.name == run.id


def test_nothing_takes_long_in_silence(deployed):
    """Saving and drawing hundreds of thousands of latencies takes a while."""
    assert re.search(r"✓ write report \d+\.\d s", deployed.outcome.stderr)


def test_both_artifacts_and_their_float_references_are_in_the_bundle(deployed):
    folder, run = run_of(deployed)
    bundle = read_bundle(folder / "bundle")  # checks every digest
    assert [each.name for each in bundle.manifest.artifacts] == ARTIFACTS
    assert [each.artifact.name for each in run.results] == ARTIFACTS
    assert bundle.digest == run.bundle_digest
    onnx.checker.check_model(onnx.load(folder / "bundle" / "int8.onnx"), full_check=True)


def test_the_record_says_what_was_done(deployed):
    _, run = run_of(deployed)
    assert (run.target, run.recipe, run.seed, run.kind) == ("x86", "int8", 0, "embedded")
    assert run.model_source == "model.onnx"
    assert run.command.startswith("edgepipe deploy model.onnx --target x86 --emulate")
    assert [step.use for step in run.steps] == ["graph.simplify", "quantize.static"]
    assert run.agent_digest == agent_digest()
    assert {"numpy", "onnx", "onnxruntime", "ai-edge-litert"} <= run.versions.keys()
    assert run.source_fidelity is not None
    assert "embedded" in run.host
    assert run.device["python"]


def test_no_sample_is_both_calibrated_on_and_evaluated_on(deployed):
    _, run = run_of(deployed)
    assert (run.calibration.samples, run.data.samples) == (24, 72)
    assert not run.calibration.random
    assert run.calibration.digest != run.data.digest


def test_accuracy_is_that_of_the_artifact_with_wilsons_interval(deployed):
    _, run = run_of(deployed)
    for result in run.results:
        accuracy = result.evaluation.comparison.accuracy
        hits = round(accuracy.value * 72)
        assert accuracy == wilson(hits, 72)
        assert accuracy.value > 0.9
        assert result.evaluation.comparison.agreement.value > 0.95
    assert run.agreement["int8.onnx = int8.tflite"].value > 0.95


def test_every_artifact_was_verified_and_measured_there(deployed):
    _, run = run_of(deployed)
    for result in run.results:
        assert result.verification.ok, result
        assert result.measurement.outcome == "ok"
        assert len(result.measurement.latencies_ns) >= 64
        assert min(result.measurement.latencies_ns) > 0
        assert latency_of(result.measurement).median_ns.value > 0
        assert result.skipped == ""


def test_the_report_opens_without_a_network(deployed):
    folder, run = run_of(deployed)
    page = (folder / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert run.id in page
    assert all(name in page for name in ARTIFACTS)
    loaded = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)|url\(([^)]+)\)|@import""", page)
    assert not [found for found in loaded if not "".join(found).strip("'\"").startswith(("#", "data:"))]
    assert "<link" not in page


def test_the_embedded_device_is_gone_with_its_files(deployed):
    temporary = [path.name for path in deployed.temporary.iterdir()]
    assert temporary in ([], [".ses"])


def test_nothing_but_results_in_the_folder(deployed):
    assert not [
        name for name in deployed.listing() if name.endswith(".part") or "/." in name.replace("/.cache", "")
    ]


# --- calibrated on nothing real ---------------------------------------------------------------------


def test_random_calibration_is_branded_wherever_it_shows(equipped):
    (equipped.folder / "mine.toml").write_text(LITERT_ALONE)
    shown = equipped.ok(
        "deploy", "model.onnx", "--target", "mine.toml", "--emulate", "--calibrate-random", *QUICK
    )
    assert "warning: calibrated on random numbers" in shown.stderr
    folder, run = run_of(equipped)
    assert run.calibration.random
    assert (run.data, run.reference) == (None, None)
    assert all(result.evaluation is None for result in run.results)
    assert "unfit for accuracy claims" in shown.stdout
    assert "unfit for accuracy claims" in equipped.ok("runs", "show").stdout
    assert "unfit for accuracy claims" in (folder / "report.html").read_text()
    judged = equipped.ok(
        "evaluate", folder / "bundle", "--data", "val.npz", "--against", "model.onnx", "--json"
    ).json
    assert judged["artifacts"]["int8.tflite"]["unfit"] == ["calibrated on random data"]


# --- looking at runs --------------------------------------------------------------------------------


def test_runs_list(deployed):
    _, run = run_of(deployed)
    (listed,) = deployed.ok("runs", "list", "--json").json
    assert listed["id"] == run.id
    assert [each["name"] for each in listed["results"]] == ARTIFACTS
    shown = deployed.ok("runs", "list").stdout
    assert run.id in shown  # in one piece, to be copied
    assert all(name in shown for name in ARTIFACTS)


@pytest.mark.parametrize("name", ["last", "20", "whole"])
def test_runs_show(deployed, name):
    _, run = run_of(deployed)
    name = run.id if name == "whole" else name
    assert deployed.ok("runs", "show", name, "--json").json == deployed.outcome.json
    shown = deployed.ok("runs", "show", name).stdout
    assert "int8.tflite" in shown
    assert "embedded" in shown


def test_runs_compare(deployed):
    compared = deployed.ok("runs", "compare", "last", "last", "--json").json
    assert [each["name"] for each in compared["artifacts"]] == ARTIFACTS
    assert all(each["same_file"] for each in compared["artifacts"])
    assert "int8.tflite" in deployed.ok("runs", "compare", "last", "last").stdout


def test_report_to_a_file(deployed, tmp_path):
    assert str(tmp_path / "r.html") in deployed.ok(
        "report", "last", "-o", tmp_path / "r.html"
    ).stdout.replace("\n", "")
    assert run_of(deployed)[1].id in (tmp_path / "r.html").read_text()


def test_a_store_without_runs(user):
    assert user.ok("runs", "list", "--json").json == []
    assert user.run("runs", "show").exit_code == 33


# --- a bundle, step by step -------------------------------------------------------------------------


def test_compress_makes_the_same_bundle_each_time(equipped, deployed):
    manifests = [equipped.ok(*COMPRESS, "-o", f"b{n}", "--json").json for n in range(2)]
    first, second = (read_bundle(equipped.folder / f"b{n}") for n in range(2))
    assert [each["name"] for each in manifests[0]["artifacts"]] == ARTIFACTS
    assert first.manifest.digests() == second.manifest.digests()
    assert first.manifest.digests() == read_bundle(run_of(deployed)[0] / "bundle").manifest.digests()
    assert first.digest == second.digest


def test_another_seed_draws_other_samples(equipped):
    equipped.ok(*COMPRESS, "-o", "a")
    equipped.ok(*COMPRESS, "-o", "b", "--seed", "1")
    a, b = (read_bundle(equipped.folder / name).manifest for name in "ab")
    assert a.calibration.digest != b.calibration.digest


def test_an_older_bundle_is_replaced(equipped):
    for _ in range(2):
        equipped.ok(*COMPRESS, "-o", "bundle")
    assert read_bundle(equipped.folder / "bundle")


def test_evaluate_a_bundle(deployed):
    folder, _ = run_of(deployed)
    judged = deployed.ok("evaluate", folder / "bundle", "--data", "val.npz", "--json").json
    assert list(judged["artifacts"]) == ARTIFACTS
    assert judged["reference"]["samples"] == 72  # the bundle was calibrated on the others
    shown = deployed.ok("evaluate", folder / "bundle", "--data", "val.npz").stdout
    assert "int8.onnx" in shown


def test_evaluate_an_artifact_against_its_source(deployed):
    folder, _ = run_of(deployed)
    artifact = folder / "bundle" / "int8.onnx"
    judged = deployed.ok("evaluate", artifact, "--data", "val.npz", "--against", "model.onnx", "--json").json
    (found,) = judged["artifacts"].values()
    assert 20 < found["fidelity"][0]["sqnr_db"] < 80


def test_push_bench_and_probe_a_real_server(bundle, user, board):
    first = user.ok("push", "bundle", "--host", "board", "--json")
    assert "already there" not in first.stderr
    sent = board.root / ".edgepipe" / first.json["folder"]
    assert sorted(path.name for path in sent.iterdir()) == sorted([*ARTIFACTS, "golden"])
    again = user.ok("push", "bundle", "--host", "board", "--json")
    assert again.json == first.json
    assert "push" in again.stderr
    assert "already there" in again.stderr

    run = msgspec.convert(user.ok("bench", "bundle", "--host", "board", *QUICK, "--json").json, Run)
    assert run.kind == "board"
    assert all(each.measurement.outcome == "ok" for each in run.results)
    assert run_of(user)[1] == run

    facts = user.ok("probe", "--host", "board", "--json").json
    assert {each["name"] for each in facts["runtimes"]} >= {"onnxruntime", "litert"}
    assert "onnxruntime" in user.ok("probe", "--host", "board").stdout


def test_probe_the_embedded_device(user):
    assert user.ok("probe", "--emulate", "--json").json["cpu"]["cores"] >= 1


def test_a_target_of_ones_own(equipped):
    (equipped.folder / "mine.toml").write_text(LITERT_ALONE)
    equipped.ok(*COMPRESS[:2], "--target", "mine.toml", "--data", "val.npz")
    assert read_bundle(equipped.folder / "bundle").manifest.target == "mine"
    told = equipped.run("bench", "bundle", "--emulate")
    assert told.exit_code == TargetError.exit_code
    run = equipped.ok("bench", "bundle", "--target", "mine.toml", "--emulate", *QUICK, "--json").json
    assert run["target"] == "mine"
    assert [each["artifact"]["name"] for each in run["results"]] == ["float32.tflite", "int8.tflite"]
    assert {each["measurement"]["threads"] for each in run["results"]} <= {
        1,
        2,
    }  # no more than there are cores


def test_samples_without_labels_and_names_with_spaces(equipped):
    with np.load(equipped.folder / "val.npz") as data:
        np.save(equipped.folder / "my samples.npy", data["x"])
    (equipped.folder / "model.onnx").rename(equipped.folder / "Mein Modell (1) – größer.onnx")
    command = ("compress", "Mein Modell (1) – größer.onnx", "--target", "x86", "--data", "my samples.npy")
    equipped.ok(*command, "-o", "my bundle")
    judged = equipped.ok("evaluate", "my bundle", "--data", "my samples.npy", "--json").json
    comparison = judged["artifacts"]["int8.tflite"]["comparison"]
    assert comparison["accuracy"] is None
    assert comparison["agreement"]["value"] > 0.95
    assert equipped.ok("evaluate", "my bundle", "--data", "my samples.npy").stdout


def test_a_reader_that_leaves_early(deployed):
    process = deployed.start("runs", "show", "last", "--json")
    process.stdout.close()
    stderr = process.stderr.read().decode()
    process.stderr.close()
    process.wait(60)
    assert "Traceback" not in stderr


# --- changing the format alone ----------------------------------------------------------------------


def run_tflite(path, x):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    found = []
    for sample in x.transpose(0, 2, 3, 1):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0].copy())
    return np.stack(found)


def run_onnx(path, x):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize(("to", "options"), [("tflite", ()), ("tflite", ("--float16",)), ("onnx", ())])
def test_convert_keeps_what_the_model_computes(equipped, to, options):
    said = equipped.ok("convert", "model.onnx", "--to", to, *options, "-o", f"out.{to}", "--json").json
    file = equipped.folder / f"out.{to}"
    x = np.load(equipped.folder / "val.npz")["x"]
    expected = run_onnx(equipped.folder / "model.onnx", x)
    found = run_tflite(file, x) if to == "tflite" else run_onnx(file, x)
    np.testing.assert_allclose(found, expected, atol=5e-3 if options else 1e-5)
    assert said["size_bytes"] == file.stat().st_size
    assert said["precision"] == ("float16" if options else "float32")


def test_convert_keeps_the_decisions_of_a_quantized_model(deployed, tmp_path):
    folder, _ = run_of(deployed)
    said = deployed.ok(
        "convert", folder / "bundle/int8.onnx", "--to", "tflite", "-o", tmp_path / "m.tflite"
    ).stdout
    assert "int8" in said


# --- what edgepipe knows ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noun", "name"), [("targets", "raspberrypi5"), ("recipes", "int8"), ("passes", "quantize.static")]
)
def test_catalogues(user, noun, name):
    assert any(name in json.dumps(each) for each in user.ok(noun, "list", "--json").json)
    assert name in user.ok(noun, "list").stdout
    assert user.ok(noun, "show", name, "--json").json
    assert name in user.ok(noun, "show", name).stdout


# --- a project --------------------------------------------------------------------------------------


def test_a_project_makes_deploy_complete_by_itself(equipped, board):
    """On a real server, with the bundle in a folder of its own."""
    shutil.copy(board.key, equipped.home / ".ssh" / "id_ed25519")
    host = f"{board.host.user}@127.0.0.1:{board.port}"
    equipped.ok("init", "--model", "model.onnx", "--data", "val.npz", "--target", "x86", "--host", host)
    run = msgspec.convert(equipped.ok("deploy", "-o", "mine", *QUICK, "--json").json, Run)
    assert (run.model_source, run.kind, run.target) == ("model.onnx", "board", "x86")
    assert "127.0.0.1" in run.host
    assert all(each.measurement.outcome == "ok" for each in run.results)
    assert read_bundle(equipped.folder / "mine").digest == run.bundle_digest
    folder, stored = run_of(equipped)
    assert stored == run
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "run.json"]
