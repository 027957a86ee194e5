"""Entry of the agent: requests on standard input, events on standard output, a log on standard error."""

import argparse
import os
import sys
from typing import NoReturn, Optional, Sequence

if not __package__:  # started as a file: what is beside it must be found as a package
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from device_agent.answers import serve
from device_agent.child import run_child
from device_agent.host import Host, HostGone, raise_on_signals


def main(arguments: Optional[Sequence[str]] = None) -> NoReturn:
    """Runs the agent, or with ``--child`` one measurement, and ends the process."""
    parser = argparse.ArgumentParser(prog="device_agent", description=__doc__)
    parser.add_argument("--root", default="~/.edgepipe", help="where relative paths start (%(default)s)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    out_fd = _claim_stdout()
    if options.child:
        run_child(out_fd)
    root = os.path.abspath(os.path.expanduser(options.root))
    host = Host(0, out_fd)
    try:
        raise_on_signals()
        status = serve(host, root)
    except HostGone as gone:
        status = gone.status
    sys.exit(status)


def _claim_stdout() -> int:
    """Keeps standard output for events alone: whatever else is printed goes to standard error."""
    out_fd = os.dup(1)
    os.dup2(2, 1)
    return out_fd


if __name__ == "__main__":
    main()
