import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.errors import OutputError, RunNotFound
from edgepipe.store import INDEX, RECORD, Run, list_runs, load_run, new_run_id, save_run

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def run(name, *, minutes=0, **changes):
    fields = {
        "id": name,
        "created": (NOON + timedelta(minutes=minutes)).isoformat(),
        "edgepipe_version": "0.1.0",
        "command": "edgepipe deploy",
        "model_name": "m",
        "model_source": "m.onnx",
        "model_digest": "0" * 64,
        "target": "x86",
        "recipe": "int8",
        "seed": 0,
        "bundle_digest": "1" * 64,
        "host": "pi@h",
        "kind": "board",
    }
    return Run(**{**fields, **changes})


@given(st.text(max_size=80), st.text(max_size=80), st.datetimes(timezones=st.just(UTC)))
def test_any_name_makes_a_safe_folder(model, target, created):
    found = new_run_id(model, target, created)
    assert Path(found).name == found
    assert not found.startswith((".", "-"))
    assert len(found) < 120
    assert found.isascii()
    assert not set(found) & set(' /\\:*?"<>|\n')


def test_ids_sort_by_time_in_any_zone():
    east = timezone(timedelta(hours=9))
    moments = [NOON, (NOON + timedelta(seconds=1)).astimezone(east), NOON + timedelta(days=400)]
    ids = [new_run_id(model, "x86", moment) for model, moment in zip("zya", moments, strict=True)]
    assert ids == sorted(ids)
    assert ids[0].startswith("20261122T120000Z-z-x86-")
    assert new_run_id("z", "x86", NOON) != new_run_id("z", "x86", NOON)


def test_a_run_is_read_as_it_was_written(tmp_path):
    kept = run("a", device={"board": "B", "cpu": {"model": "C"}}, versions={"onnx": "1"})
    assert save_run(tmp_path / "runs", kept) == tmp_path / "runs" / "a"
    assert load_run(tmp_path / "runs", "a") == kept
    assert [path.name for path in (tmp_path / "runs" / "a").iterdir()] == [RECORD]


def test_runs_are_found_by_prefix_and_by_last(tmp_path):
    for minutes, name in enumerate(["abc-1", "abd-2", "a"]):
        save_run(tmp_path, run(name, minutes=-minutes))
    assert load_run(tmp_path, "abc").id == "abc-1"
    assert load_run(tmp_path, "a").id == "a"  # a whole id is never ambiguous
    assert load_run(tmp_path, "last").id == "abc-1"  # by time, not by name


def test_what_is_not_found_is_told_with_what_is_near(tmp_path):
    with pytest.raises(RunNotFound, match="no run yet"):
        load_run(tmp_path / "none", "last")
    save_run(tmp_path, run("20261122T120000Z-net-x86-1a2b"))
    save_run(tmp_path, run("20261122T120000Z-net-x86-1a2c"))
    with pytest.raises(RunNotFound, match="several runs") as caught:
        load_run(tmp_path, "2026")
    assert "1a2b" in caught.value.got
    assert "1a2c" in caught.value.got
    with pytest.raises(RunNotFound, match="no run 20261122T120000Z-nit") as caught:
        load_run(tmp_path, "20261122T120000Z-nit-x86-1a2b")
    assert "20261122T120000Z-net-x86-1a2b" in caught.value.got
    with pytest.raises(RunNotFound, match="the name of a run is empty"):
        load_run(tmp_path, "")
    for name in ("../" + tmp_path.name, "*"):
        with pytest.raises(RunNotFound):
            load_run(tmp_path, name)


def test_the_list_has_the_newest_first(tmp_path):
    for minutes, name in ((1, "b"), (3, "a"), (2, "c")):
        save_run(tmp_path, run(name, minutes=minutes))
    assert [each.id for each in list_runs(tmp_path)] == ["a", "c", "b"]
    assert list_runs(tmp_path / "none") == []


def ids(store):
    return {each.id for each in list_runs(store)}


