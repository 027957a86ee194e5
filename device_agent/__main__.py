"""Entry of the agent: requests on standard input, events on standard output, a log on standard error."""

import argparse
import os
import sys
from typing import NoReturn, Optional, Sequence

if not __package__:  # started as a file: what is beside it must be found as a package
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main(arguments: Optional[Sequence[str]] = None) -> NoReturn:
    """Runs the agent, or with ``--child`` one measurement, and ends the process."""
    parser = argparse.ArgumentParser(prog="device_agent", description=__doc__)
    parser.add_argument("--root", default="~/.edgepipe", help="where relative paths start (%(default)s)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    out_fd = _claim_stdout()
    # ONNX Runtime from 1.29 on reports to its maker and leaves files, unless told so before its import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # Each side imports only what it needs: from a zip file, a small board compiles every module anew.
    if options.child:
        from device_agent.child import run_child

        run_child(out_fd)
    sys.exit(_serve(out_fd, os.path.abspath(os.path.expanduser(options.root))))


def _serve(out_fd: int, root: str) -> int:
    from device_agent.answers import serve
    from device_agent.host import Host, HostGone, raise_on_signals

    try:
        raise_on_signals()
        return serve(Host(0, out_fd), root)
    except HostGone as gone:
        return gone.status


def _claim_stdout() -> int:
    """Keeps standard output for events alone: whatever else is printed goes to standard error."""
    out_fd = os.dup(1)
    os.dup2(2, 1)
    return out_fd


if __name__ == "__main__":
    main()
