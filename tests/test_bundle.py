import json

import msgspec
import numpy as np
import pytest

from edgepipe.bundle import MANIFEST, Manifest, read_bundle, write_bundle
from edgepipe.errors import BundleError, OutputError
from edgepipe.golden import seal
from edgepipe.model import TensorSpec, digest_bytes


@pytest.fixture
def contents(tiny_onnx, tiny_tflite):
    """A manifest and the files it names; another seed gives another bundle."""

    def build(seed=0):
        samples = np.random.default_rng(1).normal(size=(2, 3, 4, 5)).astype(np.float32)
        sealed = [seal(tiny_onnx(batch=None, seed=seed), samples), seal(tiny_tflite(batch=1), samples)]
        manifest = Manifest(
            edgepipe_version="0.1",
            model_name="tiny",
            model_source="tiny.onnx",
            model_digest="0" * 64,
            inputs=(TensorSpec("x", "float32", (None, 3, 4, 5)),),
            outputs=(TensorSpec("y", "float32", (None, 2, 4, 5)),),
            target="x86",
            recipe="int8",
            seed=seed,
            calibration=None,
            steps=(),
            artifacts=tuple(artifact for artifact, _ in sealed),
            versions={"onnx": "1.0"},
        )
        return manifest, {name: data for _, files in sealed for name, data in files.items()}

    return build


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_bundle_is_read_as_it_was_written(tmp_path, contents):
    manifest, files = contents()
    written = write_bundle(tmp_path / "made" / "here", manifest, files)
    assert read_bundle(tmp_path / "made" / "here") == written
    assert written.manifest == manifest
    on_disk = tree(written.folder)
    assert written.digest == digest_bytes(on_disk.pop(MANIFEST))
    assert on_disk == files
    assert written.read("float32.onnx") == files["float32.onnx"]
    assert written.artifact("int8.tflite").format == "tflite"
    assert names(tmp_path / "made") == ["here"]


def test_the_same_contents_give_the_same_digest(tmp_path, contents):
    first, second = (write_bundle(tmp_path / name, *contents()) for name in "ab")
    assert first.digest == second.digest
    assert write_bundle(tmp_path / "c", *contents(seed=1)).digest != first.digest


def test_an_older_bundle_is_replaced_whole(tmp_path, contents):
    write_bundle(tmp_path / "b", *contents(seed=0))
    manifest, files = contents(seed=1)
    smaller = msgspec.structs.replace(manifest, artifacts=manifest.artifacts[:1])
    kept = {name: data for name, data in files.items() if name in smaller.digests()}
    written = write_bundle(tmp_path / "b", smaller, kept)
    assert read_bundle(tmp_path / "b") == written
    assert set(tree(tmp_path / "b")) == {MANIFEST, *kept}
    assert names(tmp_path) == ["b"]


def test_an_empty_folder_is_filled(tmp_path, contents):
    (tmp_path / "b").mkdir()
    assert write_bundle(tmp_path / "b", *contents()) == read_bundle(tmp_path / "b")


@pytest.mark.parametrize("inside_a_bundle", [False, True])
def test_what_is_no_bundle_is_never_overwritten(tmp_path, contents, inside_a_bundle):
    if inside_a_bundle:
        write_bundle(tmp_path / "b", *contents())
    (tmp_path / "b").mkdir(exist_ok=True)
    (tmp_path / "b" / "thesis.txt").write_text("ten years")
    before = tree(tmp_path)
    with pytest.raises(BundleError, match="other files") as caught:
        write_bundle(tmp_path / "b", *contents(seed=1))
    assert "thesis.txt" in caught.value.got
    assert tree(tmp_path) == before


def test_a_file_or_a_link_is_never_overwritten(tmp_path, contents):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    for name in ("file", "link"):
        with pytest.raises(BundleError):
            write_bundle(tmp_path / name, *contents())
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("at", ["write_bytes", "rename"])
def test_a_cut_write_leaves_nothing_half_done(tmp_path, contents, monkeypatch, old, error, at):
    from pathlib import Path

    if old:
        write_bundle(tmp_path / "b", *contents())
    before = tree(tmp_path)
    calls = []
    real = getattr(Path, at)

    def cut(self, *args):
        calls.append(self)
        if len(calls) == 2 or (at == "rename" and not old):
            raise error
        return real(self, *args)

    monkeypatch.setattr(Path, at, cut)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        write_bundle(tmp_path / "b", *contents(seed=1))
    monkeypatch.undo()
    assert calls
    assert tree(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_told(tmp_path, contents):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError) as caught:
        write_bundle(tmp_path / "file" / "b", *contents())
    assert caught.value.remedy


def test_files_that_do_not_belong_are_a_mistake_of_the_caller(tmp_path, contents):
    manifest, files = contents()
    with pytest.raises(ValueError, match="not those"):
        write_bundle(tmp_path / "b", manifest, {**files, "int8.tflite": b"other"})
    assert not (tmp_path / "b").exists()


def test_every_file_is_checked(tmp_path, contents):
    bundle = write_bundle(tmp_path / "b", *contents())
    for name in bundle.manifest.digests():
        path = bundle.folder / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(BundleError, match="altered") as caught:
            read_bundle(bundle.folder)
        assert name in caught.value.where
        with pytest.raises(BundleError, match="altered"):
            bundle.read(name)
        path.unlink()
        with pytest.raises(BundleError, match="missing"):
            read_bundle(bundle.folder)
        path.write_bytes(data)
    assert read_bundle(bundle.folder) == bundle


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no bundle"),
        ("", "malformed"),
        ("[]", "malformed"),
        ('{"schema": "1"}', "malformed"),
        ('{"schema": 1}', "malformed"),
        ('{"schema": 99, "unheard": "of"}', "newer edgepipe"),
    ],
)
def test_bad_manifests_are_told_apart(tmp_path, text, message):
    (tmp_path / "b").mkdir()
    if text is not None:
        (tmp_path / "b" / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=message):
        read_bundle(tmp_path / "b")


def test_a_manifest_cannot_reach_out_of_its_folder(tmp_path, contents):
    bundle = write_bundle(tmp_path / "b", *contents())
    (tmp_path / "secret").write_bytes(b"s")
    record = json.loads((bundle.folder / MANIFEST).read_text())
    for name in ("../secret", str(tmp_path / "secret")):
        record["artifacts"][0] |= {"name": name, "digest": digest_bytes(b"s")}
        (bundle.folder / MANIFEST).write_text(json.dumps(record))
        with pytest.raises(BundleError, match="no file of the bundle"):
            read_bundle(bundle.folder)


def test_unknown_names_are_told(tmp_path, contents):
    bundle = write_bundle(tmp_path / "b", *contents())
    with pytest.raises(BundleError, match="float16") as caught:
        bundle.artifact("float16.tflite")
    assert "int8.tflite" in caught.value.got
    with pytest.raises(BundleError, match="no file of the bundle"):
        bundle.read("manifest.json")


def test_two_artifacts_of_one_name_are_refused(tmp_path, contents):
    manifest, files = contents()
    doubled = msgspec.structs.replace(manifest, artifacts=(*manifest.artifacts, manifest.artifacts[0]))
    with pytest.raises(ValueError, match="same name"):
        write_bundle(tmp_path / "b", doubled, files)
    assert names(tmp_path) == []