@pytest.mark.parametrize(
    "damage", ["deleted", "garbage", "truncated", "other tables", "bad rows", "old version"]
)
def test_the_index_is_rebuilt(tmp_path, damage):
    for name in "abc":
        save_run(tmp_path, run(name))
    expected = list_runs(tmp_path)
    index = tmp_path / INDEX
    if damage == "deleted":
        index.unlink()
    elif damage == "garbage":
        index.write_bytes(b"not a database at all" * 100)
    elif damage == "truncated":
        index.write_bytes(index.read_bytes()[:5000])
    else:
        with sqlite3.connect(index) as database:
            database.execute(
                {
                    "other tables": "ALTER TABLE runs RENAME TO walks",
                    "bad rows": "UPDATE runs SET summary = 'x'",
                    "old version": "PRAGMA user_version = 0",
                }[damage]
            )
        database.close()
    assert list_runs(tmp_path) == expected
    assert list_runs(tmp_path) == expected


def test_the_index_follows_the_records(tmp_path):
    import shutil

    save_run(tmp_path, run("a"))
    save_run(tmp_path, run("b"))
    assert ids(tmp_path) == {"a", "b"}
    shutil.rmtree(tmp_path / "a")
    save_run(tmp_path, run("c"))
    save_run(tmp_path, run("b", host="other@h"))
    assert {each.id: each.host for each in list_runs(tmp_path)} == {"b": "other@h", "c": "pi@h"}


def test_unchanged_records_are_not_read_again(tmp_path, monkeypatch):
    save_run(tmp_path, run("a"))
    list_runs(tmp_path)
    from edgepipe import store

    monkeypatch.setattr(store, "_read", lambda path: pytest.fail(f"read {path}"))
    assert ids(tmp_path) == {"a"}


def test_an_index_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    save_run(tmp_path, run("a"))
    (tmp_path / INDEX).mkdir()  # nothing can be opened there, nor unlinked
    assert ids(tmp_path) == {"a"}
    assert load_run(tmp_path, "last").id == "a"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 7}'])
def test_an_unreadable_record_is_listed_and_told(tmp_path, text):
    save_run(tmp_path, run("a"))
    save_run(tmp_path, run("b", minutes=5))
    (tmp_path / "b" / RECORD).write_text(text)
    assert {each.id: bool(each.problem) for each in list_runs(tmp_path)} == {"a": False, "b": True}
    with pytest.raises(RunNotFound) as caught:
        load_run(tmp_path, "b")
    assert caught.value.where == str(tmp_path / "b" / RECORD)
    assert caught.value.remedy
    assert load_run(tmp_path, "last").id == "a"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_cut_write_keeps_the_old_record(tmp_path, monkeypatch, error):
    save_run(tmp_path, run("a"))

    def cut(self, data):
        with self.open("wb") as file:
            file.write(data[:50])
        raise error

    monkeypatch.setattr(Path, "write_bytes", cut)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        save_run(tmp_path, run("a", host="new"))
    monkeypatch.undo()
    assert load_run(tmp_path, "a").host == "pi@h"
    assert [path.name for path in (tmp_path / "a").iterdir()] == [RECORD]


def test_a_store_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        save_run(tmp_path / "file", run("a"))
    assert "--store" in caught.value.remedy


def test_older_records_without_newer_fields_are_read(tmp_path):
    save_run(tmp_path, run("a"))
    path = tmp_path / "a" / RECORD
    fields = msgspec.json.decode(path.read_bytes())
    for optional in ("agreement", "source_fidelity", "reference"):
        fields.pop(optional)
    path.write_bytes(msgspec.json.encode(fields))
    assert load_run(tmp_path, "a") == run("a")


@pytest.mark.parametrize(
    ("device", "expected"),
    [({"board": "B", "cpu": {"model": "C"}}, "B"), ({"board": "", "cpu": {"model": "C"}}, "C"), ({}, "pi@h")],
)
def test_the_device_has_a_name(device, expected):
    assert run("a", device=device).device_name == expected
