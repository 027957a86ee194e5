"""A run done again: by its folder, by an export elsewhere, and with one thing changed each time."""

import hashlib
import json
import shutil
import zipfile

import msgspec
import numpy as np
import onnx
import pytest
from PIL import Image

from edgepipe import errors
from edgepipe.files import to_json
from edgepipe.provenance import Contents
from edgepipe.store import RECORD, Run

DIFFERS = errors.ReproductionDiffers.exit_code


@pytest.fixture(scope="session")
def exported(deployed, tmp_path_factory):
    """The file of an exported run, without model and data."""
    file = tmp_path_factory.mktemp("exported") / "run.zip"
    deployed.ok("runs", "export", "last", "-o", file)
    return file


@pytest.fixture
def owner(user, deployed):
    """Somebody with a copy of the deployed run, model and data, to be changed."""
    shutil.copytree(deployed.folder, user.folder, dirs_exist_ok=True)
    return user


def record_of(user):
    return next(user.folder.glob(f"runs/*/{RECORD}"))


def change_record(user, change):
    """Edits run.json as JSON."""
    path = record_of(user)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def differing(outcome):
    """Names of the checks that differ, of a reproduction whose verdict is DIFFERS."""
    assert outcome.exit_code == DIFFERS, outcome.stderr + outcome.stdout
    found = outcome.json
    assert found["verdict"] == "DIFFERS"
    checks = [one for one in found["checks"] if one["state"] == "differs"]
    assert found["first_difference"].startswith(checks[0]["subject"])
    return [one["subject"] + (f" of {one['artifact']}" if one["artifact"] else "") for one in checks]


def test_a_run_is_reproduced_and_nothing_is_written(deployed):
    deployed.ok("runs", "list")  # which brings the index up to date, as every look at a store does
    before = {path: path.read_bytes() for path in deployed.folder.rglob("*") if path.is_file()}
    found = deployed.ok("reproduce", "last", "--json").json
    assert found["verdict"] == "REPRODUCED"
    assert found["changes"] == []
    states = {(one["subject"], one["artifact"]): one["state"] for one in found["checks"]}
    for subject in ("model", "recipe", "seed", "calibration data", "evaluation data"):
        assert states[subject, ""] == "equal"
    for artifact in ("float32.onnx", "float32.tflite", "int8.onnx", "int8.tflite"):
        for subject in ("file", "golden samples", "accuracy", "agreement", "SQNR", "outputs"):
            assert states[subject, artifact] == "equal"
        assert states["peak memory", artifact] in {"equal", "within"}
        assert states["median latency", artifact] == "not compared"
    assert {path: path.read_bytes() for path in deployed.folder.rglob("*") if path.is_file()} == before
    assert not list(deployed.temporary.iterdir())


def test_an_export_is_reproduced_elsewhere(exported, equipped):
    shown = equipped.ok("reproduce", exported)
    assert "REPRODUCED: " in shown.stdout
    assert not (equipped.folder / "runs").exists()


def test_an_export_with_all_needs_nothing_else(deployed, user):
    file = user.folder / "whole.zip"
    outcome = deployed.ok("runs", "export", "last", "-o", file, "--with-model", "--with-data", "--json")
    assert outcome.json["left_out"] == []
    assert user.ok("reproduce", file, "--json").json["verdict"] == "REPRODUCED"


def test_images_and_how_they_were_preprocessed_come_along(equipped, tmp_path_factory):
    random = np.random.default_rng(0)
    for number in range(24):
        folder = equipped.folder / "photos" / f"class{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (equipped.folder / "edgepipe.toml").write_text("[preprocessing]\nresize = 8\ncrop = 8\nmean = [0.4]\n")
    quick = ("--duration", "0.1", "--min-runs", "8")
    equipped.run("deploy", "model.onnx", "--target", "x86", "--emulate", "--data", "photos", *quick)
    file = tmp_path_factory.mktemp("images") / "run.zip"
    equipped.ok("runs", "export", "-o", file, "--with-model", "--with-data")
    elsewhere = type(equipped)(file.parent / "elsewhere")
    found = elsewhere.ok("reproduce", file, "--json").json
    assert found["verdict"] == "REPRODUCED"
    assert "accuracy" in {one["subject"] for one in found["checks"]}


