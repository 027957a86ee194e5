"""The container engine of this machine: Docker or Podman, by the command line that both share."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgepipe.errors import EmulatorFailed, EngineMissing

ENGINES = ("docker", "podman")
VARIABLE = "EDGEPIPE_ENGINE"
"""Names the engine to take where both are installed, or where its program is not on PATH."""

_ANSWER_TIMEOUT_S = 30.0
_TAIL_LINES = 12
NATIVE = "or take this machine's own processor for the device: --emulator native"


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """A container engine that answers.

    Attributes:
        program: What to start.
        kind: Whose command line it is.
        version: Of the part that runs the containers.
        cpus: Cores that containers can have.
        memory_bytes: Memory that containers can have.
        rootless: Whether it runs without root.
    """

    program: str
    kind: Literal["docker", "podman"]
    version: str
    cpus: int
    memory_bytes: int
    rootless: bool

    def run(self, *arguments: str, timeout_s: float = 60.0) -> str:
        """Runs a command of the engine and gives what it prints.

        Raises:
            EmulatorFailed: It fails, or does not end in time.
        """
        done = self.attempt(*arguments, timeout_s=timeout_s)
        if done.returncode != 0:
            raise EmulatorFailed(
                f"{self.kind} {arguments[0]} failed",
                where=f"{self.program} {' '.join(arguments[:2])} ...",
                got=last_lines(done.stdout + done.stderr) or f"exit status {done.returncode}",
                remedy=_remedy(done.stderr),
            )
        return done.stdout

    def attempt(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Runs a command that may fail.

        Raises:
            EmulatorFailed: It does not end in time, or cannot be started.
        """
        try:
            return _start(self.program, arguments, timeout_s)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EmulatorFailed(
                f"{self.kind} {arguments[0]} did not end",
                where=self.program,
                got=str(error).partition("' ")[2] or str(error),
                remedy="see whether the engine is busy, then try again",
            ) from error

    def inspect(self, *names: str, kind: Literal["container", "image"]) -> list[dict[str, Any]]:
        """What the engine knows of containers or images; nothing of those that are not there."""
        done = self.attempt(kind, "inspect", *names)
        found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
        return found


def find_engine() -> Engine:
    """The engine to use: the one that EDGEPIPE_ENGINE names, else Docker, else Podman.

    Raises:
        EngineMissing: None is installed, or none answers.
    """
    named = os.environ.get(VARIABLE)
    programs = [path for name in ([named] if named else ENGINES) if (path := shutil.which(name))]
    if not programs:
        raise EngineMissing(
            "no container engine is installed",
            where=f"{VARIABLE}={named}" if named else "PATH",
            got=f"neither {' nor '.join(ENGINES)}" if not named else "no such program",
            remedy=f"{install_command()}; {NATIVE}",
        )
    complaints = []
    for program in programs:
        answer = _ask(program)
        if isinstance(answer, Engine):
            return answer
        complaints.append((program, answer))
    program, complaint = complaints[0]
    raise EngineMissing(
        "the container engine does not answer",
        where=program,
        got=last_lines(complaint),
        remedy=f"{_start_command(complaint)}; {NATIVE}",
    )


def install_command() -> str:
    """What to type to get an engine that runs other architectures, on this system."""
    if sys.platform == "darwin":
        return "brew install --cask docker-desktop, and start Docker Desktop"
    try:
        release = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        release = ""
    if "fedora" in release:
        return "sudo dnf install podman qemu-user-static"
    if "debian" in release:
        return "sudo apt-get install docker.io qemu-user-static"
    return "install Docker (https://docs.docker.com/engine/install/) or Podman, and qemu-user-static"


def last_lines(text: str) -> str:
    """The end of what a program said, for a message."""
    return "\n".join(text.strip().splitlines()[-_TAIL_LINES:])


def _ask(program: str) -> Engine | str:
    """The engine behind a program, or its complaint."""
    try:
        done = _start(program, ("info", "--format", "{{json .}}"), _ANSWER_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    try:
        told = json.loads(done.stdout)
    except ValueError:
        return done.stderr or done.stdout or f"exit status {done.returncode}"
    if "host" in told:  # Podman, under whatever name
        host = told["host"]
        return Engine(
            program=program,
            kind="podman",
            version=told["version"]["Version"],
            cpus=host["cpus"],
            memory_bytes=host["memTotal"],
            rootless=host["security"]["rootless"],
        )
    if done.returncode or not told.get("ServerVersion"):
        return "\n".join(told.get("ServerErrors") or [done.stderr])
    return Engine(
        program=program,
        kind="docker",
        version=told["ServerVersion"],
        cpus=told["NCPU"],
        memory_bytes=told["MemTotal"],
        rootless=any("rootless" in option for option in told.get("SecurityOptions") or []),
    )


def _start(program: str, arguments: tuple[str, ...], timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )


def _start_command(complaint: str) -> str:
    if "permission denied" in complaint.lower():
        return "allow yourself to use it: sudo usermod -aG docker $USER, then log in anew"
    if sys.platform == "darwin":
        return "start Docker Desktop"
    return "start it: sudo systemctl start docker"


def _remedy(complaint: str) -> str:
    if "exec format error" in complaint.lower():
        return (
            "let the kernel run programs of the device's architecture: sudo apt-get install qemu-user-static "
            "binfmt-support, or docker run --privileged --rm tonistiigi/binfmt --install all"
        )
    return "see what it says; docs/emulator.md lists what an engine must be able to do"
