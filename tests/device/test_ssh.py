"""Connecting, host keys, logging in, and every way in which that can fail."""

import contextlib
import getpass
import itertools
import os
import shutil
import socket
import subprocess
import threading
import time

import msgspec
import pytest

from edgepipe.device.known_hosts import KnownHosts
from edgepipe.device.ssh import connect
from edgepipe.errors import AuthenticationFailed, HostKeyChanged, HostKeyUnknown, HostUnreachable, UsageError
from edgepipe.host import Host, parse_host

SECRET = "correct-horse-battery"


def changed(device, **fields):
    return msgspec.structs.replace(device.ssh_options, **fields)


def assert_works(host, options):
    with connect(host, options) as transport:
        assert transport.check(["echo", "in"]) == b"in\n"


# --- reaching the host ------------------------------------------------------------------------------


def test_a_name_that_nobody_knows():
    with pytest.raises(HostUnreachable, match="name") as error:
        connect(parse_host("pi@no-such-board.invalid"))
    assert error.value.where == "no-such-board.invalid"


def test_a_port_where_nobody_listens(device):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(HostUnreachable, match="refuses"):
        connect(Host(hostname="127.0.0.1", port=port), device.ssh_options)


def test_a_host_that_never_answers(device):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with contextlib.ExitStack() as queue:  # a queue of waiting connections that is full drops new ones
            for _ in range(3):
                waiting = queue.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(full.getsockname())
            with pytest.raises(HostUnreachable, match="does not answer"):
                connect(
                    Host(hostname="127.0.0.1", port=full.getsockname()[1]),
                    changed(device, connect_timeout_s=0.3),
                )