def test_an_export_is_the_same_bytes_every_time_and_holds_what_it_names(deployed, exported, user):
    again = user.folder / "again.zip"
    told = deployed.ok("runs", "export", "last", "-o", again, "--json").json
    assert again.read_bytes() == exported.read_bytes()
    assert {one["what"]: one["name"] for one in told["left_out"]} == {
        "model": "model.onnx",
        "data": "val.npz",
    }
    assert all(len(one["sha256"]) == 64 for one in told["left_out"])
    with zipfile.ZipFile(exported) as archive:
        contents = msgspec.json.decode(archive.read("export.json"), type=Contents)
        assert {*archive.namelist()} == {"export.json", *contents.files}
        assert {"run.json", "recipe.toml", "environment.txt", "bundle/manifest.json"} <= {*contents.files}
        assert "numpy==" in archive.read("environment.txt").decode()


def test_what_is_imported_is_the_record_that_was_exported(deployed, exported, user, told):
    run = msgspec.convert(user.ok("runs", "import", exported, "--json").json, Run)
    assert to_json(run) == record_of(deployed).read_bytes() == record_of(user).read_bytes()
    assert user.ok("runs", "export", "last", "-o", "mine.zip")
    assert (user.folder / "mine.zip").read_bytes() == exported.read_bytes()
    told(user.run("runs", "import", exported), errors.UsageError, "has that run already")


def test_missing_inputs_are_named_with_their_digests(deployed, exported, user, told):
    origin = json.loads(record_of(deployed).read_text())["origin"]
    told(user.run("reproduce", exported), errors.ModelNotFound, origin["model_sha256"], "--model")
    model = deployed.folder / "model.onnx"
    told(
        user.run("reproduce", exported, "--model", model),
        errors.DataNotFound,
        origin["data_sha256"],
        "--data",
    )


def test_other_data_is_told_before_anything_is_made(owner):
    with np.load(owner.folder / "val.npz") as data:
        x, y = data["x"].copy(), data["y"]
    x.view(np.uint32)[0, 0, 0, 0] ^= 1  # the last bit of one number
    np.savez(owner.folder / "val.npz", x=x, y=y)
    outcome = owner.run("reproduce", "--json")
    assert set(differing(outcome)) <= {"calibration data", "evaluation data"}
    assert "another file" in outcome.json["first_difference"]
    assert outcome.json["place"] == ""
    assert "round weights" not in outcome.stderr


def test_another_model_is_told(owner):
    model = onnx.load(owner.folder / "model.onnx")
    raw = bytearray(model.graph.initializer[0].raw_data)
    raw[0] ^= 1
    model.graph.initializer[0].raw_data = bytes(raw)
    onnx.save(model, owner.folder / "model.onnx")
    shown = owner.run("reproduce")
    assert shown.exit_code == DIFFERS
    assert "DIFFERS in model: recorded " in shown.stdout
    assert "another file: sha256" in " ".join(shown.stdout.split())


def test_another_recipe_is_told_with_its_setting(owner):
    def change(record):
        text = record["origin"]["recipe"]
        assert 'rounding = "gptq"' in text
        record["origin"]["recipe"] = text.replace('rounding = "gptq"', 'rounding = "nearest"')

    change_record(owner, change)
    outcome = owner.run("reproduce", "--json")
    assert differing(outcome) == ["recipe, step 2 (quantize.static), rounding"]
    assert 'recorded "gptq", found "nearest"' in outcome.json["first_difference"]


def test_another_seed_is_told(owner):
    change_record(owner, lambda record: record.update(seed=1))
    assert "seed" in differing(owner.run("reproduce", "--json"))


