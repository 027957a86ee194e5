"""Opening the device that a `Place` names, with the agent on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import msgspec

from device_agent import protocol
from edgepipe.errors import UsageError
from edgepipe.events import Emit, stage
from edgepipe.job import Place
from edgepipe.measure import Kind

if TYPE_CHECKING:
    from edgepipe.device.agent import InstalledAgent
    from edgepipe.device.transport import Transport


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
def open_device(place: Place, emit: Emit) -> Iterator[Device]:
    """Connects, installs the agent and asks for facts; closes everything afterwards.

    Raises:
        UsageError: As `check_place` says.
        DeviceError: The device cannot be reached, or lacks what the agent needs.
    """
    check_place(place)
    from edgepipe.device.agent import install

    with ExitStack() as stack:
        with stage(emit, "connect") as connecting:
            transport, kind, description = _connect(place, stack)
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
    choice = "a board with --host user@address, or the embedded device with --emulate"
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


def _connect(place: Place, stack: ExitStack) -> tuple[Transport, Kind, str]:
    from edgepipe.device.ssh import connect
    from edgepipe.device.ssh_config import SshOptions
    from edgepipe.host import parse_host

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
