"""A device over SSH: paramiko behind `Transport`, with OpenSSH's configuration and strict host keys."""

from __future__ import annotations

import base64
import logging
import shlex
import socket
import subprocess
from collections.abc import Sequence
from typing import Any

from edgepipe.device.authentication import authenticate
from edgepipe.device.known_hosts import KnownHosts, KnownKey, add_known_host
from edgepipe.device.ssh_config import Route, SshOptions, resolve
from edgepipe.device.transport import Channel, Transport
from edgepipe.errors import (
    DeviceError,
    DeviceTimeout,
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
    UsageError,
)
from edgepipe.host import Host

KEEPALIVE_S = 15
STALL_S = 60.0
"""How long a device may take nothing, or acknowledge nothing, before it counts as gone."""

_LINK_END_S = 0.5
_MAX_JUMPS = 8
_READ_BYTES = 1 << 16
_PACKET_BYTES = 32_000
"""What fits a packet of the least size that servers take: paramiko copies all the rest of longer data."""

_BEGIN = b"edgepipe: begin"
"""Said before a program starts: what came before it, the device's login scripts have said."""


class SshTransport(Transport):
    """A connection that `connect` made; it owns the connections to jump hosts that lead there."""

    def __init__(self, route: Route, links: list[Any]) -> None:
        self.description = str(route.host)
        self._route = route
        self._links = links

    def open(self, argv: Sequence[str]) -> Channel:
        """Starts a program by the login shell of the device's user, its arguments quoted.

        Raises:
            HostUnreachable: The connection was lost.
            DeviceError: The device allows no further session.
        """
        import paramiko

        try:
            session = self._links[-1].open_session(timeout=STALL_S)
            session.settimeout(STALL_S)
            session.exec_command(f"echo {shlex.quote(_BEGIN.decode())}; exec {shlex.join(argv)}")
        except paramiko.ChannelException as error:
            raise DeviceError(
                "the device refuses to run a program",
                where=str(self._route),
                got=error.text,
                remedy="see whether its SSH server allows sessions (MaxSessions of sshd_config)",
            ) from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise _lost(self._route, error) from error
        return Channel(_SshPipes(session, self._route), self.description)

    def close(self) -> None:
        """Ends the connection, and those to jump hosts."""
        for link in reversed(self._links):
            link.close()


def connect(host: Host, options: SshOptions | None = None) -> SshTransport:
    """Connects to a host as ~/.ssh/config says, checks its key, and logs in.

    Raises:
        HostUnreachable: The name is unknown, the port closed, nobody answers, or it is not SSH.
        HostKeyUnknown: The host's key is not in known_hosts.
        HostKeyChanged: The host's key is another one than known_hosts has.
        AuthenticationFailed: No key and no password was accepted.
        UsageError: The SSH configuration cannot be read.
    """
    options = options or SshOptions()
    # Without a handler, Python prints what paramiko logs; every failure is told by an error already.
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    route = resolve(host, options)
    links: list[Any] = []
    try:
        _extend(links, route, options, 0)
    except BaseException:
        for link in reversed(links):
            link.close()
        raise
    return SshTransport(route, links)


def _extend(links: list[Any], route: Route, options: SshOptions, depth: int) -> None:
    """Adds the connection to `route`, those to its jump hosts before it."""
    if depth > _MAX_JUMPS:
        raise UsageError(
            "the jump hosts lead in a circle",
            where=str(route.host),
            remedy="look at ProxyJump in ~/.ssh/config",
        )
    for index, jump in enumerate(route.jumps):
        jump_route = resolve(jump, options)
        if index == 0:  # its own ProxyJump counts: for all further ones the list says how to go on
            _extend(links, jump_route, options, depth + 1)
        else:
            _add_link(links, links[-1], jump_route, options)
    _add_link(links, links[-1] if route.jumps else None, route, options)


def _add_link(links: list[Any], via: Any | None, route: Route, options: SshOptions) -> None:
    """Connects to one host, checks its key, and logs in."""
    link = _start(_socket(via, route, options), route, options)
    links.append(link)
    _check_host_key(link, route, options)
    authenticate(link, route, options)
    link.set_keepalive(KEEPALIVE_S)


def _socket(via: Any | None, route: Route, options: SshOptions) -> Any:
    """A connection to the host: through a jump host, a command's pipes, or plain TCP."""
    if via is not None:
        return _tunnel(via, route, options)
    if route.proxy_command:
        return _ProxyCommand(route.proxy_command)
    return _tcp(route, options)


def _tunnel(via: Any, route: Route, options: SshOptions) -> Any:
    import paramiko

    try:
        return via.open_channel(
            "direct-tcpip", (route.hostname, route.port), ("127.0.0.1", 0), timeout=options.connect_timeout_s
        )
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise HostUnreachable(
            "the jump host cannot reach the device",
            where=f"{route} by way of {via.getpeername()[0]}",
            got=str(error),
            remedy="see whether the device is on and the jump host allows TCP forwarding",
        ) from error


def _tcp(route: Route, options: SshOptions) -> socket.socket:
    where = f"{route.hostname} port {route.port}"
    try:
        link = socket.create_connection((route.hostname, route.port), options.connect_timeout_s)
    except socket.gaierror as error:
        raise HostUnreachable(
            "nobody knows a host of that name",
            where=route.hostname,
            got=error.strerror or str(error),
            remedy="correct the name, or use the address; names ending in .local need mDNS",
        ) from error
    except ConnectionRefusedError as error:
        raise HostUnreachable(
            "the host refuses the connection",
            where=where,
            got="connection refused",
            remedy="see whether an SSH server runs there and listens on this port",
        ) from error
    except TimeoutError as error:
        raise HostUnreachable(
            "the host does not answer",
            where=where,
            got=f"no connection within {options.connect_timeout_s:g} s",
            remedy="see whether the device is on, and on this network",
        ) from error
    except (OSError, UnicodeError) as error:
        raise HostUnreachable(
            "the host cannot be reached",
            where=where,
            got=str(error),
            remedy="see whether the address is right and the network is up",
        ) from error
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: a device that lost its power is noticed
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALL_S * 1000))
    return link


