"""What people get wrong on their own side: one clear error with its exit code, and nothing left behind."""

import json
import shutil
from collections.abc import Callable

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepipe import errors

DEPLOY = ("deploy", "model.onnx", "--target", "x86", "--emulate")
DATA = ("--data", "val.npz")


class Mistake(msgspec.Struct, frozen=True):
    """What is spoilt before which command, and what it must say."""

    argv: tuple[str, ...]
    error: type[errors.EdgepipeError]
    words: tuple[str, ...] = ()
    spoil: Callable[..., None] = lambda folder: None


def samples(**changed):
    """Spoils val.npz: its arrays go through functions of their names."""

    def spoil(folder):
        with np.load(folder / "val.npz") as data:
            arrays = dict(data)
        np.savez(folder / "val.npz", **{name: change(arrays[name]) for name, change in changed.items()} | {
            name: array for name, array in arrays.items() if name not in changed
        })  # fmt: skip

    return spoil


def at(value, *index):
    """Sets one element."""

    def change(array):
        array[index] = value
        return array

    return change


def write(name, content):
    """Writes a text file."""
    return lambda folder: (folder / name).write_text(content)


def truncate(name):
    """Cuts a file in its middle."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:1000])


def graph_of(*nodes, inputs=("x",), rank=4):
    """Writes a model of these nodes from `inputs` to y."""

    def spoil(folder):
        ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in inputs]
        result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c", "d"][:rank])
        graph = helper.make_graph(list(nodes), "odd", ports, [result])
        opsets = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "model.onnx")

    return spoil


def recipe(text):
    """Writes mine.toml."""
    return write("mine.toml", f'description = "mine"\n{text}')


STATIC = '[[passes]]\nuse = "quantize.static"\n'
MISTAKES = {
    # The model
    "missing model": Mistake(
        ("deploy", "modle.onnx", *DEPLOY[2:], *DATA),
        errors.ModelNotFound,
        ("modle.onnx", "did you mean model.onnx"),
    ),
    "no model named": Mistake(("deploy", *DEPLOY[2:], *DATA), errors.UsageError, ("model", "edgepipe.toml")),
    "not a model by its name": Mistake(
        ("deploy", "notes.txt", *DEPLOY[2:], *DATA),
        errors.ModelUnreadable,
        ("notes.txt", ".onnx"),
        write("notes.txt", "hm"),
    ),
    "not a model by its contents": Mistake(
        (*DEPLOY, *DATA), errors.ModelUnreadable, ("model.onnx",), write("model.onnx", "these are notes\n")
    ),
    "empty model file": Mistake(
        (*DEPLOY, *DATA), errors.ModelUnreadable, ("model.onnx",), write("model.onnx", "")
    ),
    "corrupt model": Mistake(
        (*DEPLOY, *DATA), errors.ModelUnreadable, ("model.onnx",), truncate("model.onnx")
    ),
    "corrupt TFLite model": Mistake(
        ("deploy", "m.tflite", *DEPLOY[2:], *DATA),
        errors.ModelUnreadable,
        ("m.tflite",),
        write("m.tflite", "TFL3" * 9),
    ),
    "folder that is no SavedModel": Mistake(
        ("deploy", "net", *DEPLOY[2:], *DATA),
        errors.ModelUnreadable,
        ("net",),
        lambda folder: (folder / "net").mkdir(),
    ),
    "weights alone": Mistake(
        ("deploy", "net.pt", *DEPLOY[2:], *DATA), errors.ModelUnreadable, ("factory",), write("net.pt", "PK")
    ),
    "op that cannot be written": Mistake(
        (*DEPLOY, *DATA),
        errors.UnsupportedOp,
        ("the_odd_one", "Det"),
        graph_of(
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Det", ["a"], ["y"], name="the_odd_one"),
            rank=2,
        ),
    ),
    "two inputs": Mistake(
        (*DEPLOY, *DATA),
        errors.ModelError,
        ("one input", "x float32", "z float32"),
        graph_of(helper.make_node("Add", ["x", "z"], ["y"]), inputs="xz"),
    ),
    # The data
    "missing data": Mistake((*DEPLOY, "--data", "vall.npz"), errors.DataNotFound, ("vall.npz",)),
    "no data": Mistake(DEPLOY, errors.CalibrationDataMissing, ("--data", "--calibrate-random")),
    "not data": Mistake(
        (*DEPLOY, *DATA), errors.DataUnreadable, ("no archive of arrays",), write("val.npz", "x")
    ),
    "corrupt data": Mistake((*DEPLOY, *DATA), errors.DataUnreadable, ("val.npz",), truncate("val.npz")),
    "wrong shape": Mistake(
        (*DEPLOY, *DATA),
        errors.DataShapeMismatch,
        ("[96, 8, 8, 3]", "transpose"),
        samples(x=lambda x: x.transpose(0, 2, 3, 1)),
    ),
    "wrong dtype": Mistake(
        (*DEPLOY, *DATA),
        errors.DataTypeMismatch,
        ("uint8", "float32"),
        samples(x=lambda x: x.astype(np.uint8)),
    ),
    "NaN": Mistake(
        (*DEPLOY, *DATA),
        errors.DataNotFinite,
        ("NaN", "val.npz, sample 7"),
        samples(x=at(np.nan, 7, 1, 2, 3)),
    ),
    "infinity": Mistake(
        (*DEPLOY, *DATA), errors.DataNotFinite, ("val.npz, sample 7",), samples(x=at(np.inf, 7, 1, 2, 3))
    ),
    "empty data": Mistake(
        (*DEPLOY, *DATA), errors.DataEmpty, ("val.npz",), samples(x=lambda x: x[:0], y=lambda y: y[:0])
    ),
    "label out of range": Mistake(
        (*DEPLOY, *DATA), errors.LabelsOutOfRange, ("label 4 at sample 9", "0 to 3"), samples(y=at(4, 9))
    ),
    "negative label": Mistake((*DEPLOY, *DATA), errors.LabelsOutOfRange, ("label -1",), samples(y=at(-1, 9))),
    "too few labels": Mistake(
        (*DEPLOY, *DATA), errors.DataShapeMismatch, ("96 samples",), samples(y=lambda y: y[:5])
    ),
    "images without preprocessing": Mistake(
        (*DEPLOY, "--data", "photos"),
        errors.ProjectError,
        ("preprocessing",),
        lambda folder: (folder / "photos").mkdir(),
    ),
    # What to make
    "unknown target": Mistake(
        ("deploy", "model.onnx", "--target", "rasberrypi5", "--emulate", *DATA),
        errors.TargetError,
        ("raspberrypi5",),
    ),
    "no target": Mistake(("deploy", "model.onnx", "--emulate", *DATA), errors.UsageError, ("--target",)),
    "unknown recipe": Mistake((*DEPLOY, *DATA, "--recipe", "int7"), errors.RecipeError, ("int7", "int8")),
    "unknown recipe key": Mistake(
        (*DEPLOY, *DATA, "--recipe", "mine.toml"),
        errors.RecipeError,
        ("mine.toml, step 1", "rangs", "ranges"),
        recipe(STATIC + 'rangs = "mse"\n'),
    ),
    "recipe value that does not fit": Mistake(
        (*DEPLOY, *DATA, "--recipe", "mine.toml"),
        errors.RecipeError,
        ("mine.toml, step 1", "ranges"),
        recipe(STATIC + 'ranges = "guess"\n'),
    ),
    "unknown pass": Mistake(
        (*DEPLOY, *DATA, "--recipe", "mine.toml"),
        errors.RecipeError,
        ("quantize.sttic", "quantize.static"),
        recipe('[[passes]]\nuse = "quantize.sttic"\n'),
    ),
    "recipe that is no TOML": Mistake(
        (*DEPLOY, *DATA, "--recipe", "mine.toml"), errors.RecipeError, ("mine.toml",), recipe("passes = [")
    ),
    "malformed project": Mistake(
        (*DEPLOY, *DATA),
        errors.ProjectError,
        ("edgepipe.toml, line 1", "target"),
        write("edgepipe.toml", 'tarket = "x86"\n'),
    ),
    "malformed shape": Mistake((*DEPLOY, *DATA, "--input-shape", "1,a"), errors.UsageError, ("1,a",)),
    "unknown ports": Mistake((*DEPLOY, *DATA, "--ports", "int3"), errors.UsageError, ("int3", "float32")),
    "made-up samples beside real ones": Mistake(
        (*DEPLOY, *DATA, "--calibrate-random"), errors.UsageError, ("--calibrate-random", "--data")
    ),
    "more calibration samples than there are": Mistake(
        (*DEPLOY, *DATA, "--calibration-samples", "1000"), errors.UsageError, ("1000", "96")
    ),
    # Where to
    "no device": Mistake((*DEPLOY[:-1], *DATA), errors.UsageError, ("--host", "--emulate")),
    "two devices": Mistake(
        (*DEPLOY, *DATA, "--host", "pi@10.0.0.5"), errors.UsageError, ("--host", "--emulate")
    ),
    "not a host": Mistake((*DEPLOY[:-1], *DATA, "--host", "pi@a b"), errors.UsageError, ("pi@a b",)),
    # Results
    "bundle below a file": Mistake(
        (*DEPLOY, *DATA, "-o", "model.onnx/bundle"), errors.OutputError, ("model.onnx is a file",)
    ),
    "bundle where nobody may write": Mistake(
        (*DEPLOY, *DATA, "-o", "/proc/bundle"), errors.OutputError, ("/proc",)
    ),
    "bundle over other files": Mistake((*DEPLOY, *DATA, "-o", "."), errors.BundleError, ("model.onnx",)),
    "store below a file": Mistake(
        (*DEPLOY, *DATA, "--store", "model.onnx"), errors.OutputError, ("model.onnx is a file",)
    ),
    "conversion where nobody may write": Mistake(
        ("convert", "model.onnx", "--to", "tflite", "-o", "/proc/m.tflite"),
        errors.OutputError,
        ("/proc/m.tflite",),
    ),
    "report where nobody may write": Mistake(
        ("report", "-o", "/proc/r.html"), errors.RunNotFound, ("edgepipe deploy",)
    ),
    "conversion to what": Mistake(
        ("convert", "model.onnx", "--to", "tfl", "-o", "m.tfl"), errors.UsageError, ("tfl", "tflite")
    ),
    "bundle that is none": Mistake(
        ("bench", "nothing", "--emulate"), errors.BundleError, ("nothing", "edgepipe compress")
    ),
    "folder that is no bundle": Mistake(
        ("push", ".", "--host", "pi@10.0.0.5"), errors.BundleError, ("manifest.json",)
    ),
    "evaluation with a label out of range": Mistake(
        ("evaluate", "model.onnx", *DATA),
        errors.LabelsOutOfRange,
        ("label 4 at sample 9",),
        samples(y=at(4, 9)),
    ),
    "evaluation of two inputs": Mistake(
        ("evaluate", "model.onnx", *DATA),
        errors.ModelError,
        ("one input", "x float32", "z float32"),
        graph_of(helper.make_node("Add", ["x", "z"], ["y"]), inputs="xz"),
    ),
    "password that nobody can type": Mistake(
        ("probe", "--host", "pi@10.0.0.5", "--ask-password"), errors.UsageError, ("terminal",)
    ),
    "evaluation of nothing": Mistake(("evaluate", "nothing", *DATA), errors.ModelNotFound, ("nothing",)),
    "run that is none": Mistake(("runs", "show", "2026"), errors.RunNotFound, ("runs",)),
    "project that is there": Mistake(
        ("init",), errors.ProjectError, ("edgepipe.toml",), write("edgepipe.toml", 'target = "x86"\n')
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_and_leaves_nothing(equipped, told, left_behind, mistake):
    mistake.spoil(equipped.folder)
    before = equipped.listing()
    told(equipped.run(*mistake.argv), mistake.error, *mistake.words)
    assert not left_behind(before, equipped.listing())


def test_an_op_that_cannot_be_written_fails_before_the_labels_are_looked_at(equipped, told):
    MISTAKES["op that cannot be written"].spoil(equipped.folder)
    samples(y=at(99, 0))(equipped.folder)
    outcome = equipped.run("compress", "model.onnx", "--target", "x86", *DATA)
    told(outcome, errors.UnsupportedOp, "the_odd_one")
    assert "calibrate" not in outcome.stderr


@pytest.mark.parametrize(
    "name",
    [
        "missing data",
        "no device",
        "two devices",
        "not a host",
        "bundle below a file",
        "bundle over other files",
        "unknown target",
        "unknown recipe key",
    ],
)
def test_what_can_be_seen_at_once_is_told_before_the_model_is_loaded(equipped, name):
    MISTAKES[name].spoil(equipped.folder)
    outcome = equipped.run(*MISTAKES[name].argv)
    assert outcome.stderr.startswith("error: ")


def test_an_altered_bundle_is_not_pushed(deployed, user, told):
    shutil.copytree(next(deployed.folder.glob("runs/*/bundle")), user.folder / "bundle")
    with (user.folder / "bundle" / "int8.onnx").open("ab") as file:
        file.write(b"\0")
    before = user.listing()
    told(user.run("bench", "bundle", "--emulate"), errors.BundleError, "int8.onnx", "altered")
    assert user.listing() == before


def test_debug_shows_the_traceback(equipped):
    process = equipped.start("deploy", "nothing.onnx", "--target", "x86", "--emulate", "--debug")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == errors.ModelNotFound.exit_code
    assert b"Traceback" in stderr
    assert b"nothing.onnx" in stderr


def test_an_error_as_json(equipped):
    outcome = equipped.run("deploy", "modle.onnx", "--target", "x86", "--emulate", "--json")
    assert outcome.exit_code == errors.ModelNotFound.exit_code
    error = outcome.json["error"]
    assert (error["error"], error["exit_code"], error["where"]) == ("ModelNotFound", 11, "modle.onnx")
    assert "did you mean model.onnx" in error["remedy"]
    assert "error" not in outcome.stderr
    assert json.dumps(error)


@pytest.mark.parametrize(
    "argv", [("deploy", "--nope"), ("deploy", "model.onnx", "--limit", "0"), ("nothing",), ("runs", "shw")]
)
def test_what_the_command_line_does_not_know(equipped, argv):
    outcome = equipped.run(*argv)
    assert outcome.exit_code == errors.UsageError.exit_code
    assert outcome.stdout == ""
    assert "Error" in outcome.stderr
    assert "Traceback" not in outcome.stderr
