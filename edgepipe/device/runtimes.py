"""Which of a device's runtimes shall run an artifact, told from the facts that the agent gave."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from device_agent.protocol import Facts, Plan, Port, Sample
from edgepipe.bundle import Artifact
from edgepipe.errors import DeviceRuntimeMissing, DeviceRuntimeTooOld
from edgepipe.target import Runtime, Target, install_command


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """An artifact of a pushed bundle, and what runs it there.

    Attributes:
        folder: The bundle's folder on the device, as `push` gave it.
        artifact: What to run.
        runtime: The runtime that runs it, with the package to install where it is missing.
        threads: Threads inside one operator.
        providers: ONNX Runtime's execution providers in order of preference.
    """

    folder: str
    artifact: Artifact
    runtime: Runtime
    threads: int
    providers: tuple[str, ...] = ()

    def plan(self) -> Plan:
        """The task as the agent takes it."""
        artifact = self.artifact
        return Plan(
            folder=self.folder,
            artifact=artifact.name,
            runtime=self.runtime.name,
            threads=self.threads,
            inputs=tuple(
                Port(port.name, port.dtype, port.shape, port.scale, port.zero_point)
                for port in artifact.inputs
            ),
            outputs=tuple(
                Port(port.name, port.dtype, port.shape, port.scale, port.zero_point)
                for port in artifact.outputs
            ),
            samples=tuple(Sample(golden.inputs, golden.outputs) for golden in artifact.golden),
            providers=self.providers if self.runtime.name == "onnxruntime" else (),
        )


def pick_runtime(artifact: Artifact, target: Target, facts: Facts, where: str) -> Runtime:
    """The first runtime that the device has and that is new enough for the artifact.

    The target's runtimes come first, then any other of the same format that is installed: LiteRT runs
    what was made for tflite-runtime.

    Args:
        artifact: What shall run.
        target: Names runtimes in order of preference.
        facts: What the device has.
        where: The device, for messages.

    Raises:
        DeviceRuntimeMissing: The device has none that runs this format.
        DeviceRuntimeTooOld: It has one, older than the artifact needs.
    """
    able = tuple(runtime for runtime in target.runtimes if runtime.format == artifact.format)
    found = {runtime.name: runtime for runtime in facts.runtimes if runtime.imports is not False}
    here = [runtime for runtime in installed_runtimes(target, facts) if runtime.format == artifact.format]
    for runtime in here:
        if not is_older(found[runtime.name].version, artifact.needs.get(runtime.name, "")):
            return runtime
    if here:
        old = found[here[0].name]
        raise runtime_too_old(artifact, here[0], where, f"{old.package} {old.version}")
    raise runtime_missing(artifact, able, where, _inventory(facts))


def installed_runtimes(target: Target, facts: Facts) -> tuple[Runtime, ...]:
    """What the device can run the target's artifacts with: the target's own runtimes first."""
    found = {runtime.name: runtime for runtime in facts.runtimes if runtime.imports is not False}
    own = tuple(runtime for runtime in target.runtimes if runtime.name in found)
    others = tuple(
        msgspec.convert({"name": name, "package": one.package, "version": one.version}, Runtime)
        for name, one in found.items()
        if name not in {runtime.name for runtime in own}
    )
    return own + tuple(runtime for runtime in others if runtime.format in target.formats)


def _inventory(facts: Facts) -> str:
    """What the device has, and what of it does not work, for a message."""
    broken = [
        f"{one.package} {one.version} cannot be imported: {one.note}"
        for one in facts.runtimes
        if one.imports is False
    ]
    working = [f"{one.package} {one.version}" for one in facts.runtimes if one.imports is not False]
    python = f"Python {facts.python.version} ({facts.python.executable})"
    return "; ".join([f"{python} has {', '.join(working) or 'no runtime'}", *broken])


def is_older(version: str, needed: str) -> bool:
    """True where both are known and `version` is less than `needed`; suffixes such as rc1 do not count."""
    have, need = _numbers(version), _numbers(needed)
    width = max(len(have), len(need))
    return bool(have and need) and _padded(have, width) < _padded(need, width)


def _padded(numbers: tuple[int, ...], width: int) -> tuple[int, ...]:
    return numbers + (0,) * (width - len(numbers))


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def runtime_too_old(artifact: Artifact, runtime: Runtime, where: str, got: str) -> DeviceRuntimeTooOld:
    """The error for a runtime that lacks an op version of the artifact, with the version it needs."""
    needed = artifact.needs.get(runtime.name, runtime.version)
    return DeviceRuntimeTooOld(
        f"the device's {runtime.name} is too old for {artifact.name}",
        where=where,
        got=got,
        remedy=f"install it there: {install_command(f'{runtime.package}>={needed}')}",
    )


def runtime_missing(
    artifact: Artifact, able: Sequence[Runtime], where: str, got: str
) -> DeviceRuntimeMissing:
    """The error for a device without a runtime for the artifact, with the command that installs one."""
    commands = " or ".join(one.install_command for one in able)
    return DeviceRuntimeMissing(
        f"the device has no runtime for {artifact.name}",
        where=where,
        got=got,
        remedy=f"install one there: {commands}"
        if able
        else "make a bundle for a target that runs this format",
    )
