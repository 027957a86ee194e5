"""Runs on disk: one folder each, whose run.json is the truth, and an index that can be rebuilt.

::

    runs/
      20261122T143821Z-digits-x86-1a2b/run.json    what was done, to what, where, and what came out
      index.sqlite                                 a summary of each, to list many quickly
"""

from __future__ import annotations

import contextlib
import difflib
import re
import secrets
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from edgepipe.bundle import Artifact, Calibration, Step
from edgepipe.errors import RunNotFound
from edgepipe.evaluate import Estimate, Evaluation
from edgepipe.files import from_json, to_json, write_whole
from edgepipe.measure import Kind, Measurement, Verification, latency_of, verdict_of
from edgepipe.provenance import Environment, Origin
from edgepipe.quantize.explain.diagnosis import Diagnosis
from edgepipe.sources.source import Fidelity

SCHEMA = 1
RECORD = "run.json"
INDEX = "index.sqlite"
_INDEX_VERSION = 1  # to be raised whenever summaries are made in another way


class DataUse(msgspec.Struct, frozen=True, kw_only=True):
    """The samples that a run was evaluated on; fields as in `edgepipe.data.Dataset`."""

    source: str
    digest: str
    samples: int
    random: bool


class ArtifactResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came out for one artifact.

    Attributes:
        artifact: Its record in the bundle.
        evaluation: On the host; None without data.
        verification: On the device; None where it was not asked.
        measurement: On the device; None where it was not measured.
        skipped: Why it was not measured; "" where it was.
    """

    artifact: Artifact
    evaluation: Evaluation | None = None
    verification: Verification | None = None
    measurement: Measurement | None = None
    skipped: str = ""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One job from the model to the figures: enough to explain each of them, and to do it again.

    Attributes:
        schema: Version of this record's form.
        id: Name of its folder: `new_run_id`.
        created: When it began, UTC, ISO 8601.
        edgepipe_version: What made it.
        command: What the user typed; "" where a program called. Holds no secret.
        model_name: Name of the source model.
        model_source: Where it came from, as the user named it.
        model_digest: sha256 of the float ONNX model that all artifacts derive from.
        source_fidelity: How close that float model is to its source, as the source's reader checked it.
        target: Name of the target.
        recipe: Name of the recipe.
        seed: Seed of everything random.
        bundle_digest: sha256 of the bundle's manifest.
        steps: What each pass did.
        calibration: The samples that ranges were taken from; None where the recipe needs none.
        data: The samples evaluated on; None where there were none.
        host: Where the device is: "nvidia@10.0.0.7", "embedded"; never a secret.
        kind: Whether that is a real board.
        device: What the device said of itself: `device_agent.protocol.Facts` as plain JSON.
        agent_digest: sha256 of the agent that measured.
        versions: Version of every package that had a hand in it.
        reference: The float model evaluated on the same samples.
        results: One for each artifact.
        agreement: Top-1 agreement of quantized artifacts with one another, by "a = b".
        diagnosis: What quantization did to each layer; None where nothing was quantized, or in old runs.
        origin: What the job was given; None where a bundle was measured that was there already.
        environment: Where the bundle was made; None likewise.
    """

    schema: int = SCHEMA
    id: str
    created: str
    edgepipe_version: str
    command: str
    model_name: str
    model_source: str
    model_digest: str
    source_fidelity: Fidelity | None = None
    target: str
    recipe: str
    seed: int
    bundle_digest: str
    steps: tuple[Step, ...] = ()
    calibration: Calibration | None = None
    data: DataUse | None = None
    host: str
    kind: Kind
    device: dict[str, object] = {}
    agent_digest: str = ""
    versions: dict[str, str] = {}
    reference: Evaluation | None = None
    results: tuple[ArtifactResult, ...] = ()
    agreement: dict[str, Estimate] = {}
    diagnosis: Diagnosis | None = None
    origin: Origin | None = None
    environment: Environment | None = None

    @property
    def device_name(self) -> str:
        """The board as it calls itself, its processor where it has no name, or the host."""
        cpu = self.device.get("cpu")
        model = cpu.get("model") if isinstance(cpu, dict) else ""
        return str(self.device.get("board") or model or self.host)


class ResultSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact of a run in short; figures are None where there are none."""

    name: str
    size_bytes: int
    accuracy: float | None
    agreement: float | None
    median_ns: float | None
    verdict: str


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A run in short, as the index keeps it.

    Attributes:
        id: Its id.
        created: When it began, UTC, ISO 8601.
        model_name: Name of the source model.
        target: Name of the target.
        host: Where the device is.
        kind: Whether that is a real board.
        results: One for each artifact.
        problem: Why the record cannot be read; "" if it can.
    """

    id: str
    created: str = ""
    model_name: str = ""
    target: str = ""
    host: str = ""
    kind: Kind = "board"
    results: tuple[ResultSummary, ...] = ()
    problem: str = ""


def new_run_id(model_name: str, target: str, created: datetime) -> str:
    """An id that sorts by time and is safe as the name of a folder: ``20261122T143821Z-digits-x86-1a2b``."""
    stamp = created.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    parts = (re.sub(r"[^A-Za-z0-9_.]+", "-", part).strip("-.")[:40] for part in (model_name, target))
    return "-".join([stamp, *filter(None, parts), secrets.token_hex(2)])


