"""Emulated devices of this user: started, found again, taken down."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgepipe.emulator import access as ways
from edgepipe.emulator.access import USER, Access, access_to
from edgepipe.emulator.engine import Engine, find_engine, last_lines
from edgepipe.emulator.image import ensure_image, platform_of
from edgepipe.errors import EmulatorFailed, TargetError, VerificationFailed
from edgepipe.events import Emit, silent, stage
from edgepipe.host import Host
from edgepipe.target import Emulation, Target, list_targets
from edgepipe.units import format_bytes

_LABEL = "edgepipe.target"
_OWNER = "edgepipe.owner"
_START_TIMEOUT_S = 180.0
_BANNER_TIMEOUT_S = 10.0
_SELFTEST_TIMEOUT_S = 600.0
_SELFTEST = "/opt/edgepipe/selftest/selftest.py"
_HOST_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"
_CAPABILITIES = (
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID",
    "SYS_CHROOT",
)  # fmt: skip
"""What sshd needs to let somebody in; the device's user has none of them."""


# Engines hide /sys/firmware, where a board says its name, from every container that does not ask for it.
# Podman's health checks need systemd, and its default limits are above what some machines allow.
_OWN_OPTIONS = {
    "docker": ("--security-opt", "systempaths=unconfined"),
    "podman": (
        "--security-opt",
        "unmask=/sys/firmware",
        "--no-healthcheck",
        "--ulimit=nofile=4096:4096",
        "--ulimit=nproc=4096:4096",
    ),
}


class EmulatedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A container that stands for a board.

    Attributes:
        target: Name of the target.
        state: "running", "exited", ... as the engine says.
        port: Of its sshd on 127.0.0.1; 0 where it does not run.
        cpus: Cores that it may use.
        memory_bytes: Memory that it may use.
        image: Tag of its image.
        container: Name of the container.
        engine: "docker" or "podman".
        folder: What opens it, on this machine: `ssh -F FOLDER/config TARGET`.
    """

    target: str
    state: str
    port: int
    cpus: float
    memory_bytes: int
    image: str
    container: str
    engine: str
    folder: str

    @property
    def access(self) -> Access:
        """The files that open it."""
        return Access(Path(self.folder))

    @property
    def host(self) -> Host:
        """Where its sshd listens."""
        return Host(hostname="127.0.0.1", user=USER, port=self.port, alias=self.target)

    @property
    def description(self) -> str:
        """How results call it."""
        return f"emulated {self.target} ({self.engine})"


def emulation_of(target: Target) -> Emulation:
    """How a container stands for the target.

    Raises:
        TargetError: It cannot.
    """
    if target.emulation is None:
        able = ", ".join(each.name for each in list_targets() if each.emulation)
        raise TargetError(
            "there is no emulated device of this target",
            where=target.name,
            got=target.facts.get("emulation", "no [emulation] in its file"),
            remedy=f"take one of {able}, or this machine's own processor: --emulator native",
        )
    return target.emulation


def up(target: Target, *, emit: Emit = silent) -> EmulatedDevice:
    """Starts the target's device, unless it runs already; builds its image, unless it is there.

    It stays until it is taken down. A device that is started has been tested: a small INT8 network gave in it
    what it gives on hardware.

    Raises:
        TargetError: There is no emulated device of the target.
        EngineMissing: There is no container engine.
        EmulatorFailed: The image cannot be built, or the device does not start.
        VerificationFailed: It computes something else than hardware does.
        OutputError: Its files cannot be written on this machine.
    """
    emulation = emulation_of(target)
    engine = find_engine()
    access = access_to(target.name)
    with ways.locked(access):
        tag = ensure_image(engine, target, emulation, emit)
        there = _find(engine, target.name)
        if there is not None and there.state == "running" and there.image == tag and access.config.is_file():
            return there
        if there is not None:
            _remove(engine, there.container)
        with _all_or_nothing(engine, target.name):
            device = _start_tested(engine, target, emulation, tag, emit)
    return device


def down(target: str | None = None, *, emit: Emit = silent) -> tuple[str, ...]:
    """Takes the device of a target down, or all of this user's; gives the names of those that were there.

    Raises:
        EngineMissing: There is no container engine.
        EmulatorFailed: A container cannot be removed.
    """
    engine = find_engine()
    gone = []
    for device in _devices(engine):
        if target in (None, device.target):
            with stage(emit, f"take down emulated {device.target}"):
                _remove(engine, device.container)
                ways.forget(device.access)
            gone.append(device.target)
    return tuple(gone)


def log_in(device: EmulatedDevice) -> int:
    """Opens a shell on the device, by ssh where this machine has it, and gives its exit status.

    Raises:
        EngineMissing: There is no ssh here, and no container engine.
    """
    if shutil.which("ssh"):
        return subprocess.call(["ssh", "-F", str(device.access.config), device.target])
    engine = find_engine()
    return subprocess.call(
        [
            engine.program,
            "exec",
            "-it",
            "--user",
            USER,
            "--workdir",
            f"/home/{USER}",
            device.container,
            "bash",
        ]
    )


def devices() -> tuple[EmulatedDevice, ...]:
    """This user's emulated devices, in order of name.

    Raises:
        EngineMissing: There is no container engine.
    """
    return _devices(find_engine())


def _devices(engine: Engine) -> tuple[EmulatedDevice, ...]:
    listed = engine.run("ps", "--all", "--quiet", "--filter", f"label={_OWNER}={ways.owner()}").split()
    found = engine.inspect(*listed, kind="container") if listed else []
    return tuple(sorted((_device(engine, each) for each in found), key=lambda device: device.target))


def _find(engine: Engine, target: str) -> EmulatedDevice | None:
    found = engine.inspect(_container_name(target), kind="container")
    return _device(engine, found[0]) if found else None


def _device(engine: Engine, told: dict[str, Any]) -> EmulatedDevice:
    """Reads what `inspect` says of a container."""
    bindings = (told["NetworkSettings"].get("Ports") or {}).get("22/tcp") or []
    limits = told["HostConfig"]
    target = told["Config"]["Labels"][_LABEL]
    return EmulatedDevice(
        target=target,
        state=told["State"]["Status"],
        port=int(bindings[0]["HostPort"]) if bindings else 0,
        cpus=limits["NanoCpus"] / 1e9,
        memory_bytes=limits["Memory"],
        image=told["Config"]["Image"].removeprefix("localhost/"),
        container=told["Name"].lstrip("/"),
        engine=engine.kind,
        folder=str(access_to(target).folder),
    )


def _container_name(target: str) -> str:
    return f"edgepipe-{target}-{ways.owner()}"


def _start_tested(
    engine: Engine, target: Target, emulation: Emulation, tag: str, emit: Emit
) -> EmulatedDevice:
    with stage(emit, f"start emulated {target.name}") as starting:
        device = _start(engine, target, emulation, tag)
        memory = format_bytes(device.memory_bytes)
        starting.detail = f"{device.cpus:g} cores, {memory}, 127.0.0.1:{device.port}"
    with stage(emit, "self-test") as testing:
        testing.detail = _test(engine, target, device)
    return device


def _start(engine: Engine, target: Target, emulation: Emulation, tag: str) -> EmulatedDevice:
    access = access_to(target.name)
    memory_bytes = min(target.memory_mb << 20, engine.memory_bytes)
    mounts = ways.lay_out(access, emulation.board, memory_bytes)
    key = ways.make_key(access)
    environment = {"EDGEPIPE_AUTHORIZED_KEY": key, "EDGEPIPE_EMULATED": target.name}
    if emulation.qemu_cpu:
        environment["QEMU_CPU"] = emulation.qemu_cpu
    engine.run(
        "run", "--detach",
        "--name", _container_name(target.name),
        "--hostname", target.name,
        "--platform", platform_of(target),
        "--label", f"{_LABEL}={target.name}",
        "--label", f"{_OWNER}={ways.owner()}",
        "--cpus", str(min(target.cores, engine.cpus)),
        "--memory", str(memory_bytes),
        "--pids-limit", "1024",
        "--publish", "127.0.0.1::22",
        "--cap-drop", "ALL",
        *(f"--cap-add={each}" for each in _CAPABILITIES),
        "--security-opt", "no-new-privileges",
        *_OWN_OPTIONS[engine.kind],
        *(f"--volume={source}:{path}:ro" for path, source in mounts.items()),
        *(f"--env={name}={value}" for name, value in environment.items()),
        tag,
    )  # fmt: skip
    device = _wait(engine, target.name)
    ways.pin(access, target.name, device.port, engine.run("exec", device.container, "cat", _HOST_KEY))
    return device


def _wait(engine: Engine, target: str) -> EmulatedDevice:
    """Waits until the device's sshd introduces itself."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        device = _find(engine, target)
        if device is None or device.state != "running":
            logs = engine.attempt("logs", _container_name(target))
            raise EmulatorFailed(
                "the emulated device does not start",
                where=_container_name(target),
                got=last_lines(logs.stdout + logs.stderr) or "no message",
                remedy="see what it says; docs/emulator.md lists what an engine must be able to do",
            )
        if device.port and _greets(device.port):
            return device
        if time.monotonic() > deadline:
            raise EmulatorFailed(
                "the emulated device does not answer",
                where=f"127.0.0.1:{device.port}",
                got=f"no SSH server within {_START_TIMEOUT_S:.0f} s",
                remedy=f"see what it says: {engine.kind} logs {device.container}",
            )
        time.sleep(0.2)


