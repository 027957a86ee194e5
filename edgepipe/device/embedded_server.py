"""The SSH server of the embedded device: ``python -m edgepipe.device.embedded_server``.

Reads one line of JSON (`Settings`) on standard input, answers with one (`Address`) on standard output,
and serves until standard input ends, which it does when the process that started it ends.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from edgepipe.device.local import clean_environment

USER = "edgepipe"
_GRACE_S = 2.0
_CHUNK_BYTES = 1 << 18


class Settings(msgspec.Struct, frozen=True):
    """What the server needs to know.

    Attributes:
        root: Folder that commands start in, and their HOME.
        keys: Folder that the server fills with keys, and removes at its end.
        temporary: Remove `root` too: it was made for this server.
    """

    root: str
    keys: str
    temporary: bool = False


class Address(msgspec.Struct, frozen=True):
    """Where the server listens: a port of 127.0.0.1."""

    port: int


def main() -> None:
    """Serves until standard input ends, or a signal says so."""
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=Settings)
    try:
        asyncio.run(_serve(settings))
    finally:
        shutil.rmtree(settings.keys, ignore_errors=True)
        if settings.temporary:  # whoever made it may have been killed
            shutil.rmtree(settings.root, ignore_errors=True)


async def _serve(settings: Settings) -> None:
    import asyncssh

    keys = Path(settings.keys)
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    user_key = asyncssh.generate_private_key("ssh-ed25519", comment="edgepipe embedded device")
    (keys / "id_ed25519").touch(0o600)
    user_key.write_private_key(keys / "id_ed25519")
    public_key = user_key.convert_to_public()
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=lambda: _one_user(public_key),
        server_host_keys=[host_key],
        process_factory=lambda process: _execute(process, Path(settings.root)),
        encoding=None,
        allow_scp=False,
    )
    port = server.get_port()
    public_line = host_key.export_public_key().decode().strip()
    (keys / "known_hosts").write_text(f"[127.0.0.1]:{port} {public_line}\n")
    sys.stdout.write(msgspec.json.encode(Address(port)).decode() + "\n")
    sys.stdout.flush()
    await _end_of_service()
    server.close()


def _one_user(public_key: Any) -> Any:
    import asyncssh

    class OneUser(asyncssh.SSHServer):
        """Lets the one user in, with the one key."""

        def begin_auth(self, username: str) -> bool:  # noqa: ARG002 -- the name is asyncssh's
            return True

        def public_key_auth_supported(self) -> bool:
            return True

        def validate_public_key(self, username: str, key: Any) -> bool:
            return username == USER and key == public_key

    return OneUser()


async def _execute(process: Any, root: Path) -> None:
    """Runs the command of one session by the shell, and ends all of it with the session."""
    if process.command is None:
        process.stderr.write(b"the embedded device runs commands; it has no interactive shell\n")
        process.exit(1)
        return
    environment = {**clean_environment(root), "EDGEPIPE_EMBEDDED": "1"}
    program = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        process.command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=root,
        env=environment,
        start_new_session=True,
    )
    hung_up = asyncio.ensure_future(process.wait_closed())
    feeding = asyncio.ensure_future(_pump(process.stdin, program.stdin))
    finished = asyncio.ensure_future(_finish(process, program))
    try:
        await asyncio.wait({hung_up, finished}, return_when=asyncio.FIRST_COMPLETED)
        if finished.done():
            _report_status(process, finished.result())
        else:  # as with any SSH server, a program gets what was sent, then the end of its input
            await asyncio.wait({feeding}, timeout=_GRACE_S)
            await asyncio.wait({finished}, timeout=_GRACE_S)
    finally:
        feeding.cancel()
        finished.cancel()
        await _end(program)


async def _finish(process: Any, program: Any) -> int:
    """Passes both outputs on to their ends, then gives the program's status."""
    await asyncio.gather(_pump(program.stdout, process.stdout), _pump(program.stderr, process.stderr))
    return int(await program.wait())


def _report_status(process: Any, status: int) -> None:
    if status < 0:
        process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
    else:
        process.exit(status)


async def _pump(source: Any, sink: Any) -> None:
    """Copies until the source ends or the sink no longer takes anything; then closes the sink."""
    import asyncssh

    try:
        while data := await source.read(_CHUNK_BYTES):
            sink.write(data)
            await sink.drain()
    except (OSError, asyncssh.Error):
        pass  # whoever was at the other end is gone; the session's end is told by its status
    if isinstance(sink, asyncio.StreamWriter):
        sink.close()


async def _end(program: Any) -> None:
    """Gives what still runs of the session the hang-up that a terminal gives, then ends it."""
    for signum in (signal.SIGHUP, signal.SIGKILL):
        try:
            os.killpg(program.pid, signum)
        except ProcessLookupError:
            return
        try:
            await asyncio.wait_for(program.wait(), _GRACE_S)
        except TimeoutError:
            continue


async def _end_of_service() -> None:
    """Waits for the end of standard input, SIGTERM or SIGINT; open sessions are ended after it."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, reader.feed_eof)
    await reader.read()


if __name__ == "__main__":
    main()