def test_another_artifact_is_told_with_the_step_and_what_changed(owner):
    """As of an edgepipe whose rounding changed, under a numpy of another version."""
    bundle = next(owner.folder.glob("runs/*/bundle"))
    other = owner.folder / "other"
    coarse = ('description = ""', 'precision = "int8"', "[[passes]]", 'use = "graph.simplify"', "[[passes]]")
    (owner.folder / "int8.toml").write_text(
        "\n".join([*coarse, 'use = "quantize.static"', 'rounding = "nearest"'])
    )
    owner.ok("compress", "model.onnx", "--target", "x86", "--data", "val.npz", "-r", "int8.toml", "-o", other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["steps"][1]["settings"]["rounding"] = "gptq"
    (other / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(bundle)
    shutil.copytree(other, bundle)

    def change(record):
        from edgepipe.bundle import read_bundle

        record["bundle_digest"] = read_bundle(bundle).digest
        record["environment"]["packages"]["numpy"] = "1.26.4"
        for result, artifact in zip(record["results"], manifest["artifacts"], strict=True):
            result["artifact"] = artifact

    change_record(owner, change)
    outcome = owner.run("reproduce", "--json")
    names = differing(outcome)
    assert names[0] in {"file of int8.onnx", "file of int8.tflite"}
    assert "step 2, quantize.static, makes another model of the same one" in outcome.json["first_difference"]
    assert [one["then"] for one in outcome.json["changes"] if one["what"] == "numpy"] == ["1.26.4"]
    assert outcome.json["place"], "the recorded artifacts ran all the same"


def test_other_outputs_and_metrics_outside_of_their_intervals_are_told(owner):
    def change(record):
        [result] = [one for one in record["results"] if one["artifact"]["name"] == "int8.tflite"]
        result["verification"]["digests"][2][0] = "0" * 64
        result["evaluation"]["comparison"]["accuracy"] = {"value": 0.5, "low": 0.4, "high": 0.6}
        result["evaluation"]["fidelity"][0]["sqnr_db"] += 0.5
        result["measurement"]["memory"]["peak_bytes"] //= 2

    change_record(owner, change)
    outcome = owner.run("reproduce", "--json")
    names = ["accuracy", "SQNR", "outputs", "peak memory"]
    assert differing(outcome) == [f"{name} of int8.tflite" for name in names]
    [outputs] = [
        one for one in outcome.json["checks"] if one["subject"] == "outputs" and one["state"] == "differs"
    ]
    assert outputs["note"].startswith("1 of 4 samples, the first is 2, output logits")


def test_a_record_of_before_is_reproduced_from_its_bundle(owner):
    """Without origin, environment and digests of outputs, as of `edgepipe bench` and older versions."""

    def change(record):
        del record["origin"], record["environment"]
        for result in record["results"]:
            del result["verification"]["digests"]

    change_record(owner, change)
    assert owner.ok("reproduce", "--json").json["verdict"] == "REPRODUCED"


def test_a_run_without_its_bundle_asks_for_it(owner, told):
    bundle = next(owner.folder.glob("runs/*/bundle"))
    shutil.move(bundle, owner.folder / "kept")
    told(owner.run("reproduce"), errors.BundleError, "bundle is not there", "--bundle")
    assert owner.ok("reproduce", "--bundle", "kept", "--json").json["verdict"] == "REPRODUCED"
    owner.ok("compress", "model.onnx", "--target", "x86", "--data", "val.npz", "-r", "float32", "-o", "other")
    told(owner.run("reproduce", "--bundle", "other"), errors.BundleError, "not the bundle of the run")


def rewrite(file, change):
    """Writes a zip file again with its files changed: `change` takes and gives a dict of them."""
    with zipfile.ZipFile(file) as archive:
        files = change({name: archive.read(name) for name in archive.namelist()})
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def flipped(name):
    def change(files):
        return {**files, name: bytes([files[name][0] ^ 1]) + files[name][1:]}

    return change


def lacking(name):
    return lambda files: {each: data for each, data in files.items() if each != name}


TAMPERED = {
    "an artifact": (flipped("bundle/int8.tflite"), "bundle/int8.tflite: sha256"),
    "a golden sample": (flipped("bundle/golden/int8.onnx/0.output0.bin"), "golden/int8.onnx/0.output0.bin"),
    "the record": (lambda files: {**files, RECORD: files[RECORD] + b" "}, f"{RECORD}: sha256"),
    "the recipe": (flipped("recipe.toml"), "recipe.toml: sha256"),
    "a file too few": (lacking("bundle/int8.onnx"), "do not share: bundle/int8.onnx"),
    "a file too many": (lambda files: {**files, "../evil": b""}, "do not share: ../evil"),
    "no contents": (lacking("export.json"), "no exported run"),
    "contents of nothing": (lambda files: {**files, "export.json": b"{}"}, "no exported run"),
    "a newer form": (
        lambda files: {**files, "export.json": b'{"schema": 99}'},
        "made by a newer edgepipe",
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_export_is_refused(exported, equipped, told, what):
    change, words = TAMPERED[what]
    shutil.copy(exported, equipped.folder / "run.zip")
    rewrite(equipped.folder / "run.zip", change)
    before = equipped.listing()
    told(equipped.run("reproduce", "run.zip"), errors.BundleError, words)
    told(equipped.run("runs", "import", "run.zip"), errors.BundleError, words)
    assert equipped.listing() == before


def test_a_path_that_leads_out_of_an_export_is_refused(exported, equipped, told):
    def change(files):
        contents = json.loads(files["export.json"])
        contents["files"]["../evil"] = "0" * 64
        return {**files, "export.json": json.dumps(contents).encode(), "../evil": b""}

    shutil.copy(exported, equipped.folder / "run.zip")
    rewrite(equipped.folder / "run.zip", change)
    told(equipped.run("reproduce", "run.zip"), errors.BundleError, "a path that leads out of it")


def resealed(file, change):
    """Changes a record in an export, with the digest that makes it look untouched."""

    def seal(files):
        contents, record = (json.loads(files[name]) for name in ("export.json", RECORD))
        change(record)
        files = {**files, RECORD: json.dumps(record).encode()}
        contents["files"][RECORD] = hashlib.sha256(files[RECORD]).hexdigest()
        return {**files, "export.json": json.dumps(contents).encode()}

    rewrite(file, seal)


@pytest.mark.parametrize("name", ["../evil", "other", ".hidden", ""])
def test_a_run_that_calls_itself_otherwise_is_refused(exported, equipped, told, name):
    shutil.copy(exported, equipped.folder / "run.zip")
    resealed(equipped.folder / "run.zip", lambda record: record.update(id=name))
    before = equipped.listing()
    told(equipped.run("runs", "import", "run.zip"), errors.BundleError, "the run calls itself")
    assert equipped.listing() == before


def test_a_program_that_came_with_an_export_is_not_run(exported, equipped, told):
    """Whoever made the file chose what it would do."""
    shutil.copy(exported, equipped.folder / "run.zip")

    def add(files):
        contents = json.loads(files["export.json"])
        program = b"raise SystemExit('run')"
        contents["files"]["model/net.py"] = hashlib.sha256(program).hexdigest()
        return {**files, "export.json": json.dumps(contents).encode(), "model/net.py": program}

    rewrite(equipped.folder / "run.zip", add)
    told(equipped.run("reproduce", "run.zip"), errors.UsageError, "not run unseen", "--model")
    assert equipped.ok("reproduce", "run.zip", "--model", "model.onnx")


def test_a_strangers_target_is_not_emulated(exported, equipped, told):
    """Its image and packages would be fetched and run."""
    shutil.copy(exported, equipped.folder / "run.zip")

    resealed(equipped.folder / "run.zip", lambda record: record.update(target="theirs"))
    told(equipped.run("reproduce", "run.zip"), errors.UsageError, "on the run's word alone", "--target")
    assert "REPRODUCED" in equipped.ok("reproduce", "run.zip", "--emulator", "native").stdout


def test_a_damaged_export_is_refused(exported, equipped, told):
    (equipped.folder / "run.zip").write_bytes(exported.read_bytes()[:-500])
    told(equipped.run("reproduce", "run.zip"), errors.BundleError, "damaged")
    (equipped.folder / "no.zip").write_text("no zip at all")
    told(equipped.run("reproduce", "no.zip"), errors.BundleError, "damaged")
    told(equipped.run("reproduce", "absent.zip"), errors.RunNotFound, "no such export")


def test_what_cannot_be_exported(owner, told):
    told(owner.run("runs", "export", "-o", "run.tar"), errors.UsageError, "zip file")
    told(owner.run("runs", "export", "none", "-o", "run.zip"), errors.RunNotFound, "no run none")
    (owner.folder / "val.npz").write_bytes(b"other")
    told(owner.run("runs", "export", "--with-data"), errors.DataNotFound, "not the one that the run")
    (owner.folder / "model.onnx").unlink()
    told(owner.run("runs", "export", "--with-model"), errors.ModelNotFound, "not there")
    assert not list(owner.folder.glob("*.zip"))
