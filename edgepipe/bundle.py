"""A bundle: the artifacts of one model for one target, with golden samples and a manifest.

On disk a folder::

    manifest.json
    diagnosis.json                                            of each layer, where the passes quantized
    float32.onnx  int8.onnx  float32.tflite  int8.tflite      the artifacts, as the target needs them
    golden/int8.tflite/0.input0.bin  0.output0.bin  ...       raw little-endian tensors, C order

A bundle is written whole or not at all, and its digest is that of its manifest, which holds the
digest of every other file.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from edgepipe.errors import BundleError, OutputError
from edgepipe.model import TensorSpec, digest_bytes

ArtifactFormat = Literal["onnx", "tflite"]
Precision = Literal["float32", "float16", "int8", "int4", "int16", "dynamic", "mixed"]
"""Of weights and activations: int4 has int4 weights with int8 activations, int16 has int8 weights with int16
activations, dynamic has int8 weights with activations that are quantized at run time, mixed has several."""
SCHEMA = 1
MANIFEST = "manifest.json"
DIAGNOSIS = "diagnosis.json"


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output of an artifact, and how it maps to that of the source model.

    Attributes:
        name: The tensor's name in the artifact.
        dtype: NumPy's name of its type.
        shape: Its dimensions, batch size 1.
        permutation: Axes of the source's tensor in the order of the artifact's:
            ``artifact_tensor = source_tensor.transpose(permutation)``.
        scale: Step of an integer port: ``real = (q - zero_point) * scale``; None for a float port.
        zero_point: The integer that stands for 0.0; 0 for a float port.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    permutation: tuple[int, ...]
    scale: float | None = None
    zero_point: int = 0


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """One sample with the outputs that the host's runtime computed for it.

    Attributes:
        inputs: Files below the bundle, one for each input port.
        outputs: Likewise for each output port.
        digests: sha256 of every file named, by file.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    digests: dict[str, str]


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """One file that one family of runtimes can run.

    Attributes:
        name: Precision and format, unique in the bundle: "int8.tflite". Also the file's name.
        format: "onnx" or "tflite".
        precision: Of its weights and activations.
        digest: sha256 of the file.
        size_bytes: Its size.
        inputs: Input ports in the order of the runtime.
        outputs: Output ports likewise.
        op_counts: How often each op occurs: {"CONV_2D": 27, ...}.
        needs: Least version of each runtime that can run it, by runtime: {"onnxruntime": "1.15"}.
        golden: Samples that every device must reproduce before it is measured.
    """

    name: str
    format: ArtifactFormat
    precision: Precision
    digest: str
    size_bytes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    op_counts: dict[str, int]
    needs: dict[str, str]
    golden: tuple[Golden, ...] = ()


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass did.

    Attributes:
        use: The pass's name in the recipe: "quantize.static".
        settings: Its fields, defaults included.
        digest_in: sha256 of the model before.
        digest_out: sha256 of the model after.
        size_in_bytes: Size before.
        size_out_bytes: Size after.
        sqnr_db: SQNR of the outputs after against before, on calibration samples; None where unknown.
        seconds: Wall time; None in a bundle, whose bytes the clock has no part in.
        cached: True where the result came from the cache; likewise.
    """

    use: str
    settings: dict[str, object]
    digest_in: str
    digest_out: str
    size_in_bytes: int
    size_out_bytes: int
    sqnr_db: float | None
    seconds: float | None = None
    cached: bool = False


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """The data that ranges were taken from.

    Attributes:
        source: Where the samples came from.
        digest: Digest of them all.
        samples: How many there were.
        random: True where they were made up.
        sample_digests: `edgepipe.data.digest_rows` of them, so that nobody evaluates on them unawares.
    """

    source: str
    digest: str
    samples: int
    random: bool
    sample_digests: tuple[str, ...] = ()


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a bundle but the bytes of its files.

    Attributes:
        schema: Version of this record's form.
        edgepipe_version: What made it.
        model_name: Name of the source model.
        model_source: Where it came from, as the user named it.
        model_digest: sha256 of the float ONNX model that all artifacts derive from.
        inputs: Inputs of that model: the layout in which users give data.
        outputs: Outputs of that model.
        target: Name of the target.
        recipe: Name of the recipe.
        seed: Seed of everything random.
        calibration: None where the recipe needs no data.
        steps: What each pass did.
        artifacts: In order of precision, then format.
        versions: Version of every package that had a hand in it.
        diagnosis: sha256 of diagnosis.json; None where there is none, as in bundles of a float model.
    """

    schema: int = SCHEMA
    edgepipe_version: str
    model_name: str
    model_source: str
    model_digest: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    target: str
    recipe: str
    seed: int
    calibration: Calibration | None
    steps: tuple[Step, ...]
    artifacts: tuple[Artifact, ...]
    versions: dict[str, str]
    diagnosis: str | None = None

    def digests(self) -> dict[str, str]:
        """sha256 of every file of the bundle but the manifest, by its path below the folder."""
        files: dict[str, str] = {}
        for artifact in self.artifacts:
            files[artifact.name] = artifact.digest
            for golden in artifact.golden:
                files |= golden.digests
        if self.diagnosis is not None:
            files[DIAGNOSIS] = self.diagnosis
        return files


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle on disk, whole and unaltered when it was read.

    Attributes:
        folder: Where it is.
        manifest: What it says about itself.
        digest: sha256 of the manifest's file, and through it of every other file.
    """

    folder: Path
    manifest: Manifest
    digest: str

    def artifact(self, name: str) -> Artifact:
        """The artifact of that name.

        Raises:
            BundleError: There is none.
        """
        for artifact in self.manifest.artifacts:
            if artifact.name == name:
                return artifact
        names = ", ".join(artifact.name for artifact in self.manifest.artifacts)
        raise BundleError(f"the bundle has no artifact {name}", where=str(self.folder), got=names)

    def read(self, file: str) -> bytes:
        """The bytes of one of its files, checked against the manifest.

        Args:
            file: Path below the folder, as the manifest spells it.

        Raises:
            BundleError: The file is missing, was altered, or is none of the bundle's.
        """
        return _read_checked(self.folder, file, self.manifest.digests().get(file))


class Pushed(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle on a device.

    Attributes:
        host: The device.
        folder: Where the bundle is there.
        bundle_digest: sha256 of its manifest.
        agent_digest: sha256 of the agent there.
    """

    host: str
    folder: str
    bundle_digest: str
    agent_digest: str


