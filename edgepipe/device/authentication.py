"""Logging in over SSH: keys of the ssh-agent, key files, then passwords by prompt."""

from __future__ import annotations

import os
import queue
import shlex
import socket
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from edgepipe.device.known_hosts import DEFAULT_PORT
from edgepipe.device.ssh_config import Prompt, Route, SshOptions
from edgepipe.errors import AuthenticationFailed

_PASSWORD_ATTEMPTS = 3
_TYPING_TIMEOUT_S = 120.0
"""As long as OpenSSH's server waits for a login by default (LoginGraceTime of sshd_config(5))."""


def authenticate(transport: Any, route: Route, options: SshOptions) -> None:
    """Logs in on a paramiko.Transport whose host key is already checked.

    Raises:
        AuthenticationFailed: Nothing was accepted; the message lists what was tried, no secret among it.
    """
    _Login(transport, route, options).run()


class _Login:
    """One login: what the server still allows, and what was tried."""

    def __init__(self, transport: Any, route: Route, options: SshOptions) -> None:
        self._transport = transport
        self._route = route
        self._options = options
        self._allowed = ["publickey"]
        self._tried: list[str] = []
        self._locked: list[Path] = []

    def run(self) -> None:
        import paramiko

        try:
            if not (self._try_keys() or self._try_none() or self._try_prompts()):
                raise self._failed("")
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._failed("then the device hung up") from error

    def _try_keys(self) -> bool:
        with closing(self._keys()) as keys:
            for name, key in keys:
                self._tried.append(f"key {name}")
                if self._attempt(lambda key=key: self._transport.auth_publickey(self._route.user, key)):
                    return True
                if "publickey" not in self._allowed:
                    return False
        return False

    def _try_none(self) -> bool:
        """Learns, for the price of a round trip, which methods are left: nobody is asked in vain."""
        return self._attempt(lambda: self._transport.auth_none(self._route.user))

    def _try_prompts(self) -> bool:
        if not {"password", "keyboard-interactive"} & set(self._allowed):
            return False
        prompt = self._options.prompt
        if prompt is None:
            self._tried.append("no password, as nobody can be asked for one")
            return False
        return any(self._try_prompt(prompt) for _ in range(_PASSWORD_ATTEMPTS))

    def _try_prompt(self, prompt: Prompt) -> bool:
        user = self._route.user
        if "password" in self._allowed:
            self._tried.append("password")
            password = prompt(f"{self._route}'s password: ")
            return self._attempt(lambda: self._transport.auth_password(user, password, fallback=False))

        def ask(question: str) -> str:
            return prompt(f"{self._route}: {question.strip()} ")

        self._tried.append("keyboard-interactive")
        return self._attempt(lambda: _interact(self._transport, user, ask))

    def _attempt(self, login: Any) -> bool:
        """True where the login is complete; keeps what the server allows next."""
        import paramiko

        try:
            further = login()
        except paramiko.BadAuthenticationType as error:
            self._allowed = list(error.allowed_types)
            return False
        except paramiko.AuthenticationException:
            if not self._transport.is_active():
                raise
            return False
        self._allowed = list(further or [])
        return bool(self._transport.is_authenticated())

    def _keys(self) -> Generator[tuple[str, Any], None, None]:
        """Keys with a name for each: those of files first, by the agent where it has them.

        Lazily, as a file may need a passphrase.
        """
        with _agent_keys(self._options.use_agent) as agent_keys:
            in_agent = {key.get_base64(): key for key in agent_keys}
            for path in self._route.identity_files:
                public = _public_part(path)
                if public in in_agent:
                    yield f"{path.name} (agent)", in_agent.pop(public)
                elif path.is_file() and (key := self._load_key(path)) is not None:
                    in_agent.pop(key.get_base64(), None)
                    yield path.name, key
            if not self._route.identities_only:
                yield from ((f"{key.comment or key.fingerprint} (agent)", key) for key in in_agent.values())

    def _load_key(self, path: Path) -> Any:
        import paramiko

        try:
            return _read_key(path, None)
        except paramiko.PasswordRequiredException:
            pass
        except (paramiko.SSHException, OSError, ValueError) as error:
            self._tried.append(f"not key {path.name}, which cannot be read ({type(error).__name__})")
            return None
        self._locked.append(path)
        prompt = self._options.prompt
        if prompt is None:
            self._tried.append(f"not key {path.name}, which needs a passphrase and nobody can be asked")
            return None
        try:
            return _read_key(path, prompt(f"passphrase of {path.name}: "))
        except (paramiko.SSHException, OSError, ValueError):
            self._tried.append(f"not key {path.name}, as the passphrase was wrong")
            return None

    def _failed(self, ending: str) -> AuthenticationFailed:
        tried = [*self._tried, *([ending] if ending else [])]
        methods = ", ".join(self._allowed)
        port = "" if self._route.port == DEFAULT_PORT else f"-p {self._route.port} "
        remedy = f"put a key there with `ssh-copy-id {port}{self._route.user}@{self._route.hostname}`"
        if self._locked:
            keys = " ".join(shlex.quote(str(path)) for path in self._locked)
            remedy = f"unlock the key for the ssh-agent with `ssh-add {keys}`"
        return AuthenticationFailed(
            "the device let nobody in",
            where=str(self._route),
            got="tried: "
            + ("; ".join(tried) or "nothing, as no key was found")
            + (f". The device takes: {methods}" if methods else ""),
            remedy=f"{remedy}, or name the right key or user",
        )


