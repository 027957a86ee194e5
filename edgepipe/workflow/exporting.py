"""A run as one file that anyone can check: written here, and read again.

An export is a zip file::

    export.json         sha256 of every other file in it, and what is left out
    run.json            the run's record: inputs, seed, versions, raw samples
    recipe.toml         the recipe, every setting written out
    environment.txt     the packages that took part, as pip takes them
    bundle/...          the artifacts, their golden samples and the manifest
    model/ weights/ data/    where they were asked for

Nothing is compressed and every time is the same, so that one run gives the same bytes everywhere.
"""

from __future__ import annotations

import io
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import msgspec

from edgepipe.bundle import MANIFEST, Bundle, read_bundle
from edgepipe.errors import (
    BundleError,
    DataNotFound,
    EdgepipeError,
    ModelNotFound,
    OutputError,
    RunNotFound,
    UsageError,
)
from edgepipe.events import Emit, silent, stage
from edgepipe.files import from_json, to_json, write_whole
from edgepipe.model import digest_bytes
from edgepipe.provenance import Contents, Exported, LeftOut, Origin
from edgepipe.provenance.exported import SCHEMA
from edgepipe.store import RECORD, Run, load_run, save_run
from edgepipe.units import format_bytes
from edgepipe.workflow.origin import model_path

SUFFIX = ".zip"
CONTENTS = "export.json"
RECIPE = "recipe.toml"
ENVIRONMENT = "environment.txt"
BUNDLE = "bundle"
_EARLIEST = (1980, 1, 1, 0, 0, 0)
_RUN_ID = re.compile(r"\w[\w.-]*", re.ASCII)
_REMEDY = "export the run again, or get the file again from where it was published"


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A run with its bundle, and those inputs that came with it.

    Attributes:
        run: The record.
        bundle: What it measured.
        inputs: Path of each input that an export holds: "model", "weights", "data".
    """

    run: Run
    bundle: Bundle
    inputs: dict[str, Path] = {}


def export_run(
    store: Path,
    name: str,
    output: Path,
    *,
    bundle: Path | None = None,
    with_inputs: tuple[str, ...] = (),
    emit: Emit = silent,
) -> Exported:
    """Writes a run as one file.

    Args:
        store: Folder of the runs.
        name: The run: its id, the first letters of it, or "last".
        output: The file to write; its name ends in .zip.
        bundle: The run's bundle, where it is not in the run's folder.
        with_inputs: Which of "model" (with its weights) and "data" to put in. They are the user's, and
            left out unless asked for.
        emit: Where progress goes.

    Raises:
        RunNotFound: There is no such run.
        BundleError: Its bundle is missing or was altered.
        ModelNotFound: The model to be put in is not where it was, or another one is there now.
        DataNotFound: Likewise of the data.
        OutputError: The file cannot be written.
        UsageError: The file's name has another ending.
    """
    if output.suffix != SUFFIX:
        raise UsageError(
            "an export is a zip file", where="--output", got=str(output), remedy=f"end its name in {SUFFIX}"
        )
    with stage(emit, "export") as exporting, open_published(name, store, bundle) as published:
        run, origin = published.run, published.run.origin
        files = {RECORD: to_json(run), **_files_of(published.bundle)}
        if origin is not None:
            files[RECIPE] = origin.recipe.encode()
        if run.environment is not None:
            files[ENVIRONMENT] = run.environment.lock().encode()
        left_out = []
        for one in inputs_of(run.origin) if origin is not None else ():
            if one.what in with_inputs or (one.what == "weights" and "model" in with_inputs):
                files |= _read_input(one)
            else:
                left_out.append(one)
        contents = Contents(
            run=run.id,
            files={path: digest_bytes(data) for path, data in sorted(files.items())},
            left_out=tuple(left_out),
        )
        data = _zip({CONTENTS: to_json(contents), **files})
        write_whole(output, data, "the export cannot be written")
        exporting.detail = f"{len(files)} files, {format_bytes(len(data))}"
    return Exported(
        file=str(output),
        size_bytes=len(data),
        sha256=digest_bytes(data),
        run=run.id,
        left_out=tuple(left_out),
    )


def import_run(file: Path, store: Path, *, emit: Emit = silent) -> Run:
    """Puts an exported run, with its bundle, among the runs of a store.

    Raises:
        BundleError: The file is no export, or was altered.
        RunNotFound: Its record cannot be read.
        UsageError: The store has a run of that id already.
        OutputError: The store cannot be written.
    """
    with stage(emit, "import"), open_published(str(file), store) as published:
        run, bundle = published.run, published.bundle
        if (store / run.id).exists():
            raise UsageError(
                "the store has that run already", where=str(store / run.id), remedy="name another --store"
            )
        try:
            shutil.copytree(bundle.folder, store / run.id / BUNDLE)
            save_run(store, run)
        except OSError as error:
            raise OutputError(
                "the run cannot be written",
                where=str(store / run.id),
                got=error.strerror or str(error),
                remedy="free some space, or name another --store",
            ) from error
        finally:
            if not (store / run.id / RECORD).is_file():
                shutil.rmtree(store / run.id, ignore_errors=True)
    return run


@contextmanager
def open_published(subject: str, store: Path, bundle: Path | None = None) -> Iterator[Published]:
    """A run of a store by its name, or an exported one by its file; what is unpacked is removed afterwards.

    Raises:
        RunNotFound: There is no such run or file.
        BundleError: The run's bundle is not there, or is another one; or an export was altered.
    """
    if not subject.endswith(SUFFIX):
        run = load_run(store, subject)
        yield Published(run=run, bundle=_own_bundle(run, bundle or store / run.id / BUNDLE))
        return
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as work:
        folder = Path(work) / "export"
        contents = _unpack(Path(subject), folder)
        run = load_run(folder.parent, folder.name)
        if run.id != contents.run or not _RUN_ID.fullmatch(run.id):
            raise _altered(
                Path(subject), f"the run calls itself {run.id!r}, {CONTENTS} says {contents.run!r}"
            )
        inputs = {
            what: found
            for what in ("model", "weights", "data")
            for found in (folder / what).glob("*")  # one file or folder each
        }
        yield Published(run=run, bundle=_own_bundle(run, folder / BUNDLE), inputs=inputs)


def inputs_of(origin: Origin | None) -> tuple[LeftOut, ...]:
    """The files that a job was given."""
    if origin is None:
        return ()
    named = (
        ("model", str(model_path(origin.model)), origin.model_sha256),
        ("weights", origin.weights, origin.weights_sha256),
        ("data", origin.data, origin.data_sha256),
    )
    return tuple(
        LeftOut(what=what, name=name, sha256=digest) for what, name, digest in named if name is not None
    )


def _own_bundle(run: Run, folder: Path) -> Bundle:
    if not (folder / MANIFEST).is_file():
        raise BundleError(
            "the run's bundle is not there",
            where=str(folder),
            got=f"no {MANIFEST}; its sha256 is {run.bundle_digest}",
            remedy="name its folder with --bundle",
        )
    bundle = read_bundle(folder)
    if bundle.digest != run.bundle_digest:
        raise BundleError(
            "that is not the bundle of the run",
            where=str(folder),
            got=f"sha256 {bundle.digest[:12]}…, the run says {run.bundle_digest[:12]}…",
            remedy="name the folder of the one that it measured with --bundle",
        )
    return bundle


def _files_of(bundle: Bundle) -> dict[str, bytes]:
    files = {f"{BUNDLE}/{path}": bundle.read(path) for path in bundle.manifest.digests()}
    files[f"{BUNDLE}/{MANIFEST}"] = (bundle.folder / MANIFEST).read_bytes()
    return files


def _read_input(one: LeftOut) -> dict[str, bytes]:
    path = Path(one.name)
    remedy = "export without it, or put it back where it was"
    kind: type[EdgepipeError] = DataNotFound if one.what == "data" else ModelNotFound
    if path.is_file():
        data = path.read_bytes()
        if one.sha256 is not None and digest_bytes(data) != one.sha256:
            raise kind(
                f"the {one.what} is not the one that the run was made with",
                where=one.name,
                got=f"sha256 {digest_bytes(data)[:12]}…, the run says {one.sha256[:12]}…",
                remedy=remedy,
            )
        return {f"{one.what}/{path.name}": data}
    if not path.is_dir():
        raise kind(f"the {one.what} of the run is not there", where=one.name, remedy=remedy)
    return {
        f"{one.what}/{path.name}/{each.relative_to(path).as_posix()}": each.read_bytes()
        for each in sorted(path.rglob("*"))
        if each.is_file()
    }


def _zip(files: dict[str, bytes]) -> bytes:
    """One file, the same bytes for the same contents: stored, as compressed bytes depend on zlib's build."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path, data in sorted(files.items(), key=lambda item: (item[0] != CONTENTS, item[0])):
            entry = zipfile.ZipInfo(path, _EARLIEST)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, data)
    return buffer.getvalue()


