"""edgepipe.toml: what is written can be read, and every mistake is named with its line."""

import re
from pathlib import Path

import msgspec
import pytest

from edgepipe import errors
from edgepipe.preprocess import Preprocessing
from edgepipe.project import (
    HostEntry,
    Project,
    find_project,
    load_project,
    project_text,
    write_project,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "edgepipe.toml"


def test_find(path):
    assert find_project(path.parent) is None
    path.write_text("")
    assert find_project(path.parent) == path


def test_empty_file_is_a_project_of_defaults(path):
    path.write_text("")
    assert load_project(path) == Project()


def test_what_init_writes_can_be_read(path):
    write_project(path, model="net.onnx", target="jetson", data="val.npz", host="nvidia@10.0.0.7:2222")
    project = load_project(path)
    assert project == Project(
        model=str(path.parent / "net.onnx"),
        target="jetson",
        data=str(path.parent / "val.npz"),
        host="board",
        hosts={"board": HostEntry(address="10.0.0.7", port=2222, user="nvidia")},
    )


def test_init_without_arguments_sets_nothing(path):
    write_project(path)
    assert load_project(path) == Project()


def test_template_shows_every_key_and_each_example_is_valid(path):
    uncommented = re.sub(r"(?m)^# (?=\w+ = |\[)", "", project_text())
    path.write_text(uncommented)
    project = load_project(path)
    for record in (project, project.preprocessing, project.hosts["board"]):
        for field in msgspec.structs.fields(record):
            assert re.search(rf"(?m)^{field.name} = |^\[{field.name}[.\]]", uncommented), field.name
            assert getattr(record, field.name) is not None
    assert project.preprocessing.crop == 224


@pytest.mark.parametrize(
    ("text", "address", "port", "user"),
    [
        ("pi@raspberrypi.local", "raspberrypi.local", None, "pi"),
        ("board", "board", None, None),
        ("root@[fe80::1]:22", "fe80::1", 22, "root"),
    ],
)
def test_init_understands_hosts(path, text, address, port, user):
    write_project(path, host=text)
    assert load_project(path).hosts["board"] == HostEntry(address=address, port=port, user=user)


@pytest.mark.parametrize("text", ["", "a b", "user@", "host:port", "pi@h:99999", "pi:secret@h"])
def test_init_refuses_what_is_no_host(path, text):
    with pytest.raises(errors.UsageError):
        write_project(path, host=text)
    assert not list(path.parent.iterdir())


def test_init_refuses_what_is_no_target(path):
    with pytest.raises(errors.TargetError):
        write_project(path, target="nope")
    assert not list(path.parent.iterdir())


def test_odd_characters_survive(path):
    write_project(path, model='a "quoted" \\ näme\t.onnx')
    assert Path(load_project(path).model).name == 'a "quoted" \\ näme\t.onnx'


def test_init_does_not_overwrite(path):
    path.write_text("seed = 3")
    with pytest.raises(errors.ProjectError, match="there already"):
        write_project(path)
    assert path.read_text() == "seed = 3"
    assert list(path.parent.iterdir()) == [path]


def test_init_in_a_folder_that_is_not_there(path):
    with pytest.raises(errors.OutputError):
        write_project(path.parent / "none" / "edgepipe.toml")


def test_paths_start_at_the_file(path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    path.write_text(
        'model = "nets/net.py:make"\nweights = "/abs/w.pth"\ndata = "../val"\n'
        '[hosts.a]\naddress = "x"\nidentity_file = "~/.ssh/key"'
    )
    project = load_project(path)
    assert project.model == str(path.parent / "nets/net.py:make")
    assert project.weights == "/abs/w.pth"
    assert project.data == str(path.parent / "../val")
    assert project.hosts["a"].identity_file == "/home/someone/.ssh/key"


def test_preprocessing_table(path):
    path.write_text("[preprocessing]\nresize = 256\ncrop = 224\nmean = [0.5, 0.5, 0.5]\nstd = [2]")
    want = Preprocessing(resize=256, crop=224, mean=(0.5, 0.5, 0.5), std=(2.0,))
    assert load_project(path).preprocessing == want


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("modle = 'x'", 2, ["`modle`", "`model`"]),
        ("frobnicate = 1", 2, ["`frobnicate`", "keys here are model, weights"]),
        ("[preprocessing]\ncrp = 3", 3, ["`crp`", "`crop`"]),
        ("[hosts.a]\naddres = 'b'", 3, ["`addres`", "`address`"]),
        ("model = 3", 2, ["Expected `str"]),
        ("model = ''", 2, ["length >= 1"]),
        ("input_shape = [1, 0]", 2, [">= 1"]),
        ("calibration_samples = 0", 2, [">= 1"]),
        ("[preprocessing]\nmean = [1, 2]", 2, ["1 or 3 numbers"]),
        ("[preprocessing]\ncolor = 'rbg'", 3, ["'rbg'"]),
        ("[hosts.a]\naddress = 'b'\nport = 99999", 4, ["65535"]),
        ("host = 'jetson'\n[hosts.jetsen]\naddress = 'x'", 2, ["jetson", "`jetsen`"]),
        ("host = 'jetson'", 2, ["[hosts.jetson]"]),
    ],
)
def test_mistakes_are_named_with_their_line(path, text, line, words):
    path.write_text(f"seed = 1\n{text}\n")
    with pytest.raises(errors.ProjectError) as caught:
        load_project(path)
    assert caught.value.where == f"{path}, line {line}"
    for word in words:
        assert word in str(caught.value)


def test_missing_key(path):
    path.write_text("[hosts.a]\nport = 3")
    with pytest.raises(errors.ProjectError, match="missing required field `address`"):
        load_project(path)


@pytest.mark.parametrize("text", ["password = 'hunter2'", "[hosts.a]\naddress = 'x'\nPassword = 'hunter2'"])
def test_passwords_are_refused_and_not_repeated(path, text):
    path.write_text(text)
    with pytest.raises(errors.ProjectError, match="no secrets") as caught:
        load_project(path)
    assert "hunter2" not in str(caught.value)


def test_a_host_may_be_called_token(path):
    path.write_text("[hosts.token]\naddress = 'x'")
    assert list(load_project(path).hosts) == ["token"]


@pytest.mark.parametrize("contents", [b"model =", b"= 1", b"[[hosts", b"\xff\xfe"])
def test_not_toml(path, contents):
    path.write_bytes(contents)
    with pytest.raises(errors.ProjectError, match=r"TOML|UTF-8"):
        load_project(path)


def test_no_file(path):
    with pytest.raises(errors.ProjectError, match="edgepipe init"):
        load_project(path)
