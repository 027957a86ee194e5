"""known_hosts files, with OpenSSH's ssh-keygen as the oracle."""

import shutil
import subprocess

import pytest

from edgepipe.device.known_hosts import KnownHosts, KnownKey, add_known_host, known_name
from edgepipe.errors import OutputError

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs OpenSSH's ssh-keygen")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    made = []
    for number, kind in enumerate(("ed25519", "ecdsa", "ed25519")):
        path = folder / f"key{number}"
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", path], check=True)
        made.append(KnownKey(*path.with_name(path.name + ".pub").read_text().split()[:2]))
    return made


def written(tmp_path, *lines):
    path = tmp_path / "known_hosts"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def line(names, key):
    return f"{names} {key.algorithm} {key.base64} a comment"


@pytest.mark.parametrize(("port", "name"), [(22, "board"), (2222, "[board]:2222")])
def test_names_stand_with_their_port(port, name):
    assert known_name("BOARD", port) == name


def test_keys_of_a_name_in_order(tmp_path, keys):
    path = written(
        tmp_path,
        "# a comment",
        "",
        line("other", keys[2]),
        line("board,10.0.0.7", keys[0]),
        line("board", keys[1]),
    )
    assert KnownHosts([path, tmp_path / "absent"]).keys_of("board") == (keys[0], keys[1])
    assert KnownHosts([path]).keys_of("10.0.0.7") == (keys[0],)
    assert KnownHosts([path]).keys_of("board2") == ()


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*.example.org", "a.example.org", True),
        ("*.example.org,!b.example.org", "b.example.org", False),
        ("!b.example.org,*.example.org", "b.example.org", False),
        ("10.0.0.?", "10.0.0.7", True),
        ("10.0.0.?", "10.0.0.17", False),
        ("[board]:2222", "[board]:2222", True),
        ("[board]:2222", "board", False),
        ("[bo]ard", "board", False),
        ("BOARD", "board", True),
        ("*", "[board]:2222", True),
    ],
)
def test_patterns(tmp_path, keys, pattern, name, matches):
    assert bool(KnownHosts([written(tmp_path, line(pattern, keys[0]))]).keys_of(name)) is matches


def test_names_that_openssh_hashed(tmp_path, keys):
    path = written(tmp_path, line("board", keys[0]), line("[board]:2222", keys[1]))
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", path], check=True, capture_output=True)
    assert "board" not in path.read_text()
    assert KnownHosts([path]).keys_of("board") == (keys[0],)
    assert KnownHosts([path]).keys_of("[board]:2222") == (keys[1],)


@pytest.mark.parametrize("hashed", [False, True])
def test_openssh_finds_what_is_added(tmp_path, keys, hashed):
    path = tmp_path / "new" / "known_hosts"
    add_known_host(path, "[board]:2222", keys[0], hashed=hashed)
    add_known_host(path, "second", keys[1], hashed=hashed)
    found = subprocess.run(
        ["ssh-keygen", "-F", "[board]:2222", "-f", path], check=True, capture_output=True, text=True
    )
    assert keys[0].base64 in found.stdout
    assert ("board" in path.read_text()) is not hashed
    assert KnownHosts([path]).keys_of("second") == (keys[1],)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_file_without_a_last_newline_is_continued_on_a_line_of_its_own(tmp_path, keys):
    path = tmp_path / "known_hosts"
    path.write_text(line("first", keys[0]))
    add_known_host(path, "second", keys[1])
    known = KnownHosts([path])
    assert (known.keys_of("first"), known.keys_of("second")) == ((keys[0],), (keys[1],))


def test_revoked_keys_are_no_keys(tmp_path, keys):
    known = KnownHosts([written(tmp_path, line("@revoked *", keys[0]), line("board", keys[1]))])
    assert known.keys_of("board") == (keys[1],)
    assert known.is_revoked("board", keys[0])
    assert not known.is_revoked("board", keys[1])


def test_certificate_authorities_are_no_host_keys(tmp_path, keys):
    assert KnownHosts([written(tmp_path, line("@cert-authority *", keys[0]))]).keys_of("board") == ()


def test_garbage_lines_are_passed_over(tmp_path, keys):
    path = written(
        tmp_path, "board", "board ssh-ed25519", "board ssh-ed25519 !!!", "|1|x|y ssh-ed25519 AAAA", "\xff"
    )
    path.write_bytes(path.read_bytes() + b"\xff\xfe\x00 x\n" + line("board", keys[0]).encode())
    assert KnownHosts([path]).keys_of("board") == (keys[0],)


def test_the_fingerprint_is_that_of_openssh(tmp_path, keys):
    for key in keys:
        path = tmp_path / "key.pub"
        path.write_text(f"{key.algorithm} {key.base64}\n")
        shown = subprocess.run(["ssh-keygen", "-lf", path], check=True, capture_output=True, text=True).stdout
        assert key.fingerprint == shown.split()[1]


def test_a_file_that_cannot_be_written(tmp_path, keys):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as error:
        add_known_host(tmp_path / "file" / "known_hosts", "board", keys[0])
    assert str(tmp_path / "file" / "known_hosts") == error.value.where
