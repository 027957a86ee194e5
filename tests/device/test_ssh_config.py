"""~/.ssh/config, with OpenSSH's own `ssh -G` as the oracle."""

import getpass
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgepipe.device.ssh_config import SshOptions, resolve
from edgepipe.errors import UsageError
from edgepipe.host import Host, parse_host

CONFIG = """
# boards
Include {folder}/more
Host jetson orin
    HostName 10.0.0.7
    User nvidia
    Port 2222
    IdentityFile {folder}/id_board
    IdentityFile {folder}/%r-%h
Host *.lab !secret.lab
    HostName %h.example.org
    ProxyJump gate,inner@second:2200
Host secret.lab
    User nobody
    ProxyCommand nc %h %p -- %r
Include {folder}/hidden
Host "pi"
    Port=2223
    User pi
Host *
    User everybody
"""
MORE = """
Host included
    Port 2244
    User included
"""


@pytest.fixture
def options(tmp_path):
    (tmp_path / "config").write_text(CONFIG.format(folder=tmp_path))
    (tmp_path / "more").write_text(MORE)
    (tmp_path / "hidden").write_text("Host hidden secret.lab\n Port 2255\n")
    return SshOptions(config_path=tmp_path / "config", use_agent=False)


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs OpenSSH's ssh")
@pytest.mark.parametrize(
    "name", ["jetson", "orin", "a.lab", "secret.lab", "included", "hidden", "pi", "other", "10.1.2.3"]
)
def test_the_configuration_means_what_it_means_to_openssh(options, name):
    shown = subprocess.run(
        ["ssh", "-G", "-F", options.config_path, name], check=True, capture_output=True, text=True
    )
    said = dict(line.split(" ", 1) for line in shown.stdout.splitlines() if " " in line)
    route = resolve(parse_host(name), options)
    assert (route.hostname, route.port, route.user) == (said["hostname"], int(said["port"]), said["user"])
    jumps = said.get("proxyjump")
    assert [str(jump) for jump in route.jumps] == (jumps.split(",") if jumps else [])
    tokens = {"%h": route.hostname, "%p": str(route.port), "%r": route.user}
    command = said.get("proxycommand", "")
    assert route.proxy_command == re.sub("%[hpr]", lambda token: tokens[token[0]], command)


def test_key_files_of_the_configuration(options, tmp_path):
    route = resolve(Host(hostname="jetson"), options)
    assert route.identity_files == (tmp_path / "id_board", tmp_path / "nvidia-10.0.0.7")


def test_keys_named_by_hand_come_first(options, tmp_path):
    host = Host(hostname="jetson", identity_files=("/keys/mine",))
    with_option = SshOptions(config_path=options.config_path, identity_files=(Path("/keys/option"),))
    assert resolve(host, with_option).identity_files[:3] == (
        Path("/keys/mine"),
        Path("/keys/option"),
        tmp_path / "id_board",
    )


def test_without_any_the_default_keys_beside_the_configuration(options, tmp_path):
    assert tmp_path / "id_ed25519" in resolve(Host(hostname="pi"), options).identity_files


def test_the_host_itself_goes_before_the_configuration(options):
    route = resolve(Host(hostname="secret.lab", user="me", port=99), options)
    assert (route.user, route.port) == ("me", 99)
    assert route.proxy_command == "nc secret.lab 99 -- me"


def test_no_configuration_at_all(tmp_path):
    route = resolve(Host(hostname="board"), SshOptions(config_path=tmp_path / "absent"))
    assert (route.hostname, route.port, route.user, route.jumps) == ("board", 22, getpass.getuser(), ())
    assert route.known_hosts[0] == tmp_path / "known_hosts"


def test_known_hosts_and_its_name(tmp_path):
    (tmp_path / "config").write_text(
        "Host a\n HostKeyAlias Board-A\n HashKnownHosts yes\n"
        f" UserKnownHostsFile {tmp_path}/one {tmp_path}/two\n"
    )
    route = resolve(Host(hostname="a", port=2222), SshOptions(config_path=tmp_path / "config"))
    assert route.known_name == "board-a"
    assert route.known_hosts[:2] == (tmp_path / "one", tmp_path / "two")
    assert route.hash_known_hosts
    other = resolve(Host(hostname="b", port=2222), SshOptions(config_path=tmp_path / "config"))
    assert other.known_name == "[b]:2222"


@pytest.mark.parametrize("text", ["Host\n", "Port twentytwo\n", "ProxyJump a b c\n"])
def test_a_malformed_configuration_is_one_clear_error(tmp_path, text):
    (tmp_path / "config").write_text(text)
    with pytest.raises(UsageError):
        resolve(Host(hostname="board"), SshOptions(config_path=tmp_path / "config"))


def test_files_that_include_each_other_come_to_an_end(tmp_path):
    (tmp_path / "config").write_text(f"Include {tmp_path}/config\nHost board\n User pi\n")
    assert resolve(Host(hostname="board"), SshOptions(config_path=tmp_path / "config")).user == "pi"
