"""The device as the readers see it: a file tree and a way to run commands, both exchangeable in tests."""

import glob
import os
import subprocess
from typing import Callable, List, NamedTuple, Optional, Sequence

Runner = Callable[[Sequence[str]], str]


def run_command(argv: Sequence[str]) -> str:
    """Gives what a command prints, or "" where it is missing, fails or takes over five seconds."""
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


class Machine(NamedTuple):
    """Where to read from.

    Attributes:
        root: Root of the file tree: "/" on a device, a recorded tree in tests.
        run: Runs a command and gives its standard output.
    """

    root: str = "/"
    run: Runner = run_command

    def path(self, absolute: str) -> str:
        """The path of a file below the root: "/proc/meminfo" as one names it on the device."""
        return os.path.join(self.root, absolute.lstrip("/"))

    def text(self, absolute: str) -> str:
        """Contents of a file, stripped of white space and NUL; "" where it cannot be read."""
        try:
            with open(self.path(absolute), "rb") as file:
                return file.read().decode("utf-8", "replace").replace("\0", "").strip()
        except OSError:
            return ""

    def integer(self, absolute: str) -> Optional[int]:
        """The integer that a file holds, None where it holds none."""
        try:
            return int(self.text(absolute))
        except ValueError:
            return None

    def glob(self, pattern: str) -> List[str]:
        """Paths that match, as absolute names on the device, sorted; numbers count as numbers."""
        prefix = self.root.rstrip("/")
        found = glob.glob(self.path(pattern))
        return sorted((path[len(prefix) :] for path in found), key=_natural)

    def exists(self, absolute: str) -> bool:
        """Whether there is a file or folder of that name."""
        return os.path.exists(self.path(absolute))


def _natural(path: str) -> List[object]:
    parts: List[object] = []
    digits = ""
    for char in path + "/":
        if char.isdigit():
            digits += char
            continue
        if digits:
            parts.append((0, int(digits), ""))
            digits = ""
        parts.append((1, 0, char))
    return parts
