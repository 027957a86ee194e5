"""Exports hold what they were made from, whatever that is; verdicts as errors, for programs."""

import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepipe.bundle import Artifact, Manifest, write_bundle
from edgepipe.errors import ReproductionDiffers
from edgepipe.model import digest_bytes
from edgepipe.provenance import Change, Check, Environment, Origin, Reproduction
from edgepipe.recipe import load_recipe
from edgepipe.store import Run, load_run, save_run
from edgepipe.target import load_target
from edgepipe.workflow.exporting import export_run, import_run, open_published
from edgepipe.workflow.origin import recipe_toml, target_toml
from edgepipe.workflow.reproducing import raise_if_different

RECIPE, TARGET = recipe_toml(load_recipe("int8")), target_toml(load_target("x86"))
TEXT = st.text(max_size=20)
NAMES = st.text("abcXYZ019-_.", min_size=1, max_size=12).filter(lambda name: name[0] not in ".-")


@st.composite
def stored_runs(draw):
    """A run with its artifact's bytes, which nothing but their own digests hold together."""
    payload = draw(st.binary(max_size=64))
    artifact = Artifact(
        name="int8.tflite", format="tflite", precision="int8", digest=digest_bytes(payload),
        size_bytes=len(payload), inputs=(), outputs=(), op_counts={}, needs={},
    )  # fmt: skip
    manifest = Manifest(
        edgepipe_version="0", model_name=draw(TEXT), model_source="m", model_digest="", inputs=(), outputs=(),
        target="x86", recipe="int8", seed=0, calibration=None, steps=(), artifacts=(artifact,), versions={},
    )  # fmt: skip
    origin = Origin(model=draw(TEXT), model_sha256=None, data=draw(TEXT), recipe=RECIPE, target=TARGET)
    environment = Environment(
        edgepipe="0", code="", python="", system="", cpu=draw(TEXT), cores=1,
        packages=draw(st.dictionaries(TEXT, TEXT, max_size=3)),
    )  # fmt: skip
    run = Run(
        id=f"20261122T120000Z-{draw(NAMES)}", created="", edgepipe_version="0", command=draw(TEXT),
        model_name=draw(TEXT), model_source="m", model_digest="", target="x86", recipe="int8",
        seed=draw(st.integers(0, 2**31)), bundle_digest="", host=draw(TEXT), kind="board",
        device=draw(st.dictionaries(TEXT, st.one_of(st.integers(-9, 9), TEXT, st.booleans()), max_size=3)),
        origin=draw(st.sampled_from([None, origin])), environment=draw(st.sampled_from([None, environment])),
    )  # fmt: skip
    return run, manifest, payload


@settings(max_examples=60, deadline=None)
@given(stored_runs())
def test_what_is_exported_is_read_and_imported_unchanged(drawn):
    run, manifest, payload = drawn
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = write_bundle(folder / "runs" / run.id / "bundle", manifest, {"int8.tflite": payload})
        run = msgspec.structs.replace(run, bundle_digest=bundle.digest)
        save_run(folder / "runs", run)
        exported = export_run(folder / "runs", run.id, folder / "a.zip")
        assert exported.sha256 == digest_bytes((folder / "a.zip").read_bytes())
        with open_published(str(folder / "a.zip"), folder / "none") as published:
            assert published.run == run
            assert published.bundle.read("int8.tflite") == payload
            assert published.bundle.manifest == manifest
        assert import_run(folder / "a.zip", folder / "others") == run
        assert load_run(folder / "others", run.id) == run
        export_run(folder / "others", run.id, folder / "b.zip")
        assert (folder / "a.zip").read_bytes() == (folder / "b.zip").read_bytes()


def reproduction(*checks, changes=()):
    differing = [each for each in checks if each.state == "differs"]
    return Reproduction(
        run="r", verdict="DIFFERS" if differing else "REPRODUCED", checks=checks, changes=changes,
        first_difference=str(differing[0]) if differing else "", place="", kind="", recorded_place="here",
        recorded_kind="board",
    )  # fmt: skip


FINE = Check(subject="model", state="equal", recorded="1", found="1")
OTHER_DATA = Check(subject="calibration data", state="differs", recorded="1", found="2", note="5 samples")
OTHER_FILE = Check(subject="file", artifact="int8.onnx", state="differs", recorded="1", found="2")


def test_a_run_that_is_reproduced_raises_nothing():
    raise_if_different(reproduction(FINE))


def test_another_input_is_to_be_given():
    with pytest.raises(ReproductionDiffers, match="1 of 2 checks differ") as caught:
        raise_if_different(reproduction(FINE, OTHER_DATA, changes=(Change("numpy", "1", "2"),)))
    assert caught.value.got == "first, calibration data: recorded 1, found 2 (5 samples)"
    assert "the one that the run was made with" in caught.value.remedy


def test_another_artifact_may_come_from_what_changed():
    with pytest.raises(ReproductionDiffers) as caught:
        raise_if_different(reproduction(FINE, OTHER_FILE, changes=(Change("numpy", "1", "2"),)))
    assert caught.value.got == "first, file of int8.onnx: recorded 1, found 2"
    assert "numpy 1, now 2" in caught.value.remedy