def save_run(store: Path, run: Run) -> Path:
    """Writes a run's record, whole or not at all, and returns its folder.

    Raises:
        OutputError: The record cannot be written.
    """
    folder = store / run.id
    write_whole(
        folder / RECORD,
        to_json(run),
        what="the run cannot be written",
        remedy="free some space, or name another folder with --store",
    )
    return folder


def load_run(store: Path, name: str) -> Run:
    """Reads one run.

    Args:
        store: Folder of the runs.
        name: A run's id, the first letters of one alone, or "last".

    Raises:
        RunNotFound: No run, or more than one, is called so, or its record cannot be read.
    """
    return _read(store / _resolve(store, name) / RECORD)


def list_runs(store: Path) -> list[RunSummary]:
    """Every run in short, the newest first. A missing folder holds no runs.

    The index is brought up to date on the way: rows of changed records are made again, and an index
    that is missing or corrupt is rebuilt. Where it cannot be written, the records alone serve.
    """
    if not store.is_dir():
        return []
    try:
        summaries = _indexed(store, store / INDEX)
    except sqlite3.Error:
        with contextlib.suppress(OSError):
            (store / INDEX).unlink(missing_ok=True)
        try:
            summaries = _indexed(store, store / INDEX)
        except sqlite3.Error:
            summaries = _indexed(store, ":memory:")
    return sorted(summaries, key=lambda run: (run.created, run.id), reverse=True)


def summarize(run: Run) -> RunSummary:
    """A run in short."""
    return RunSummary(
        id=run.id,
        created=run.created,
        model_name=run.model_name,
        target=run.target,
        host=run.host,
        kind=run.kind,
        results=tuple(map(_summarize_result, run.results)),
    )


def _summarize_result(result: ArtifactResult) -> ResultSummary:
    comparison = result.evaluation.comparison if result.evaluation else None
    latency = latency_of(result.measurement) if result.measurement else None
    return ResultSummary(
        name=result.artifact.name,
        size_bytes=result.artifact.size_bytes,
        accuracy=comparison.accuracy.value if comparison and comparison.accuracy else None,
        agreement=comparison.agreement.value if comparison else None,
        median_ns=latency.median_ns.value if latency and latency.median_ns else None,
        verdict=verdict_of(result.measurement, latency).state if result.measurement else "",
    )


def _resolve(store: Path, name: str) -> str:
    if name == "last":
        readable = [run.id for run in list_runs(store) if not run.problem]
        if readable:
            return readable[0]
    ids = sorted(path.parent.name for path in _records(store))
    found = [name] if name in ids else [each for each in ids if name and each.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RunNotFound(
            f"several runs begin with {name}",
            where=str(store),
            got=", ".join(found[-3:]),
            remedy="give more letters of the id",
        )
    if not ids:
        raise RunNotFound("there is no run yet", where=str(store), remedy="make one with `edgepipe deploy`")
    raise RunNotFound(
        f"there is no run {name}" if name else "the name of a run is empty",
        where=str(store),
        got=f"near it: {', '.join(difflib.get_close_matches(name, ids, n=3, cutoff=0.4) or ids[-3:])}",
        remedy="see `edgepipe runs list`",
    )


def _read(path: Path) -> Run:
    try:
        return from_json(path.read_bytes(), Run, SCHEMA, what="the run", where=str(path), error=RunNotFound)
    except (OSError, msgspec.DecodeError) as error:
        raise RunNotFound(
            "the run's record cannot be read",
            where=str(path),
            got=str(error),
            remedy="restore the file, or remove the run's folder",
        ) from error


def _records(store: Path) -> Iterator[Path]:
    return store.glob(f"*/{RECORD}")


def _indexed(store: Path, database: Path | str) -> list[RunSummary]:
    """Summaries of all records, through an index in `database` that is brought up to date."""
    with contextlib.closing(sqlite3.connect(database, timeout=5)) as index, index:
        if index.execute("PRAGMA user_version").fetchone()[0] != _INDEX_VERSION:
            index.execute("DROP TABLE IF EXISTS runs")
            index.execute(
                "CREATE TABLE runs (id TEXT PRIMARY KEY, stamp TEXT NOT NULL, summary BLOB NOT NULL)"
            )
            index.execute(f"PRAGMA user_version = {_INDEX_VERSION}")
        known = {row[0]: row[1:] for row in index.execute("SELECT id, stamp, summary FROM runs")}
        found: list[RunSummary] = []
        for path in _records(store):
            summary = _known(known.pop(path.parent.name, None), stamp := _stamp(path))
            if summary is None:
                summary = _summary_of(path)
                row = (path.parent.name, stamp, msgspec.json.encode(summary))
                index.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", row)
            found.append(summary)
        index.executemany("DELETE FROM runs WHERE id = ?", [(gone,) for gone in known])
    return found


def _known(row: tuple[str, bytes] | None, stamp: str) -> RunSummary | None:
    if row is None or row[0] != stamp:
        return None
    try:
        return msgspec.json.decode(row[1], type=RunSummary)
    except msgspec.DecodeError:
        return None


def _stamp(path: Path) -> str:
    """Changes whenever the file does."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_mtime_ns}:{status.st_size}:{status.st_ino}"


def _summary_of(path: Path) -> RunSummary:
    try:
        return summarize(_read(path))
    except RunNotFound as error:
        return RunSummary(id=path.parent.name, problem=f"{error.what}: {error.got}")