def _unpack(file: Path, folder: Path) -> Contents:
    """Writes an export's files into a folder, each checked against its digest, and gives its contents."""
    if not file.is_file():
        raise RunNotFound("there is no such export", where=str(file), remedy="check the path")
    try:
        with zipfile.ZipFile(file) as archive:
            contents = _read_contents(archive, file)
            names = archive.namelist()
            if len(set(names)) != len(names) or {*names} != {CONTENTS, *contents.files}:
                odd = sorted({*names} ^ {CONTENTS, *contents.files})
                raise _altered(file, f"files that {CONTENTS} and the zip do not share: {', '.join(odd[:3])}")
            for name, digest in contents.files.items():
                data = archive.read(name)
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts or "\\" in name:
                    raise _altered(file, f"a path that leads out of it: {name}")
                if digest_bytes(data) != digest:
                    raise _altered(file, f"{name}: sha256 {digest_bytes(data)[:12]}…, not {digest[:12]}…")
                place = folder / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
            return contents
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise _altered(file, str(error)) from error


def _read_contents(archive: zipfile.ZipFile, file: Path) -> Contents:
    try:
        encoded = archive.read(CONTENTS)
        contents = from_json(encoded, Contents, SCHEMA, what="the export", where=str(file), error=BundleError)
    except (KeyError, msgspec.DecodeError) as error:
        raise BundleError(
            "the file is no exported run",
            where=str(file),
            got=f"{CONTENTS}: {error}",
            remedy="make one with `edgepipe runs export RUN -o run.zip`",
        ) from error
    if RECORD not in contents.files:
        raise _altered(file, f"it holds no {RECORD}")
    return contents


def _altered(file: Path, got: str) -> BundleError:
    return BundleError("the export was altered or is damaged", where=str(file), got=got, remedy=_REMEDY)