def _greets(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), _BANNER_TIMEOUT_S) as link:
            link.settimeout(_BANNER_TIMEOUT_S)
            return link.recv(4) == b"SSH-"
    except OSError:
        return False


def _test(engine: Engine, target: Target, device: EmulatedDevice) -> str:
    """Runs the self-test in the device, and says how it went."""
    done = engine.attempt(
        "exec", device.container, "python3", _SELFTEST, *target.formats, timeout_s=_SELFTEST_TIMEOUT_S
    )
    try:
        told = json.loads(done.stdout)
    except ValueError:
        told = {"problems": {"all": last_lines(done.stderr) or f"exit status {done.returncode}"}}
    problems = told["problems"]
    if done.returncode != 0 or problems:
        raise VerificationFailed(
            f"the emulated processor of {target.name} computes something else than hardware",
            where=f"{device.image}, QEMU_CPU={emulation_of(target).qemu_cpu}",
            got="; ".join(f"{name}: {problem}" for name, problem in problems.items()),
            remedy="upgrade QEMU: package qemu-user-static, or "
            "docker run --privileged --rm tonistiigi/binfmt --install all",
        )
    return ", ".join(
        f"{name} bit-equal to hardware" if not steps else f"{name} within {steps} step"
        for name, steps in told["worst_steps"].items()
    )


@contextlib.contextmanager
def _all_or_nothing(engine: Engine, target: str) -> Iterator[None]:
    """Removes the device where an error or Ctrl-C leaves it half started."""
    try:
        yield
    except BaseException:
        _remove(engine, _container_name(target))
        ways.forget(access_to(target))
        raise


def _remove(engine: Engine, container: str) -> None:
    done = engine.attempt("rm", "--force", "--volumes", container)
    if done.returncode != 0 and "no such container" not in done.stderr.lower():
        raise EmulatorFailed(
            "the emulated device cannot be removed",
            where=container,
            got=last_lines(done.stderr),
            remedy=f"try it by hand: {engine.kind} rm --force {container}",
        )
