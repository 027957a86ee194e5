"""What people see of errors and progress, and that what they named is shown as they wrote it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgepipe.cli.show import ProgressView, print_error, print_file, print_result
from edgepipe.errors import DataShapeMismatch, EdgepipeError, OutputError
from edgepipe.events import StageEnded, StageStarted, Warned, stage

ERROR = DataShapeMismatch("the shape is wrong", where="a[bold].npz", got="one\ntwo", remedy="transpose it")


def test_an_error_for_people(capsys):
    print_error(ERROR, as_json=False)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        "error: the shape is wrong\n"
        "  where: a[bold].npz\n"
        "    got: one\n"
        "         two\n"
        "     do: transpose it\n"
    )  # fmt: skip


def test_what_an_error_does_not_know_is_left_out(capsys):
    print_error(EdgepipeError("something"), as_json=False)
    assert capsys.readouterr().err == "error: something\n"


def test_long_lines_are_not_broken(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    print_error(EdgepipeError("x", remedy="a command that is to be copied " * 5), as_json=False)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_an_error_for_programs(capsys):
    print_error(ERROR, as_json=True)
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"error": ERROR.to_dict()}
    assert shown.err == ""


def test_a_result_for_programs(capsys):
    print_result("a table", {"b": (1, 2)}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"b": [1, 2]}


def test_stages_as_lines(capsys):
    with ProgressView() as emit, stage(emit, "calibrate [red]x", 2) as running:
        running.advance(1)
        running.detail = "[5] tensors"
    assert capsys.readouterr().err == "✓ calibrate [red]x 0.0 s  [5] tensors\n"


def test_warnings_are_shown_as_they_are(capsys):
    with ProgressView() as emit:
        emit(Warned("cannot read data[bold].npz", "see [dim]"))
        emit(Warned("short"))
    assert capsys.readouterr().err == "warning: cannot read data[bold].npz (see [dim])\nwarning: short\n"


def test_a_stage_that_an_error_cut_off_does_not_look_finished(capsys):
    with pytest.raises(ZeroDivisionError), ProgressView() as emit, stage(emit, "divide"):
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""


def test_a_stage_may_begin_again_after_an_error(capsys):
    with ProgressView() as emit:
        emit(StageStarted("load"))
        emit(StageStarted("load"))
        emit(StageEnded("load", "done"))
    assert capsys.readouterr().err == "✓ load 0.0 s  done\n"


def test_a_series_stands_on_one_line_for_programs_too(capsys):
    print_result("a table", {"latencies_ns": list(range(1000))}, as_json=True)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_file_for_people_and_for_programs(capsys):
    print_file(Path("a[bold]/" + "long" * 60), as_json=False)
    assert capsys.readouterr().out == "a[bold]/" + "long" * 60 + "\n"
    print_file(Path("r.html"), as_json=True)
    assert json.loads(capsys.readouterr().out) == {"file": "r.html"}


PRINTING = "from edgepipe.cli import main; main(['targets', 'list', *{!r}])"


def listing_targets(*options, stdout):
    command = [sys.executable, "-c", PRINTING.format(options)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=60)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_full_disk_under_stdout_is_one_error(options):
    with open("/dev/full", "w") as full:  # noqa: PTH123  a device
        ended = listing_targets(*options, stdout=full)
    assert ended.returncode == OutputError.exit_code
    assert ended.stderr.startswith("error: the result cannot be written\n  where: standard output\n")
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_reader_that_has_seen_enough_is_no_error(options):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = listing_targets(*options, stdout=writing)
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")
