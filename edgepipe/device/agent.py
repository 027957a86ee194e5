"""The agent on a device: brought there, started for each request, and listened to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

import msgspec

from device_agent import protocol
from edgepipe.device.runtimes import Task, runtime_missing, runtime_too_old
from edgepipe.device.transport import Channel, Transport, last_lines
from edgepipe.device.upload import ROOT, put, upload_of
from edgepipe.device.zipapp import build_agent
from edgepipe.errors import (
    AgentFailed,
    DeviceDiskFull,
    DeviceError,
    DevicePythonMissing,
    DeviceTimeout,
)
from edgepipe.events import Emit, silent, stage
from edgepipe.model import digest_bytes

SILENCE_S = 60.0
"""An agent gives a sign of life every second or so: one that says nothing for so long is lost."""

_FIND_TIMEOUT_S = 60.0
_OLDEST = (3, 6)
_RESULT_KINDS = ("crashed", "out-of-memory", "timeout")
_REPORT = "report this, with the versions of edgepipe and of Python there"
_ERRORS: dict[str, type[DeviceError]] = {"disk-full": DeviceDiskFull, "timeout": DeviceTimeout}
_REMEDIES = {
    "bad-request": _REPORT,
    "file-missing": "push the bundle again",
    "runtime-missing": "install an inference runtime there",
    "runtime-too-old": "install a newer runtime there",
    "python-error": "see whether the runtime there is sound: run its own example",
    "crashed": "see whether the runtime's build suits this CPU",
    "out-of-memory": "free memory there, or take a smaller model",
    "timeout": "take no more threads than cores, and see what else runs there",
    "disk-full": "free some room there",
}

EventT = TypeVar("EventT")
OnProgress = Callable[[protocol.Progress], None]


def agent_digest() -> str:
    """sha256 of the agent that this edgepipe brings along."""
    return digest_bytes(build_agent())


class InstalledAgent(msgspec.Struct, frozen=True, kw_only=True):
    """The agent on one device, ready to be asked. Each request starts it anew, and leaves nothing running.

    Attributes:
        transport: The way there.
        python: The interpreter that runs it.
        python_version: Its version: "3.11.2".
        path: The agent's file.
        root: Absolute path of the folder that it works in.
        digest: sha256 of the agent.
    """

    transport: Transport
    python: str
    python_version: str
    path: str
    root: str
    digest: str

    def probe(self, *, import_runtimes: bool = False) -> protocol.Facts:
        """Asks what the device is and has.

        Args:
            import_runtimes: Also see whether each runtime can be imported; that takes a moment.

        Raises:
            AgentFailed: The agent died, or said something that is not of the protocol.
            DeviceTimeout: It said nothing for a minute.
            HostUnreachable: The connection was lost.
        """
        answer = self.ask(protocol.Probe(import_runtimes=import_runtimes))
        return self._only(answer, protocol.Facts)

    def verify(
        self,
        task: Task,
        *,
        tolerance_steps: float = 1.0,
        tolerance_relative: float = 1e-3,
        timeout_ns: int = protocol.Verify._field_defaults["timeout_ns"],
        on_progress: OnProgress | None = None,
    ) -> protocol.Verification:
        """Runs the golden samples there and compares; `ok` of the answer says whether they agree.

        Raises:
            DeviceRuntimeMissing: The runtime is not there, or cannot be imported.
            DeviceRuntimeTooOld: It does not know an op version of the artifact.
            DeviceDiskFull: No room for the agent's work.
            DeviceTimeout: The samples took too long, or the agent said nothing for a minute.
            AgentFailed: The runtime failed or died, or the agent did.
            HostUnreachable: The connection was lost.
        """
        request = protocol.Verify(
            plan=task.plan(),
            tolerance_steps=tolerance_steps,
            tolerance_relative=tolerance_relative,
            timeout_ns=timeout_ns,
        )
        answer = self._ask(request, on_progress, task)
        return self._only(answer, protocol.Verification)

    def bench(
        self, task: Task, request: protocol.Bench, *, on_progress: OnProgress | None = None
    ) -> tuple[protocol.Event, ...]:
        """Measures an artifact there.

        Args:
            task: What to run.
            request: How; its plan is taken from the task.
            on_progress: Told while it runs.

        Returns:
            What the agent said but its progress: Latencies and Samples and one Measurement, or a Failed
            of kind "crashed", "out-of-memory" or "timeout", which is a result too.

        Raises:
            DeviceError: As `verify`.
        """
        request = request._replace(plan=task.plan())
        return tuple(self._ask(request, on_progress, task, results=_RESULT_KINDS))

    def ask(
        self, request: protocol.Request, *, on_progress: OnProgress | None = None
    ) -> Iterator[protocol.Event]:
        """Sends one request and gives the events that answer it, without Progress and Done.

        Raises:
            DeviceError: As `verify`.
        """
        return self._ask(request, on_progress, None)

    def _ask(
        self,
        request: protocol.Request,
        on_progress: OnProgress | None,
        task: Task | None,
        results: Collection[str] = (),
    ) -> Iterator[protocol.Event]:
        with self.transport.open([self.python, self.path, "--root", self.root]) as channel:
            try:
                channel.write_line(protocol.encode(request).encode())
            except BrokenPipeError:
                raise self._died(channel) from None
            while True:
                event = self._next_event(channel)
                if isinstance(event, protocol.Done):
                    return
                if isinstance(event, protocol.Failed) and event.kind not in results:
                    raise self._error(event, task)
                if not isinstance(event, protocol.Progress):
                    yield event
                elif on_progress is not None:
                    on_progress(event)
                if isinstance(event, protocol.Failed):
                    return

    def _next_event(self, channel: Channel) -> protocol.Event:
        try:
            line = channel.read_line(SILENCE_S)
        except DeviceTimeout as error:
            raise DeviceTimeout(
                "the agent says nothing any more",
                where=self._where(),
                got=f"no sign of life for {SILENCE_S:.0f} s; last said: {last_lines(channel.stderr_tail, 2)}",
                remedy="see whether the device swaps or hangs, then try again",
            ) from error
        if line is None:
            raise self._died(channel)
        try:
            return protocol.decode_event(line)
        except protocol.ProtocolError as error:
            raise AgentFailed(
                "the agent said something that is not of the protocol",
                where=self._where(),
                got=f"{error}: {line[:200].decode(errors='replace')}",
                remedy=_REPORT,
            ) from error

    def _died(self, channel: Channel) -> DeviceError:
        status = channel.wait(5.0)
        channel.settle()
        return AgentFailed(
            "the agent ended before it had answered",
            where=self._where(),
            got=f"exit status {status}; last said: {last_lines(channel.stderr_tail) or 'nothing'}",
            remedy="try it there by hand: "
            f"""echo '{{"v":1,"type":"probe"}}' | {self.python} {self.path} --root {self.root}""",
        )

    def _error(self, failed: protocol.Failed, task: Task | None) -> DeviceError:
        if failed.kind == "runtime-missing" and task is not None:
            return runtime_missing(task.artifact, (task.runtime,), self._where(), failed.message)
        if failed.kind == "runtime-too-old" and task is not None:
            return runtime_too_old(task.artifact, task.runtime, self._where(), failed.message)
        kind = _ERRORS.get(failed.kind, AgentFailed)
        if failed.kind == "python-error" and task is not None:
            # Its message is the runtime's own; where in the runtime's code it arose helps nobody here.
            what = f"{task.runtime.name} on the device fails on {task.artifact.name}"
            return kind(what, where=self._where(), got=failed.message, remedy=_REMEDIES[failed.kind])
        detail = last_lines(failed.detail.encode())
        return kind(failed.message, where=self._where(), got=detail, remedy=_REMEDIES[failed.kind])

    def _where(self) -> str:
        return self.transport.description

    def _only(self, answer: Iterator[protocol.Event], kind: type[EventT]) -> EventT:
        for event in list(answer):  # to its end: an error may come last
            if isinstance(event, kind):
                return event
        raise AgentFailed(
            "the agent did not answer what it was asked",
            where=self._where(),
            got=f"no {kind.__name__}",
            remedy=_REPORT,
        )


def install(transport: Transport, *, emit: Emit = silent) -> InstalledAgent:
    """Finds a Python on the device and brings the agent there, unless it is there already.

    Raises:
        DevicePythonMissing: The device has no Python 3.6 or newer.
        DeviceError: The device runs no commands for this user, or its home cannot be written.
        DeviceDiskFull: There is no room for it.
        DeviceTimeout: The device does not answer.
        HostUnreachable: The connection was lost.
    """
    with stage(emit, "install agent") as installing:
        home, python, version = find_python(transport)
        upload = upload_of(build_agent(), f"{ROOT}/agent-{agent_digest()[:12]}.pyz")
        sent_bytes = put(transport, [upload])
        installing.detail = f"Python {version}" + ("" if sent_bytes else ", already there")
    return InstalledAgent(
        transport=transport,
        python=python,
        python_version=version,
        path=f"{home}/{upload.remote}",
        root=f"{home}/{ROOT}",
        digest=upload.digest,
    )


def find_python(transport: Transport) -> tuple[str, str, str]:
    """The home folder there, the interpreter that shall run the agent, and its version.

    A virtual environment in ~/.edgepipe/venv goes first, then what PATH has.

    Raises:
        DevicePythonMissing: There is none, or only older ones.
        DeviceError: The device runs no commands for this user.
        DeviceTimeout: The device does not answer.
        HostUnreachable: The connection was lost.
    """
    completed = transport.run(["sh", "-c", _FIND_PYTHON], timeout_s=_FIND_TIMEOUT_S)
    home, *lines = completed.stdout.decode(errors="replace").splitlines() or [""]
    if completed.exit_status != 0 or not home:
        raise DeviceError(
            "the device does not run commands",
            where=transport.description,
            got=last_lines(completed.stderr) or f"exit status {completed.exit_status}, no message",
            remedy="log in there with ssh and see whether the user has a shell",
        )
    found = [tuple(line.split(" ", 1)) for line in lines if " " in line]
    for version, executable in found:
        if _is_new_enough(version):
            return home, executable, version
    raise DevicePythonMissing(
        "the device has no Python that can run the agent",
        where=transport.description,
        got=", ".join(f"{executable} is {version}" for version, executable in found) or "no python3 on PATH",
        remedy="install one there: sudo apt-get install python3",
    )


def _is_new_enough(version: str) -> bool:
    numbers = version.split(".")
    return all(number.isdigit() for number in numbers) and tuple(map(int, numbers[:2])) >= _OLDEST


# Python 2 shall be able to run this, so that the message can name it.
_TELL_VERSION = (
    'import sys; print("%d.%d.%d %s" % (sys.version_info[:3] + (sys.executable,))); '
    f"sys.exit(sys.version_info < {_OLDEST})"
)
_CANDIDATES = (
    f"{ROOT}/venv/bin/python3",
    "python3",
    *(f"python3.{minor}" for minor in range(13, 5, -1)),
    "python",
)
_FIND_PYTHON = f"""
pwd
for name in {" ".join(_CANDIDATES)}; do
  if "$name" -c '{_TELL_VERSION}' 2>/dev/null </dev/null; then break; fi
done
exit 0
"""
