"""What options and edgepipe.toml come to together."""

from pathlib import Path

import pytest

from edgepipe.errors import CalibrationDataMissing, ProjectError, UsageError
from edgepipe.job import (
    DataSpec,
    Job,
    Options,
    Place,
    SourceSpec,
    current_project,
    parse_ports,
    parse_shape,
    resolve_data,
    resolve_job,
    resolve_place,
)
from edgepipe.preprocess import Preprocessing
from edgepipe.project import HostEntry, Project

NOTHING = Project()
PREPROCESSING = Preprocessing(crop=8)
FULL = Project(
    model="net.py:build",
    weights="net.pt",
    input_shape=(1, 3, 8, 8),
    data="photos",
    calibration_samples=32,
    target="raspberrypi5",
    recipe="float16",
    host="desk",
    seed=7,
    preprocessing=PREPROCESSING,
    hosts={
        "desk": HostEntry(address="10.0.0.5", user="pi", port=2222, identity_file="/keys/pi"),
        "lab": HostEntry(address="fe80::1", target="jetson-orin-nano"),
    },
)


def test_options_alone_are_enough():
    job = resolve_job(Options(model="m.onnx", target="x86", data=Path("d.npz")), NOTHING)
    assert job == Job(model="m.onnx", target="x86", data=Path("d.npz"))
    assert (job.recipe, job.seed, job.ports, job.calibrate_random) == ("int8", 0, None, False)


def test_a_project_alone_is_enough():
    assert resolve_job(Options(), FULL) == Job(
        model="net.py:build",
        target="raspberrypi5",
        weights=Path("net.pt"),
        input_shape=(1, 3, 8, 8),
        data=Path("photos"),
        preprocessing=PREPROCESSING,
        calibration_samples=32,
        recipe="float16",
        seed=7,
    )


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (Options(target="x86"), "target", "x86"),
        (Options(recipe="int8"), "recipe", "int8"),
        (Options(seed=0), "seed", 0),
        (Options(data=Path("d.npz")), "data", Path("d.npz")),
        (Options(calibration_samples=8), "calibration_samples", 8),
        (Options(input_shape="2,3,8,8"), "input_shape", (2, 3, 8, 8)),
        (Options(weights=Path("other.pt")), "weights", Path("other.pt")),
        (Options(limit=5), "limit", 5),
        (Options(ports="float32"), "ports", "float32"),
    ],
)
def test_an_option_goes_before_the_project(options, field, value):
    assert getattr(resolve_job(options, FULL), field) == value


def test_another_model_does_not_take_the_projects_weights_and_shape():
    job = resolve_job(Options(model="other.onnx"), FULL)
    assert (job.weights, job.input_shape) == (None, None)
    assert job.data == Path("photos")


def test_random_calibration_leaves_the_projects_data_out():
    assert resolve_job(Options(calibrate_random=True), FULL).data is None


def test_a_host_names_its_target():
    assert resolve_job(Options(), FULL, host="lab").target == "jetson-orin-nano"
    assert resolve_job(Options(target="x86"), FULL, host="lab").target == "x86"
    assert resolve_job(Options(), FULL, host="pi@10.0.0.9").target == "raspberrypi5"


@pytest.mark.parametrize(
    ("options", "noun"), [(Options(target="x86"), "model"), (Options(model="m.onnx"), "target")]
)
def test_what_is_missing_is_named(options, noun):
    with pytest.raises(UsageError, match=f"no {noun}") as error:
        resolve_job(options, NOTHING)
    assert "edgepipe.toml" in error.value.remedy


def test_data_to_evaluate_on():
    spec = resolve_data(None, 3, FULL)
    assert (spec.path, spec.limit, spec.preprocessing) == (Path("photos"), 3, PREPROCESSING)
    assert resolve_data(Path("d.npz"), None, FULL).path == Path("d.npz")
    with pytest.raises(CalibrationDataMissing):
        resolve_data(None, None, NOTHING)


@pytest.mark.parametrize(
    ("place", "target", "host"),
    [
        (Place(), None, "pi@10.0.0.5:2222"),  # the project's default
        (Place(host="desk"), None, "pi@10.0.0.5:2222"),
        (Place(host="lab"), None, "[fe80::1]"),
        (Place(), "jetson-orin-nano", "[fe80::1]"),  # the one board of that kind
        (Place(host="me@10.0.0.9"), None, "me@10.0.0.9"),
        (Place(emulate=True), None, None),
    ],
)
def test_places(place, target, host):
    assert resolve_place(place, FULL, target).host == host


