"""What people see of errors and progress, and that what they named is shown as they wrote it."""

import json

import pytest

from edgepipe.cli.show import ProgressView, print_error, print_result
from edgepipe.errors import DataShapeMismatch, EdgepipeError
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
