"""Opening the device that a `Place` names, with the agent on it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import msgspec

from device_agent import protocol
from edgepipe.errors import UsageError
from edgepipe.events import Emit, stage
from edgepipe.job import Place
from edgepipe.measure import Kind
from edgepipe.target import Target

if TYPE_CHECKING:
    from edgepipe.device.agent import InstalledAgent
    from edgepipe.device.transport import Transport
    from edgepipe.emulator.device import EmulatedDevice

EMULATED_TIMEOUT_S = 60.0
"""An emulated sshd needs seconds for what a board does in an instant."""


class Device(msgspec.Struct, frozen=True):
    """A device that is connected and answers.

    Attributes:
        transport: The way to it.
        agent: The agent installed there.
        facts: What it says of itself.
        kind: "board", "embedded" or "emulated".
        description: How results call it; holds nothing secret.
    """

    transport: Transport
    agent: InstalledAgent
    facts: protocol.Facts
    kind: Kind
    description: str


@contextmanager
def open_device(place: Place, emit: Emit, target: Target | None = None) -> Iterator[Device]:
    """Connects, installs the agent and asks for facts; closes everything afterwards.

    Args:
        place: Where the device is.
        emit: Where progress and warnings go.
        target: The kind of board, which says what an emulated one is; None takes the embedded device.

    Raises:
        UsageError: As `check_place` says, or a container is asked for and no target is named.
        TargetError: There is no emulated device of the target.
        DeviceError: The device cannot be reached, or lacks what the agent needs.
    """
    check_place(place)
    from edgepipe.device.agent import install

    with ExitStack() as stack:
        container = _emulated(place, target, emit)
        with stage(emit, "connect") as connecting:
            transport, kind, description = _connect(place, container, stack)
            agent = install(transport)
            facts = agent.probe()
            if kind == "board" and facts.emulated:
                kind = "emulated"
            connecting.detail = f"{description}: {facts.board or facts.cpu.model}, {facts.system.name}"
        yield Device(transport, agent, facts, kind, description)


def check_place(place: Place) -> None:
    """Makes sure that a place names one device, before any work.

    Raises:
        UsageError: It names none or two, the host is not of the form user@address, or the private
            key is no file.
    """
    from edgepipe.host import parse_host

    if place.host is not None:
        parse_host(place.host)  # first: whatever else is wrong, only a host that was read is repeated
    choice = "a board with --host user@address, or an emulated device with --emulate"
    if place.host is None and not place.emulate:
        raise UsageError("no device is named", remedy=f"name {choice}")
    if place.host is not None and place.emulate:
        raise UsageError(
            "--host and --emulate contradict each other", got=f"--host {place.host}", remedy=f"take {choice}"
        )
    if place.identity is not None and not place.identity.expanduser().is_file():
        raise UsageError(
            "there is no such private key file",
            where="--identity",
            got=str(place.identity),
            remedy="name the file of a private key, such as ~/.ssh/id_ed25519",
        )


def _emulated(place: Place, target: Target | None, emit: Emit) -> EmulatedDevice | None:
    """The container that stands for the target, started where need be; None where another device is meant."""
    if place.emulate is False or place.emulate == "native":
        return None
    if target is None:
        if place.emulate == "docker":
            raise UsageError(
                "which device to emulate is not said", where="--emulator docker", remedy="name its --target"
            )
        return None
    from edgepipe.emulator.device import emulation_of, up

    native = emulation_of(target).native and platform.machine() == target.architecture
    return None if native and place.emulate is True else up(target, emit=emit)


def _connect(place: Place, container: EmulatedDevice | None, stack: ExitStack) -> tuple[Transport, Kind, str]:
    from edgepipe.device.ssh import connect
    from edgepipe.device.ssh_config import SshOptions
    from edgepipe.host import parse_host

    if container is not None:
        access = container.access
        emulated = SshOptions(
            config_path=access.folder / "none",
            known_hosts_path=access.known_hosts,
            identity_files=(access.identity,),
            connect_timeout_s=EMULATED_TIMEOUT_S,
            use_agent=False,
        )
        transport = stack.enter_context(connect(container.host, emulated))
        return transport, "emulated", container.description
    if place.host is None:
        from edgepipe.device.embedded import EmbeddedDevice

        device = stack.enter_context(EmbeddedDevice.start())
        transport = stack.enter_context(connect(device.host, device.ssh_options))
        return transport, "embedded", device.description
    options = SshOptions(
        identity_files=() if place.identity is None else (place.identity,),
        accept_new_host_key=place.accept_new_host_key,
        prompt=place.prompt,
    )
    transport = stack.enter_context(connect(parse_host(place.host), options))
    return transport, "board", transport.description
