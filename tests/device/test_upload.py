"""Uploads: whole or not at all, resumed where they stopped, and clear when the disk is full."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from edgepipe.device.local import LocalTransport, clean_environment
from edgepipe.device.parcel import pack
from edgepipe.device.ssh import connect
from edgepipe.device.transport import Transport
from edgepipe.device.upload import ROOT, put, upload_of
from edgepipe.errors import BundleError, DeviceDiskFull, DeviceError, HostUnreachable
from edgepipe.model import digest_bytes


class Counted(Transport):
    """A transport that counts the bytes that programs are sent, and the programs."""

    def __init__(self, transport):
        self.description = transport.description
        self.programs = 0
        self.sent_bytes = 0
        self._transport = transport

    def open(self, argv):
        self.programs += 1
        channel = self._transport.open(argv)
        write = channel.write

        def counted(data):
            self.sent_bytes += len(data)
            write(data)

        channel.write = counted
        return channel

    def close(self):
        self._transport.close()


def part_of(root, remote):
    return root / f"{remote}.part"


def test_a_file_arrives_whole(place, tmp_path):
    transport, root = place
    data = os.urandom(1_000_001)
    source = tmp_path / "source"
    source.write_bytes(data)
    uploads = [
        upload_of(source, f"{ROOT}/a b/file"),
        upload_of(data[:7], f"{ROOT}/'quoted'"),
        upload_of(b"", f"{ROOT}/empty"),
    ]
    seen = []
    assert put(transport, uploads, progress=seen.append) == len(data) + 7
    assert (root / ROOT / "a b" / "file").read_bytes() == data
    assert (root / ROOT / "'quoted'").read_bytes() == data[:7]
    assert (root / ROOT / "empty").read_bytes() == b""
    assert seen == sorted(seen)
    assert seen[-1] == len(data) + 7
    assert len(seen) > 3
    assert not list(root.rglob("*.part"))


def test_what_is_there_is_not_sent_again(place):
    transport, _ = place
    uploads = [upload_of(os.urandom(50_000), f"{ROOT}/{name}") for name in "ab"]
    put(transport, uploads)
    counted = Counted(transport)
    seen = []
    assert put(counted, uploads, progress=seen.append) == 0
    assert counted.programs == 1
    assert counted.sent_bytes < 100
    assert seen[-1] == 100_000


def test_a_file_that_was_altered_there_is_replaced(place):
    transport, root = place
    upload = upload_of(b"right" * 1000, f"{ROOT}/file")
    put(transport, [upload])
    (root / ROOT / "file").write_bytes(b"wrong" * 1000)
    assert put(transport, [upload]) == 5000
    assert (root / ROOT / "file").read_bytes() == b"right" * 1000


def test_a_part_is_continued(place):
    transport, root = place
    data = os.urandom(500_000)
    upload = upload_of(data, f"{ROOT}/file")
    (root / ROOT).mkdir()
    part_of(root, upload.remote).write_bytes(data[:123_456])
    assert put(transport, [upload]) == len(data) - 123_456
    assert (root / ROOT / "file").read_bytes() == data


@pytest.mark.parametrize("part", [b"other" * 1000, b"x" * 600_000], ids=["of other contents", "too long"])
def test_a_part_of_something_else_is_not(place, part):
    transport, root = place
    data = os.urandom(500_000)
    upload = upload_of(data, f"{ROOT}/file")
    (root / ROOT).mkdir()
    part_of(root, upload.remote).write_bytes(part)
    assert put(transport, [upload]) == len(data)
    assert (root / ROOT / "file").read_bytes() == data
    assert not part_of(root, upload.remote).exists()


def test_a_part_that_is_complete_is_only_renamed(place):
    transport, root = place
    upload = upload_of(b"all of it", f"{ROOT}/file")
    (root / ROOT).mkdir()
    part_of(root, upload.remote).write_bytes(b"all of it")
    assert put(transport, [upload]) == 0
    assert (root / ROOT / "file").read_bytes() == b"all of it"


def test_a_cut_connection_resumes(device, cut_wire, tmp_path, no_process_names, marker):
    data = os.urandom(6_000_000)
    upload = upload_of(data, f"{ROOT}/{marker}")
    wire = cut_wire(device)
    with connect(wire.host(device), wire.options(device, tmp_path)) as transport:
        wire.cut_after = 3_000_000
        with pytest.raises(HostUnreachable, match="lost") as error:
            put(transport, [upload])
        assert "goes on" in error.value.remedy
    assert not (device.root / upload.remote).exists()
    assert no_process_names(marker)
    kept = part_of(device.root, upload.remote).stat().st_size
    assert 0 < kept < 4_000_000
    with connect(device.host, device.ssh_options) as transport:
        assert put(transport, [upload]) == len(data) - kept
    assert (device.root / upload.remote).read_bytes() == data


def test_ctrl_c_keeps_the_part_and_leaves_no_process(place, no_process_names, marker):
    transport, root = place
    data = os.urandom(4_000_000)
    upload = upload_of(data, f"{ROOT}/{marker}")
    part = part_of(root, upload.remote)

    def interrupt(done_bytes):
        if done_bytes > 1_000_000:
            while not (part.exists() and part.stat().st_size):
                time.sleep(0.01)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        put(transport, [upload], progress=interrupt)
    assert no_process_names(marker)
    assert not (root / upload.remote).exists()
    kept = part.read_bytes()
    assert data.startswith(kept)
    assert put(transport, [upload]) == len(data) - len(kept)
    assert (root / upload.remote).read_bytes() == data


class Altering(Counted):
    """A transport under which a byte of every large chunk changes on the way, so many times."""

    def __init__(self, transport, times):
        super().__init__(transport)
        self._times = times

    def open(self, argv):
        channel = super().open(argv)
        write = channel.write

        def altering(data):
            if len(data) > 10_000 and self._times:
                self._times -= 1
                data = b"\0" + data[1:]
            write(data)

        channel.write = altering
        return channel


def test_what_was_altered_on_the_way_is_sent_again(place):
    transport, root = place
    data = b"\1" * 100_000
    upload = upload_of(data, f"{ROOT}/file")
    put(Altering(transport, times=1), [upload])
    assert (root / upload.remote).read_bytes() == data


def test_what_is_altered_time_and_again_is_an_error(place):
    transport, root = place
    upload = upload_of(b"\1" * 100_000, f"{ROOT}/file")
    with pytest.raises(DeviceError, match="twice") as error:
        put(Altering(transport, times=5), [upload])
    assert upload.digest in error.value.got
    assert not (root / upload.remote).exists()


def test_a_source_that_is_gone(place, tmp_path):
    source = tmp_path / "source"
    with pytest.raises(BundleError, match="read"):
        upload_of(source, f"{ROOT}/file")
    source.write_bytes(b"x")
    upload = upload_of(source, f"{ROOT}/file")
    source.unlink()
    with pytest.raises(BundleError, match="read"):
        put(place[0], [upload])
    assert not (place[1] / upload.remote).exists()


# --- small files together ---------------------------------------------------------------------------


def small_files(count=20):
    return [upload_of(os.urandom(3000 + i), f"{ROOT}/few words/{i % 3}/{i}.bin") for i in range(count)]


def assert_arrived(root, uploads):
    assert all((root / upload.remote).read_bytes() == upload.source for upload in uploads)
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert there == {upload.remote for upload in uploads}


def test_small_files_travel_together(place):
    transport, root = place
    uploads = small_files()
    counted = Counted(transport)
    seen = []
    assert (
        put(counted, uploads, progress=seen.append)
        == seen[-1]
        == sum(upload.size_bytes for upload in uploads)
    )
    assert counted.programs == 2
    assert_arrived(root, uploads)


def test_only_those_that_lack_are_sent(place):
    transport, root = place
    uploads = small_files()
    put(transport, uploads[:15])
    (root / uploads[0].remote).write_bytes(b"altered")
    assert put(transport, uploads) == sum(upload.size_bytes for upload in [uploads[0], *uploads[15:]])
    assert_arrived(root, uploads)


def test_small_files_altered_on_the_way_are_sent_again(place):
    transport, root = place
    uploads = small_files()
    put(Altering(transport, times=1), uploads)
    assert_arrived(root, uploads)


def test_small_files_to_a_device_without_tar(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cat", "cut", "df", "dirname", "grep", "mkdir", "mv", "rm", "sha256sum", "tail", "wc"):
        (tools / name).symlink_to(shutil.which(name))
    environment = clean_environment(tmp_path / "home") | {"PATH": str(tools)}
    uploads = small_files(3)
    with LocalTransport(tmp_path / "home", environment) as transport:
        put(transport, uploads)
    assert_arrived(tmp_path / "home", uploads)


def test_small_files_cut_on_the_way_leave_nothing(device, cut_wire, tmp_path, no_process_names):
    uploads = [upload_of(os.urandom(200_000), f"{ROOT}/{i}") for i in range(20)]
    wire = cut_wire(device)
    with connect(wire.host(device), wire.options(device, tmp_path)) as transport:
        wire.cut_after = 3_000_000
        with pytest.raises(HostUnreachable, match="lost"):
            put(transport, uploads)
    parcel = pack({upload.remote: upload.source for upload in uploads})
    assert no_process_names(f"{ROOT}/parcel-{digest_bytes(parcel)[:12]}")
    assert not [path for path in device.root.rglob("*") if path.is_file()]
    with connect(device.host, device.ssh_options) as transport:
        put(transport, uploads)
    assert_arrived(device.root, uploads)


def test_small_files_that_fill_the_disk(tiny_disk):
    uploads = small_files()
    other = tiny_disk.root / ROOT / "other"
    with connect(tiny_disk.host, tiny_disk.ssh_options) as transport, pytest.raises(DeviceDiskFull) as error:
        put(_Hooked(transport, lambda _: other.write_bytes(bytes(230_000))), uploads)
    assert "No space left" in error.value.got
    assert list((tiny_disk.root / ROOT).iterdir()) == [other]


def test_a_parcel_has_the_same_bytes_each_time():
    files = {"b/long" + "x" * 150: b"1", "a": b""}
    assert pack(files) == pack(dict(files))
    assert pack(files) != pack({"a": b"", "c": b"1"})


# --- a device without room --------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(device):
    """The device, its ~/.edgepipe being a file system of 256 KiB."""
    folder = device.root / ROOT
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield device
    subprocess.run(["umount", folder], check=True)


def test_a_disk_too_small_is_told_before_anything_is_sent(tiny_disk):
    with connect(tiny_disk.host, tiny_disk.ssh_options) as transport:
        counted = Counted(transport)
        uploads = [upload_of(os.urandom(200_000), f"{ROOT}/{name}") for name in "ab"]
        with pytest.raises(DeviceDiskFull) as error:
            put(counted, uploads)
    assert "391 KiB needed" in error.value.got
    assert "256 KiB free" in error.value.got
    assert counted.sent_bytes < 100
    assert not list((tiny_disk.root / ROOT).iterdir())


def test_a_disk_that_fills_up_on_the_way(tiny_disk):
    upload = upload_of(os.urandom(200_000), f"{ROOT}/file")

    def fill(done_bytes):
        (tiny_disk.root / ROOT / "other").write_bytes(bytes(140_000))

    with connect(tiny_disk.host, tiny_disk.ssh_options) as transport:
        (tiny_disk.root / ROOT / "other").write_bytes(bytes(20_000))
        slow = _Hooked(transport, fill)
        with pytest.raises(DeviceDiskFull) as error:
            put(slow, [upload])
    assert "No space left" in error.value.got
    assert "free" in error.value.got
    assert [entry.name for entry in (tiny_disk.root / ROOT).iterdir()] == ["other"]


class _Hooked(Counted):
    """Calls a function before the first large chunk is sent."""

    def __init__(self, transport, hook):
        super().__init__(transport)
        self._hook = hook

    def open(self, argv):
        channel = super().open(argv)
        write = channel.write

        def hooked(data):
            if len(data) > 10_000:
                self._hook(0)
            write(data)

        channel.write = hooked
        return channel


def test_a_limit_on_file_sizes_is_a_full_disk_too(tmp_path):
    home = tmp_path / "home"
    home.mkdir()

    class Limited(LocalTransport):
        def open(self, argv):
            return super().open(["sh", "-c", 'ulimit -f 128; exec "$@"', "sh", *argv])

    upload = upload_of(os.urandom(300_000), f"{ROOT}/file")
    with Limited(home) as transport, pytest.raises(DeviceDiskFull):
        put(transport, [upload])
    assert not list((home / ROOT).iterdir())


def test_a_home_that_cannot_be_written(place):
    transport, root = place
    (root / ROOT).write_text("a file is in the way")
    with pytest.raises(DeviceError) as error:
        put(transport, [upload_of(b"x", f"{ROOT}/file")])
    assert type(error.value) is DeviceError
    assert "File exists" in error.value.got


def test_a_device_with_busybox_only(tmp_path):
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs busybox")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in (
        "sh",
        "cat",
        "cut",
        "df",
        "dirname",
        "grep",
        "mkdir",
        "mv",
        "rm",
        "sha256sum",
        "tail",
        "tar",
        "wc",
    ):
        (tools / name).symlink_to(busybox)
    environment = clean_environment(tmp_path / "home") | {"PATH": str(tools)}
    data = os.urandom(300_000)
    with LocalTransport(tmp_path / "home", environment) as transport:
        assert put(transport, [upload_of(data, f"{ROOT}/file")]) == len(data)
        assert put(transport, [upload_of(data, f"{ROOT}/file")]) == 0
        assert (tmp_path / "home" / ROOT / "file").read_bytes() == data
        (tmp_path / "home" / ROOT / "file").unlink()
        counted = Counted(transport)
        uploads = small_files()
        put(counted, uploads)
        assert counted.programs == 2
    assert_arrived(tmp_path / "home", uploads)