def speaks(greeting):
    """A server on the loopback that says one thing and hangs up."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                with client:
                    client.sendall(greeting)
                    client.recv(1000)

    threading.Thread(target=serve, daemon=True).start()
    return server


@pytest.mark.parametrize(
    "greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", b"\x00\xff" * 100]
)
def test_a_server_that_is_not_ssh(device, greeting):
    with speaks(greeting) as server, pytest.raises(HostUnreachable, match="no SSH server"):
        connect(
            Host(hostname="127.0.0.1", port=server.getsockname()[1]), changed(device, connect_timeout_s=1)
        )


def test_a_server_that_says_nothing_at_all(device):
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(HostUnreachable, match="no SSH server"),
    ):
        connect(
            Host(hostname="127.0.0.1", port=server.getsockname()[1]), changed(device, connect_timeout_s=0.5)
        )


# --- host keys --------------------------------------------------------------------------------------


def test_a_known_host_lets_in(device):
    assert_works(device.host, device.ssh_options)


def test_an_unknown_host_is_refused_with_its_fingerprint(device, tmp_path):
    options = changed(device, known_hosts_path=tmp_path / "known_hosts")
    with pytest.raises(HostKeyUnknown) as error:
        connect(device.host, options)
    key = KnownHosts([device.ssh_options.known_hosts_path]).keys_of(f"[127.0.0.1]:{device.host.port}")[0]
    assert key.fingerprint in error.value.got
    assert "--accept-new-host-key" in error.value.remedy
    assert not (tmp_path / "known_hosts").exists()


def test_an_unknown_host_is_remembered_when_told_so(device, tmp_path):
    options = changed(device, known_hosts_path=tmp_path / "known_hosts", accept_new_host_key=True)
    assert_works(device.host, options)
    remembered = (tmp_path / "known_hosts").read_text()
    assert_works(device.host, msgspec.structs.replace(options, accept_new_host_key=False))
    assert_works(device.host, options)
    assert (tmp_path / "known_hosts").read_text() == remembered


def test_names_are_hidden_where_the_configuration_says_so(device, tmp_path):
    (tmp_path / "config").write_text("HashKnownHosts yes\n")
    options = changed(
        device,
        config_path=tmp_path / "config",
        known_hosts_path=tmp_path / "known_hosts",
        accept_new_host_key=True,
    )
    assert_works(device.host, options)
    assert "127.0.0.1" not in (tmp_path / "known_hosts").read_text()
    assert_works(device.host, msgspec.structs.replace(options, accept_new_host_key=False))


@pytest.mark.parametrize("accept", [False, True])
@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_changed_host_key_is_always_refused(device, tmp_path, accept, kind, keygen):
    other = keygen(tmp_path / "other", kind=kind).with_name("other.pub").read_text()
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{device.host.port} {other}")
    before = known_hosts.read_text()
    with pytest.raises(HostKeyChanged) as error:
        connect(device.host, changed(device, known_hosts_path=known_hosts, accept_new_host_key=accept))
    assert "ssh-keygen -R" in error.value.remedy
    assert known_hosts.read_text() == before


def test_a_revoked_host_key_is_refused(device, tmp_path):
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text("@revoked " + device.ssh_options.known_hosts_path.read_text())
    with pytest.raises(HostKeyChanged, match="revoked"):
        connect(device.host, changed(device, known_hosts_path=known_hosts, accept_new_host_key=True))


def test_the_key_type_that_is_known_is_asked_for(start_openssh, tmp_path, keygen):
    rsa = keygen(tmp_path / "rsa_host", kind="rsa")
    server = start_openssh(HostKey=f"{tmp_path}/rsa_host\nHostKey {tmp_path}/sshd0/host_key")
    (server.folder / "known_hosts").write_text(
        f"[127.0.0.1]:{server.port} {rsa.with_suffix('.pub').read_text()}"
    )
    assert_works(server.host, server.ssh_options)
    server.write_known_hosts()
    assert_works(server.host, server.ssh_options)


# --- logging in -------------------------------------------------------------------------------------


def test_a_wrong_key(device, tmp_path, keygen):
    wrong = keygen(tmp_path / "wrong_key")
    with pytest.raises(AuthenticationFailed) as error:
        connect(device.host, changed(device, identity_files=(wrong,)))
    assert "key wrong_key" in error.value.got
    assert "publickey" in error.value.got


def test_a_wrong_user(embedded):
    with pytest.raises(AuthenticationFailed):
        connect(msgspec.structs.replace(embedded.host, user="root"), embedded.ssh_options)


def test_no_key_at_all(device, tmp_path):
    options = changed(device, identity_files=(tmp_path / "absent",), config_path=tmp_path / "config")
    with pytest.raises(AuthenticationFailed, match="nobody"):
        connect(device.host, options)


def test_a_key_that_is_none(device, tmp_path):
    (tmp_path / "bad_key").write_text("no key\n")
    with pytest.raises(AuthenticationFailed) as error:
        connect(device.host, changed(device, identity_files=(tmp_path / "bad_key",)))
    assert "bad_key" in error.value.got


def test_a_wrong_key_before_the_right_one(openssh, tmp_path, keygen):
    wrong = keygen(tmp_path / "wrong_key")
    assert_works(openssh.host, changed(openssh, identity_files=(wrong, tmp_path / "absent", openssh.key)))


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_an_encrypted_key_asks_for_its_passphrase(openssh, tmp_path, kind, keygen):
    key = keygen(tmp_path / "locked_key", kind=kind, passphrase=SECRET)
    with authorized(openssh, key):
        asked = []

        def prompt(text):
            asked.append(text)
            return SECRET

        assert_works(openssh.host, changed(openssh, identity_files=(key,), prompt=prompt))
        assert asked == ["passphrase of locked_key: "]
        for wrong_prompt, said in (
            (None, "nobody can be asked"),
            (lambda text: "wrong", "passphrase was wrong"),
        ):
            with pytest.raises(AuthenticationFailed) as error:
                connect(openssh.host, changed(openssh, identity_files=(key,), prompt=wrong_prompt))
            assert said in error.value.got
            assert f"ssh-add {key}" in error.value.remedy
            assert SECRET not in repr(error.value) + str(error.value)


@contextlib.contextmanager
def authorized(server, key):
    """Lets a further key in for a while."""
    path = server.folder / "authorized_keys"
    before = path.read_text()
    path.write_text(before + key.with_name(key.name + ".pub").read_text())
    yield
    path.write_text(before)


@pytest.fixture
def ssh_agent(tmp_path, monkeypatch):
    """A running ssh-agent; gives a function that hands it a key and takes the key's file away."""
    if shutil.which("ssh-agent") is None:
        pytest.skip("needs ssh-agent")
    address = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", address], stdout=subprocess.DEVNULL)
    while not address.exists():
        time.sleep(0.01)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(address))

    def add(key):
        subprocess.run(["ssh-add", "-q", key], check=True)

    yield add
    agent.terminate()
    agent.wait()