def check_bundle_folder(folder: Path) -> None:
    """Makes sure, before any work, that a bundle could be written there; another disk may still fill up.

    Raises:
        BundleError: `folder` holds something that is no bundle.
        OutputError: It is, or lies in, something that is no folder or may not be written to.
    """
    _refuse_foreign(folder.absolute())
    check_writable(folder.absolute())


def check_writable(folder: Path) -> None:
    """Makes sure that files could be written below a folder, which need not exist yet.

    Raises:
        OutputError: They could not.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return
    raise OutputError(
        "nothing can be written there",
        where=str(folder),
        got=f"{there} is {_why_closed(there)}",
        remedy="name a folder that you may write to",
    )


def _why_closed(there: Path) -> str:
    if not there.is_dir():
        return "a file"
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        return "on a read-only file system"
    return "a folder that you may not write to"


def write_bundle(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Writes a bundle whole or not at all: it is built beside `folder`, then renamed.

    An older bundle in the same place is replaced; anything else there is left alone.

    Args:
        folder: Where it shall stand.
        manifest: With the digests of `files`, as `edgepipe.golden.seal` makes its artifacts.
        files: Every file that the manifest names, by its path below the folder.

    Raises:
        BundleError: `folder` holds something that is no bundle.
        OutputError: The files cannot be written.
        ValueError: `files` are not those of the manifest, or two artifacts have one name: mistakes of
            the caller.
    """
    if len({artifact.name for artifact in manifest.artifacts}) != len(manifest.artifacts):
        raise ValueError("two artifacts have the same name")
    if {name: digest_bytes(data) for name, data in files.items()} != manifest.digests():
        raise ValueError("the files are not those that the manifest names")
    encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    folder = folder.absolute()
    _refuse_foreign(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _beside(folder) as fresh:
            for name, data in {**files, MANIFEST: encoded}.items():
                path = fresh / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            _swap(fresh, folder)
    except OSError as error:
        raise OutputError(
            "the bundle cannot be written",
            where=str(folder),
            got=error.strerror or str(error),
            remedy="free some space, or name a folder that you may write to",
        ) from error
    return Bundle(folder=folder, manifest=manifest, digest=digest_bytes(encoded))


def read_bundle(folder: Path) -> Bundle:
    """Reads a bundle and checks every file against its digest.

    Raises:
        BundleError: There is no bundle, it is of a newer form, or a file is missing or was altered.
    """
    manifest, digest = _read_manifest(folder)
    for name, expected in manifest.digests().items():
        _read_checked(folder, name, expected)
    return Bundle(folder=folder.absolute(), manifest=manifest, digest=digest)


def read_manifest(folder: Path) -> Manifest:
    """Reads what a bundle says of itself, and none of the other files.

    Raises:
        BundleError: There is no bundle, it is of a newer form, or its manifest is malformed.
    """
    return _read_manifest(folder)[0]


def _read_manifest(folder: Path) -> tuple[Manifest, str]:
    where = str(folder / MANIFEST)
    try:
        encoded = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(
            "the folder is no bundle",
            where=str(folder),
            got=f"{MANIFEST}: {error.strerror}",
            remedy="make one with `edgepipe compress MODEL --target T -o FOLDER`",
        ) from error
    try:
        schema = _schema_of(json.loads(encoded))
        if schema > SCHEMA:
            raise BundleError(
                "the bundle was made by a newer edgepipe",
                where=where,
                got=f"schema {schema}, this edgepipe knows {SCHEMA}",
                remedy="upgrade edgepipe, or make the bundle again",
            )
        return msgspec.json.decode(encoded, type=Manifest), digest_bytes(encoded)
    except (ValueError, msgspec.ValidationError) as error:
        raise BundleError(
            "the bundle's manifest is malformed",
            where=where,
            got=str(error),
            remedy="make the bundle again",
        ) from error


def _schema_of(record: Any) -> int:
    schema = record.get("schema") if isinstance(record, dict) else None
    if not isinstance(schema, int):
        raise ValueError("it does not say of which schema it is")  # noqa: TRY004  malformed, not mistyped
    return schema


def _read_checked(folder: Path, name: str, expected: str | None) -> bytes:
    remedy = "make the bundle again; its files belong together"
    where = str(folder / name)
    path = PurePosixPath(name)
    if expected is None or path.is_absolute() or ".." in path.parts:
        raise BundleError("that is no file of the bundle", where=where, remedy=remedy)
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise BundleError(
            "a file of the bundle is missing", where=where, got=error.strerror or "", remedy=remedy
        ) from error
    found = digest_bytes(data)
    if found != expected:
        raise BundleError(
            "a file of the bundle was altered",
            where=where,
            got=f"sha256 {found[:12]}…, the manifest says {expected[:12]}…",
            remedy=remedy,
        )
    return data


def _refuse_foreign(folder: Path) -> None:
    """Replacing a bundle removes its folder, so every file in there must be the bundle's own."""
    if not folder.exists() and not folder.is_symlink():
        return
    remedy = "name another folder with -o"
    if not folder.is_dir() or folder.is_symlink():
        raise BundleError("that is no folder of its own", where=str(folder), remedy=remedy)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if not found:
        return
    own = {MANIFEST, *_read_manifest(folder)[0].digests()} if MANIFEST in found else set()
    if found - own:
        foreign = ", ".join(sorted(found - own)[:3])
        raise BundleError("the folder holds other files", where=str(folder), got=foreign, remedy=remedy)


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A fresh folder beside `folder`; whatever is still there afterwards is removed."""
    fresh = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    fresh.mkdir()
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _swap(fresh: Path, folder: Path) -> None:
    """Puts `fresh` in the place of `folder`; a failure in between puts the old one back."""
    if not folder.exists():
        fresh.rename(folder)
        return
    old = folder.with_name(f"{fresh.name}.old")
    folder.rename(old)
    try:
        fresh.rename(folder)
    except BaseException:
        old.replace(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
