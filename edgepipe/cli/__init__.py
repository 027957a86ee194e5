"""The command line: arguments, one workflow call, and what is shown of its result. No logic."""

from edgepipe.cli.app import main

__all__ = ["main"]