def test_a_key_of_the_agent(device, ssh_agent, tmp_path):
    key = tmp_path / "moved_key"
    shutil.copy(device.ssh_options.identity_files[0], key)
    key.chmod(0o600)
    ssh_agent(key)
    key.unlink()
    options = changed(device, identity_files=(), config_path=tmp_path / "config", use_agent=True)
    assert_works(device.host, options)
    with pytest.raises(AuthenticationFailed):
        connect(device.host, msgspec.structs.replace(options, use_agent=False))


def test_the_agent_spares_the_passphrase(openssh, ssh_agent, tmp_path, keygen):
    plain = keygen(tmp_path / "key")
    ssh_agent(plain)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-N", SECRET, "-P", "", "-f", plain], check=True, capture_output=True
    )
    with authorized(openssh, plain):
        assert_works(openssh.host, changed(openssh, identity_files=(plain,), use_agent=True))


def test_an_agent_that_is_gone_is_no_error(device, monkeypatch, tmp_path):
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "gone"))
    assert_works(device.host, changed(device, use_agent=True))


class PasswordServer:
    """An SSH server that takes a password, as a board fresh from its image does."""

    def __init__(self, methods):
        import paramiko

        server = self

        class Interface(paramiko.ServerInterface):
            def get_allowed_auths(self, username):
                return methods

            def check_auth_password(self, username, password):
                server.tries.append(password)
                return paramiko.AUTH_SUCCESSFUL if password == SECRET else paramiko.AUTH_FAILED

            def check_auth_interactive(self, username, submethods):
                return paramiko.InteractiveQuery("", "", ("Password: ", False))

            def check_auth_interactive_response(self, responses):
                server.tries += responses
                return paramiko.AUTH_SUCCESSFUL if responses == [SECRET] else paramiko.AUTH_FAILED

        self.tries = []
        self._interface = Interface
        self._key = paramiko.ECDSAKey.generate()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._transports = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        import paramiko

        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                transport = paramiko.Transport(client)
                transport.add_server_key(self._key)
                self._transports.append(transport)
                with contextlib.suppress(paramiko.SSHException, EOFError):
                    transport.start_server(server=self._interface())

    def close(self):
        self._listener.close()
        for transport in self._transports:
            transport.close()


@pytest.fixture
def password_server():
    """Starts a `PasswordServer` that allows certain methods."""
    servers = []

    def start(methods):
        servers.append(PasswordServer(methods))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def password_options(embedded, tmp_path, prompt):
    return changed(
        embedded,
        config_path=tmp_path / "config",
        known_hosts_path=tmp_path / "known_hosts",
        accept_new_host_key=True,
        identity_files=(),
        prompt=prompt,
    )


@pytest.mark.parametrize("methods", ["password", "keyboard-interactive", "publickey,password"])
def test_a_password_by_prompt(embedded, password_server, tmp_path, methods):
    server = password_server(methods)
    answers = iter(["first try", SECRET])
    asked = []

    def prompt(text):
        asked.append(text)
        return next(answers)

    host = Host(hostname="127.0.0.1", user="pi", port=server.port)
    with connect(host, password_options(embedded, tmp_path, prompt)) as transport:
        shown = repr(transport) + repr(vars(transport)) + transport.description
    assert server.tries == ["first try", SECRET]
    assert all(f"pi@127.0.0.1:{server.port}" in text for text in asked)
    assert SECRET not in shown


@pytest.mark.parametrize("methods", ["password", "keyboard-interactive"])
def test_questions_are_asked_where_ctrl_c_arrives(embedded, password_server, tmp_path, methods):
    server = password_server(methods)

    def prompt(text):
        assert threading.current_thread() is threading.main_thread()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        connect(
            Host(hostname="127.0.0.1", user="pi", port=server.port),
            password_options(embedded, tmp_path, prompt),
        )
    assert not any(server.tries)


@pytest.mark.parametrize("methods", ["password", "keyboard-interactive"])
def test_wrong_passwords_stay_secret(embedded, password_server, tmp_path, methods):
    server = password_server(methods)
    host = Host(hostname="127.0.0.1", user="pi", port=server.port)
    with pytest.raises(AuthenticationFailed) as error:
        connect(host, password_options(embedded, tmp_path, lambda text: "not-the-secret"))
    assert 1 <= len(server.tries) <= 3
    chain = error.value
    while chain is not None:
        assert "not-the-secret" not in str(chain) + repr(chain)
        chain = chain.__cause__ or chain.__context__
    assert "password" in error.value.got or "keyboard-interactive" in error.value.got