def test_a_hosts_key_is_used_unless_another_is_named():
    assert resolve_place(Place(host="desk"), FULL).identity == Path("/keys/pi")
    assert resolve_place(Place(host="desk", identity=Path("mine")), FULL).identity == Path("mine")
    assert resolve_place(Place(host="lab"), FULL).identity is None


TWO_BOARDS = Project(
    host="pi",
    hosts={
        "pi": HostEntry(address="10.0.0.5", target="raspberrypi5"),
        "orin": HostEntry(address="10.0.0.7", user="nvidia", target="jetson-orin-nano"),
    },
)


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("jetson", "nvidia@10.0.0.7"),
        ("jetson-orin-nano", "nvidia@10.0.0.7"),
        ("boards/raspberrypi5.toml", "10.0.0.5"),
        (None, "10.0.0.5"),
    ],
)
def test_a_target_finds_its_board(target, host):
    assert resolve_place(Place(), TWO_BOARDS, target).host == host


def test_a_target_never_goes_to_another_kind_of_board():
    with pytest.raises(UsageError, match="is raspberrypi4") as error:
        resolve_place(Place(), TWO_BOARDS, "raspberrypi")
    assert error.value.got == "pi is raspberrypi5, orin is jetson-orin-nano"
    assert "--host pi or --host orin" in error.value.remedy
    assert (
        resolve_place(Place(host="pi"), TWO_BOARDS, "raspberrypi4").host == "10.0.0.5"
    )  # said in so many words


def test_the_default_of_several_boards_of_a_kind_is_taken_and_none_is_guessed():
    twins = {name: HostEntry(address=name, target="jetson") for name in ("left", "right")}
    assert resolve_place(Place(), Project(host="right", hosts=twins), "jetson-orin-nano").host == "right"
    with pytest.raises(UsageError, match="several hosts") as error:
        resolve_place(Place(), Project(hosts=twins), "jetson")
    assert "--host left or --host right" in error.value.remedy


def test_a_host_without_a_target_is_of_the_projects_or_of_any():
    board = {"board": HostEntry(address="10.0.0.5")}
    assert resolve_place(Place(), Project(host="board", hosts=board), "jetson").host == "10.0.0.5"
    with pytest.raises(UsageError, match="no host"):
        resolve_place(Place(), Project(host="board", target="x86", hosts=board), "jetson")


def test_preprocessing_goes_with_every_model():
    assert resolve_job(Options(model="other.onnx", data=Path("photos2")), FULL).preprocessing == PREPROCESSING


def test_without_a_project_there_is_no_host():
    assert resolve_place(Place(), NOTHING).host is None


@pytest.mark.parametrize(
    ("text", "shape"),
    [(None, None), ("1,3,8,8", (1, 3, 8, 8)), ("1x3x8x8", (1, 3, 8, 8)), ("1, 64", (1, 64))],
)
def test_shapes(text, shape):
    assert parse_shape(text) == shape


@pytest.mark.parametrize("text", ["", "1,,3", "one", "1.5,2"])
def test_what_is_no_shape(text):
    with pytest.raises(UsageError, match="shape"):
        parse_shape(text)


def test_ports():
    assert [parse_ports(text) for text in (None, "integer", "float32")] == [None, "integer", "float32"]
    with pytest.raises(UsageError) as error:
        parse_ports("int8")
    assert "integer" in error.value.remedy


def test_the_project_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert current_project() == NOTHING
    (tmp_path / "edgepipe.toml").write_text('target = "x86"\n')
    assert current_project().target == "x86"
    (tmp_path / "edgepipe.toml").write_text("target = 3\n")
    with pytest.raises(ProjectError):
        current_project()


def test_paths_may_be_text():
    job = Job(model="m.onnx", target="x86", data="val.npz", weights="w.pt")
    assert (job.data, job.weights) == (Path("val.npz"), Path("w.pt"))
    assert job == Job(model="m.onnx", target="x86", data=Path("val.npz"), weights=Path("w.pt"))
    assert DataSpec(path="val.npz").path == Path("val.npz")
    assert SourceSpec(model="net.py:net", weights="w.pt").weights == Path("w.pt")
    assert Place(host="pi", identity="key").identity == Path("key")
    assert Place(emulate=True).identity is None