class _ProxyCommand:
    """A command's standard input and output as a socket; ends with it."""

    def __init__(self, command: str) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait()


def _start(link: Any, route: Route, options: SshOptions) -> Any:
    """The SSH handshake, with host key types that known_hosts has for the host preferred."""
    import paramiko

    transport = paramiko.Transport(link)
    transport.daemon = True
    transport.banner_timeout = options.connect_timeout_s
    transport.auth_timeout = max(options.connect_timeout_s, 30.0)
    known = [key.algorithm for key in KnownHosts(route.known_hosts).keys_of(route.known_name)]
    security = transport.get_security_options()
    # AES-GCM seals a packet in one pass where CTR needs a second for its MAC: half the processor time.
    security.ciphers = sorted(security.ciphers, key=lambda name: "aes128-gcm" not in name)
    security.key_types = sorted(security.key_types, key=lambda name: _preference(name, known))
    try:
        transport.start_client(timeout=options.connect_timeout_s)
        transport.get_remote_server_key()  # an error, where the handshake was not over in time
    except BaseException as error:
        transport.close()
        link.close()
        if not isinstance(error, (paramiko.SSHException, EOFError, OSError)):
            raise
        raise HostUnreachable(
            "what answers there is no SSH server that edgepipe can talk to",
            where=f"{route.hostname} port {route.port}",
            got=str(error) or type(error).__name__,
            remedy="see whether the port is right and the server is up to date",
        ) from error
    return transport


def _preference(algorithm: str, known: Sequence[str]) -> int:
    plain = "ssh-rsa" if algorithm.startswith("rsa-sha2") else algorithm
    return known.index(plain) if plain in known else len(known)


def _check_host_key(transport: Any, route: Route, options: SshOptions) -> None:
    key = transport.get_remote_server_key()
    shown = KnownKey(key.get_name(), base64.b64encode(key.asbytes()).decode())
    known_hosts = KnownHosts(route.known_hosts)
    known = known_hosts.keys_of(route.known_name)
    if known_hosts.is_revoked(route.known_name, shown):
        raise HostKeyChanged(
            "the device's host key is marked as revoked",
            where=str(route),
            got=str(shown),
            remedy="give the device a new host key",
        )
    if shown in known:
        return
    if known:
        raise HostKeyChanged(
            "the device's host key changed: it was set up anew, or somebody is in between",
            where=str(route),
            got=f"{shown}; known is {known[0]}",
            remedy="if you know that it was set up anew, forget the old key: "
            f"ssh-keygen -R '{route.known_name}' -f {route.known_hosts[0]}",
        )
    if not options.accept_new_host_key:
        raise HostKeyUnknown(
            "the device's host key is not known yet",
            where=str(route),
            got=str(shown),
            remedy="compare it with `ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` on the device, "
            "then pass --accept-new-host-key once",
        )
    add_known_host(route.known_hosts[0], route.known_name, shown, hashed=route.hash_known_hosts)


class _SshPipes:
    def __init__(self, session: Any, route: Route) -> None:
        self._session = session
        self._route = route
        self._begun = False

    def write(self, data: bytes) -> None:
        try:
            for start in range(0, len(data), _PACKET_BYTES):
                self._session.sendall(data[start : start + _PACKET_BYTES])
        except TimeoutError:
            raise DeviceTimeout(
                "the device takes no more data",
                where=str(self._route),
                got=f"nothing for {STALL_S:.0f} s",
                remedy="see whether the device still runs; an upload goes on where it stopped",
            ) from None
        except (OSError, EOFError) as error:
            raise BrokenPipeError from error

    def close_stdin(self) -> None:
        try:
            self._session.shutdown_write()
        except (OSError, EOFError) as error:
            raise BrokenPipeError from error

    def read_stdout(self) -> bytes:
        said = b""
        while not self._begun:
            chunk = self._read(self._session.recv)
            if not chunk:
                return b""
            _, begin, output = (said := said + chunk).partition(_BEGIN + b"\n")
            self._begun = bool(begin)
            if output:
                return output
        return self._read(self._session.recv)

    def read_stderr(self) -> bytes:
        return self._read(self._session.recv_stderr)

    def _read(self, receive: Any) -> bytes:
        while True:
            try:
                return bytes(receive(_READ_BYTES))
            except TimeoutError:
                continue  # the timeout of the session is for writing: a program may be silent for long

    def exit_status(self, timeout_s: float) -> int:
        if not self._session.status_event.wait(timeout_s):
            raise TimeoutError
        status = int(self._session.exit_status)
        if status == -1 and not self._session.eof_received:
            # Either a signal ended the program, or the connection did: then its thread ends too.
            link = self._session.get_transport()
            link.join(_LINK_END_S)
            if not link.is_active():
                raise _lost(self._route, None)
        return status

    def close(self) -> None:
        self._session.close()


def _lost(route: Route, error: BaseException | None) -> HostUnreachable:
    return HostUnreachable(
        "the connection to the device was lost",
        where=str(route),
        got=str(error or ""),
        remedy="see whether the device is still on, then try again: an upload goes on where it stopped",
    )