def test_nobody_is_asked_where_nobody_can_answer(embedded, password_server, tmp_path):
    server = password_server("password")
    with pytest.raises(AuthenticationFailed, match="nobody can be asked"):
        connect(
            Host(hostname="127.0.0.1", user="pi", port=server.port),
            password_options(embedded, tmp_path, None),
        )
    assert server.tries == []


def test_nobody_is_asked_in_vain(openssh, tmp_path, keygen):
    wrong = keygen(tmp_path / "wrong_key")
    options = changed(openssh, identity_files=(wrong,), prompt=lambda text: pytest.fail("asked for " + text))
    with pytest.raises(AuthenticationFailed):
        connect(openssh.host, options)


# --- by way of others -------------------------------------------------------------------------------


def jump_options(openssh, tmp_path, text):
    (tmp_path / "config").write_text(text.format(port=openssh.port, user=getpass.getuser(), key=openssh.key))
    return changed(openssh, config_path=tmp_path / "config", identity_files=())


JUMPS = """
Host gate
    HostName 127.0.0.1
    HostKeyAlias [127.0.0.1]:{port}
Host second
    HostName localhost
    HostKeyAlias [127.0.0.1]:{port}
    ProxyJump gate
Host board
    HostName 127.0.0.1
    ProxyJump {{jump}}
Host loop
    ProxyJump loop
Host far
    HostName 127.0.0.1
    Port 1
    ProxyJump gate
Host *
    Port {port}
    User {user}
    IdentityFile {key}
"""


@pytest.mark.parametrize("jump", ["gate", "second", "gate,second", "none"])
def test_jump_hosts(openssh, tmp_path, jump):
    options = jump_options(openssh, tmp_path, JUMPS.replace("{{jump}}", jump))
    with connect(parse_host("board"), options) as transport:
        assert transport.check(["echo", "in"]) == b"in\n"
        peers = transport.check(["sh", "-c", "echo $SSH_CONNECTION"]).decode().split()
        links = transport._links
        assert all(link.sock.get_transport() is before for before, link in itertools.pairwise(links))
        assert len(links) == {"gate": 2, "second": 3, "gate,second": 3, "none": 1}[jump]
    assert peers[3] == str(openssh.port)


def test_an_upload_through_a_jump_host(openssh, tmp_path):
    options = jump_options(openssh, tmp_path, JUMPS.replace("{{jump}}", "gate"))
    data = os.urandom(3_000_000)
    with connect(parse_host("board"), options) as transport:
        assert transport.run(["cat"], stdin=data).stdout == data


def test_jump_hosts_in_a_circle(openssh, tmp_path):
    with pytest.raises(UsageError, match="circle"):
        connect(parse_host("loop"), jump_options(openssh, tmp_path, JUMPS))


def test_a_jump_host_that_cannot_reach_the_device(openssh, tmp_path):
    with pytest.raises(HostUnreachable, match="jump host"):
        connect(parse_host("far"), jump_options(openssh, tmp_path, JUMPS))


def test_a_jump_host_whose_key_is_unknown(openssh, tmp_path):
    options = jump_options(
        openssh,
        tmp_path,
        JUMPS.replace("{{jump}}", "gate").replace(
            "    HostKeyAlias [127.0.0.1]:{port}\n", "    HostKeyAlias other\n"
        ),
    )
    with pytest.raises(HostKeyUnknown) as error:
        connect(parse_host("board"), options)
    assert error.value.exit_code == 43


RELAY = """
import socket, sys, threading
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def pump():
    while data := sys.stdin.buffer.raw.read(65536):
        link.sendall(data)
threading.Thread(target=pump, daemon=True).start()
while data := link.recv(65536):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
"""


def test_a_proxy_command(device, tmp_path, no_process_names):
    (tmp_path / "relay-marker.py").write_text(RELAY)
    (tmp_path / "config").write_text(f"ProxyCommand python3 {tmp_path}/relay-marker.py %p\n")
    assert_works(device.host, changed(device, config_path=tmp_path / "config"))
    assert no_process_names(f"{tmp_path}/relay-marker.py")


def test_a_proxy_command_that_fails(device, tmp_path):
    (tmp_path / "config").write_text("ProxyCommand no-such-program %h\n")
    with pytest.raises(HostUnreachable):
        connect(device.host, changed(device, config_path=tmp_path / "config", connect_timeout_s=2))


def test_connections_leave_no_thread_behind(device):
    before = threading.active_count()
    for _ in range(3):
        assert_works(device.host, device.ssh_options)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before
