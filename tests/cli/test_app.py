"""The command line as a whole: its commands, their help, and that the examples they give are real."""

import json
import re
import shlex

import pytest
import typer.main

import edgepipe
from edgepipe.cli.app import app, main

COMMANDS = {
    *(
        "bench",
        "compress",
        "convert",
        "demo",
        "deploy",
        "evaluate",
        "explain",
        "init",
        "outputs",
        "probe",
        "push",
        "report",
        "reproduce",
    ),
    *("emulator down", "emulator list", "emulator shell", "emulator up"),
    *("passes list", "passes show", "recipes list", "recipes show", "targets list", "targets show"),
    *("runs compare", "runs export", "runs import", "runs list", "runs show"),
}


def commands(group, prefix=""):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} ")
        else:
            yield f"{prefix}{name}", command


FOUND = dict(commands(typer.main.get_command(app)))


def test_the_commands_are_those_that_scripts_rely_on():
    assert FOUND.keys() == COMMANDS


@pytest.mark.parametrize("name", FOUND)
def test_a_command_says_what_it_does_with_an_example(name):
    command = FOUND[name]
    assert command.help
    assert "Example" in command.epilog
    assert all(parameter.help for parameter in command.params if parameter.name != "help")


@pytest.mark.parametrize("name", sorted(FOUND.keys() - {"emulator shell"}))  # that hands the terminal over
def test_every_command_prints_json_too(name):
    assert any("--json" in parameter.opts for parameter in FOUND[name].params)


EXAMPLES = [
    (name, example)
    for name, command in FOUND.items()
    for example in re.findall("`(edgepipe [^`]+)`", command.epilog)
]


@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=[example for _, example in EXAMPLES])
def test_an_example_is_a_command_that_can_be_typed(name, example):
    words = shlex.split(example)[1 + len(name.split()) :]
    assert shlex.split(example)[1 : 1 + len(name.split())] == name.split()
    command = FOUND[name]
    context = command.make_context(name, words)  # an option or a number of arguments that is wrong raises
    assert context.params.keys() == {
        parameter.name for parameter in command.params if parameter.name != "help"
    }


def ended(*argv):
    with pytest.raises(SystemExit) as end:
        main(list(argv))
    return end.value.code or 0


def test_the_version(capsys):
    assert ended("--version") == 0
    assert capsys.readouterr().out == f"edgepipe {edgepipe.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (("deploy", "--bogus"), "--bogus"),
        (("deploy", "--duration", "x"), "--duration"),
        (("convert",), "model"),
        (("nope",), "nope"),
    ],
)
def test_wrong_arguments_are_an_error_for_programs_too(capsys, argv, what):
    assert ended(*argv, "--json") == 2
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert (error["error"], error["exit_code"], shown.err) == ("UsageError", 2, "")
    assert what in error["what"]
    assert ended(*argv) == 2
    assert what in capsys.readouterr().err


def test_the_end_of_json_is_that_of_tables(capsys):
    assert ended("targets", "list", "--json") == 0
    assert ended("deploy", "--help", "--json") == 0


def test_ctrl_c_is_told_to_programs_too(capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("edgepipe.target.list_targets", interrupted)
    assert ended("targets", "list", "--json") == 130
    assert json.loads(capsys.readouterr().out)["error"]["error"] == "Interrupted"


@pytest.mark.parametrize("argv", [("--help",), ("deploy", "-h"), ("runs", "--help")])
def test_help_is_no_error(capsys, argv):
    assert ended(*argv) == 0
    assert "Usage" in capsys.readouterr().out


def test_debug_goes_anywhere(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argv in (("--debug", "runs", "show"), ("runs", "--debug", "show"), ("runs", "show", "--debug")):
        assert ended(*argv) == 33
        assert "Traceback" in capsys.readouterr().err


def test_a_mistake_of_edgepipe_itself_shows_its_traceback_to_who_asks(monkeypatch, capsys):
    def broken(*arguments, **options):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("edgepipe.target.list_targets", broken)
    assert ended("targets", "list") == 70
    told = capsys.readouterr().err
    assert "ZeroDivisionError: by nothing" in told
    assert "--debug" in told
    assert "Traceback" not in told
    assert ended("targets", "list", "--debug") == 70
    assert "in broken" in capsys.readouterr().err
