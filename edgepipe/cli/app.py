"""The `edgepipe` program: its commands, and what becomes of errors and Ctrl-C."""

from __future__ import annotations

import shlex
import sys
import traceback
from typing import Annotated, Any

import typer

import edgepipe
from edgepipe.cli import bundles, catalogue, deploy, emulator, explain, outputs, reproduce, runs, start
from edgepipe.cli.show import print_error
from edgepipe.cli.signals import ending_in_order
from edgepipe.errors import EdgepipeError, InternalError, Interrupted, UsageError

EPILOG = """
**The main job**: `edgepipe deploy model.onnx --target raspberrypi5 --host pi@10.0.0.5 --data val.npz`

**No board at hand**: `edgepipe deploy model.onnx --target raspberrypi4 --emulate --data val.npz`

**Nothing at hand**: `edgepipe demo`

`--debug` goes anywhere and shows the traceback of an error. The exit code tells errors apart.
"""

app = typer.Typer(
    name="edgepipe",
    help="From a trained model to a measured INT8 artifact on an edge device, in one command.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (deploy, bundles, emulator, explain, outputs, reproduce, runs, catalogue, start):
    module.register(app)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"edgepipe {edgepipe.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command."""


# Click's UsageError, which Typer brings itself in newer versions.
_ParserError: type[Any] = typer.BadParameter.__mro__[1]


def _usage_error(mistake: Any) -> UsageError:
    """What the parser of arguments found, as one of edgepipe's own errors."""
    command = mistake.ctx.command_path if mistake.ctx else "edgepipe"
    return UsageError(mistake.format_message(), where=command, remedy=f"see `{command} --help`")


def _interrupted() -> Interrupted:
    return Interrupted("interrupted", remedy="run the same command again: finished work is kept")


def _internal_error(unexpected: Exception) -> InternalError:
    """An exception that no code expected, as an error: a traceback helps nobody who did not ask for it."""
    error = InternalError(
        "edgepipe itself failed",
        got=f"{type(unexpected).__name__}: {unexpected}",
        remedy="this is a bug: run the same command with --debug and report what it prints",
    )
    error.__cause__ = unexpected
    return error


def main(argv: list[str] | None = None) -> None:
    """Runs the command line and exits with the code of what happened.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Raises:
        SystemExit: Always: 0, or the `exit_code` of the error.
    """
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    as_json = "--json" in arguments
    try:
        # Typer knows --debug only before the command; people append it to the line that failed.
        with ending_in_order():
            code = app(
                args=[argument for argument in arguments if argument != "--debug"],
                prog_name="edgepipe",
                obj=shlex.join(["edgepipe", *arguments]),  # what a run records as its command
                # Else Typer shows its own errors, and Ctrl-C ends it without a word.
                standalone_mode=not as_json,
            )
    except (SystemExit, typer.Abort) as end:
        if isinstance(end, SystemExit) and end.code != Interrupted.exit_code:
            raise
        error: EdgepipeError = _interrupted()
    except _ParserError as mistake:
        error = _usage_error(mistake)
    except EdgepipeError as caught:
        error = caught
    except Exception as unexpected:  # noqa: BLE001  the last resort
        error = _internal_error(unexpected)
    else:
        if code != Interrupted.exit_code:
            raise SystemExit(code)
        error = _interrupted()
    if debug:
        traceback.print_exception(error)
    print_error(error, as_json=as_json)
    raise SystemExit(error.exit_code)