def _interact(transport: Any, user: str, ask: Callable[[str], str]) -> Any:
    """Logs in by keyboard-interactive: whatever the server asks (RFC 4256), the calling thread asks the user.

    paramiko hands questions to its own thread, where Ctrl-C never arrives: it would end edgepipe with the
    terminal's echo still off.
    """
    questions: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
    answers: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

    def take(_title: str, _instructions: str, fields: list[tuple[str, bool]]) -> list[str]:
        questions.put([text for text, _ in fields])
        return answers.get()

    allowed_s, transport.auth_timeout = transport.auth_timeout, _TYPING_TIMEOUT_S
    executor = ThreadPoolExecutor(1)
    login = executor.submit(transport.auth_interactive, user, take)
    login.add_done_callback(lambda _: questions.put(None))
    try:
        while (asked := questions.get()) is not None:
            answers.put([ask(question) for question in asked])
    finally:
        answers.put([])  # paramiko's thread must not wait for what nobody will type
        executor.shutdown(wait=False)
        transport.auth_timeout = allowed_s
    return login.result()


@contextmanager
def _agent_keys(wanted: bool) -> Iterator[tuple[Any, ...]]:
    """The keys of the ssh-agent, which must stay connected while they are used; none without one."""
    import paramiko

    if not wanted or not _agent_answers():
        yield ()
        return
    try:
        agent = paramiko.Agent()
    except (paramiko.SSHException, OSError):
        yield ()
        return
    try:
        yield agent.get_keys()
    finally:
        agent.close()


def _agent_answers() -> bool:
    """Whether SSH_AUTH_SOCK leads anywhere: where it does not, paramiko leaks a socket."""
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(os.environ.get("SSH_AUTH_SOCK", ""))
        except (OSError, ValueError):
            return False
        return True


def _public_part(path: Path) -> str:
    """The base64 of the public half that stands beside a private key; "" where there is none."""
    try:
        fields = path.with_name(path.name + ".pub").read_text(errors="replace").split()
    except OSError:
        return ""
    return fields[1] if len(fields) > 1 else ""


def _read_key(path: Path, passphrase: str | None) -> Any:
    """Loads a private key of any type that paramiko knows, with its certificate where there is one."""
    import paramiko

    failure: Exception = paramiko.SSHException("not a private key of a known type")
    for key_type in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            key = key_type.from_private_key_file(str(path), passphrase)
        except paramiko.PasswordRequiredException:
            raise
        except (paramiko.SSHException, ValueError, TypeError) as error:
            failure = paramiko.SSHException(str(error))
            continue
        certificate = path.with_name(path.name + "-cert.pub")
        if certificate.is_file():
            key.load_certificate(str(certificate))
        return key
    raise failure
