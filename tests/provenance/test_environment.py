"""What changed between two environments, and digests of files."""

import hashlib

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.provenance import Change, Environment, changes, digest_path

BASE = Environment(
    edgepipe="0.1.0", code="a" * 64, python="CPython 3.11.7", system="Linux x86_64, glibc 2.36", cpu="CPU",
    cores=2, packages={"numpy": "2.4.6", "onnx": "1.23.2"},
)  # fmt: skip
TEXT = st.text(alphabet="abc123.", min_size=1, max_size=4)


def test_nothing_changed():
    assert changes(BASE, BASE) == ()


def test_what_is_likeliest_to_change_a_result_comes_first():
    packages = {"numpy": "2.4.7", "torch": "2.13.0", "a-tool": "1"}
    now = msgspec.structs.replace(BASE, code="b" * 64, cores=8, cpu="Other", packages=packages)
    assert changes(BASE, now) == (
        Change("edgepipe's sources", "a" * 12, "b" * 12),
        Change("numpy", "2.4.6", "2.4.7"),
        Change("onnx", "1.23.2", ""),
        Change("torch", "", "2.13.0"),
        Change("a-tool", "", "1"),
        Change("CPU", "CPU", "Other"),
        Change("cores", "2", "8"),
    )
    assert str(Change("torch", "", "2.13.0")) == "torch absent, now 2.13.0"


def test_another_version_of_edgepipe_says_it_all():
    now = msgspec.structs.replace(BASE, edgepipe="0.2.0", code="b" * 64)
    assert changes(BASE, now) == (Change("edgepipe", "0.1.0", "0.2.0"),)


@given(st.dictionaries(TEXT, TEXT), st.dictionaries(TEXT, TEXT))
def test_changes_turn_one_set_of_packages_into_the_other(then, now):
    found = changes(msgspec.structs.replace(BASE, packages=then), msgspec.structs.replace(BASE, packages=now))
    patched = dict(then)
    for change in found:
        assert patched.get(change.what, "") == change.then
        patched[change.what] = change.now
    assert {name: version for name, version in patched.items() if version} == now


def test_the_lock_is_what_pip_takes():
    assert BASE.lock() == "numpy==2.4.6\nonnx==1.23.2\n"


@given(st.binary(max_size=100))
def test_a_files_digest_is_that_of_sha256sum(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("files") / "file"
    path.write_bytes(data)
    assert digest_path(path) == hashlib.sha256(data).hexdigest()
    assert digest_path(path.parent) is None
    assert digest_path(path.parent / "absent") is None
