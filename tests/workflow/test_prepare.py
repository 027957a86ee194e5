"""What is refused, and what is warned of, before any work."""

import numpy as np
import onnx
import pytest

from edgepipe import errors
from edgepipe.events import Warned
from edgepipe.job import Job
from edgepipe.recipe import load_recipe
from edgepipe.target import load_target
from edgepipe.workflow.make import compress
from edgepipe.workflow.prepare import check_precision, prepare

LINEAR = "linear (float[N, 6] x) => (float[N, 3] y) { y = MatMul(x, w) }"
WEIGHT = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)


@pytest.fixture
def job(build_model, tmp_path):
    """Saves a model and samples, and gives the job on them."""

    def make(text=LINEAR, samples=400, x=None, options=None, **constants):
        model = build_model(text, **(constants or {"w": WEIGHT}))
        (tmp_path / "m.onnx").write_bytes(model.payload)
        shape = (samples, *model.inputs[0].shape[1:])
        made_up = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        np.savez(tmp_path / "x.npz", x=made_up if x is None else x)
        fields = {"model": str(tmp_path / "m.onnx"), "target": "raspberrypi4", "data": tmp_path / "x.npz"}
        return Job(**fields | (options or {}))

    return make


def warnings_of(job):
    seen = []
    prepare(job, seen.append)
    return [event.text for event in seen if isinstance(event, Warned)]


def test_few_calibration_samples_are_warned_of(job):
    assert warnings_of(job(samples=400)) == []
    assert warnings_of(job(samples=40)) == ["10 calibration samples: ranges are a guess"]
    assert warnings_of(job(options={"calibration_samples": 1})) == [
        "1 calibration sample: ranges are a guess"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "total (float[N, 6] x) => (float y) { y = ReduceSum<keepdims = 0>(x) }",
        "turned (float[1, 6] x) => (float[6, 1] y) { y = Transpose(x) }",
    ],
)
def test_an_output_without_a_batch_is_refused(job, text):
    with pytest.raises(errors.ModelError, match="no batch axis") as caught:
        prepare(job(text, unused=WEIGHT), lambda _: None)
    assert "y float32" in caught.value.got


def test_an_op_that_the_clean_up_folds_is_no_obstacle(job):
    text = "grown (float[1, 6] x) => (float[1, 3] y) { a = MatMul(x, w) y = Expand(a, shape) }"
    assert prepare(job(text, w=WEIGHT, shape=np.array([1, 3])), lambda _: None).source.model.name == "m"
    grown = text.replace("[1, 3]", "[1, 2, 3]")
    with pytest.raises(errors.UnsupportedOp, match="Expand"):
        prepare(job(grown, w=WEIGHT, shape=np.array([1, 2, 3])), lambda _: None)


def test_an_op_that_stays_is_named_as_the_model_names_it(job):
    text = "odd (float[N, 6] x) => (float[N, 6] y) { a = Relu(x) b = Identity(a) [the_odd_one] y = Erf(b) }"
    with pytest.raises(errors.UnsupportedOp) as caught:
        prepare(job(text, unused=WEIGHT), lambda _: None)
    assert "the_odd_one" in caught.value.where
    unnamed = text.replace("[the_odd_one] ", "")
    with pytest.raises(errors.UnsupportedOp) as caught:
        prepare(job(unnamed, unused=WEIGHT), lambda _: None)
    assert caught.value.where == "node y"


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (np.zeros((40, 6), np.uint8), errors.DataTypeMismatch),
        (np.full((40, 6), np.nan, np.float32), errors.DataNotFinite),
    ],
)
def test_samples_that_a_torch_module_cannot_take_are_blamed_themselves(job, tmp_path, x, error):
    pytest.importorskip("torch")
    (tmp_path / "net.py").write_text("import torch\n\n\ndef net():\n    return torch.nn.Linear(6, 3)\n")
    with pytest.raises(error) as caught:
        prepare(job(x=x, options={"model": f"{tmp_path / 'net.py'}:net"}), lambda _: None)
    assert caught.value.where == str(tmp_path / "x.npz")


def test_half_precision_of_a_quantized_model_is_refused(job, tmp_path):
    made = compress(job(), tmp_path / "bundle")
    quantized = tmp_path / "quantized.onnx"
    quantized.write_bytes(made.bundle.read("int8.onnx"))
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(quantized).graph.node)
    again = job(options={"model": str(quantized), "recipe": "float16"})
    with pytest.raises(errors.UsageError, match="quantized already"):
        compress(again, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("target", "recipe"),
    [
        ("jetson-nano", "int4"),
        ("jetson-nano", "int16"),
        ("jetson-nano", "float16"),
        ("raspberrypi3", "dynamic"),
    ],
)
def test_a_scheme_that_no_runtime_of_the_target_runs_is_refused(job, target, recipe):
    with pytest.raises(errors.UsageError, match=f"{target} runs what recipe {recipe} makes") as caught:
        prepare(job(options={"target": target, "recipe": recipe, "data": "absent.npz"}), lambda _: None)
    assert "is needed" in caught.value.got


@pytest.mark.parametrize("recipe", ["dynamic", "int4", "int16", "float16", "mixed", "int8"])
@pytest.mark.parametrize("target", ["raspberrypi5", "x86", "jetson-orin-nano"])
def test_current_boards_run_every_scheme(target, recipe):
    check_precision(load_recipe(recipe), load_target(target))


def test_a_recipe_by_tensor_suits_old_kernels(tmp_path):
    lines = ('description = ""', 'precision = "int4"', "[[passes]]", 'use = "quantize.static"')
    (tmp_path / "coarse.toml").write_text("\n".join([*lines, 'granularity = "per-tensor"']))
    check_precision(load_recipe(tmp_path / "coarse.toml"), load_target("raspberrypi3"))


@pytest.mark.parametrize("recipe", ["dynamic", "int4", "int16"])
def test_bundles_of_every_scheme_hold_their_artifacts(job, tmp_path, recipe):
    weight = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    text = "linear (float[N, 40] x) => (float[N, 50] y) { y = MatMul(x, w) }"
    made = compress(job(text, options={"recipe": recipe}, w=weight), tmp_path / "bundle")
    names = {artifact.name for artifact in made.bundle.manifest.artifacts}
    assert names == {f"{each}.{kind}" for each in ("float32", recipe) for kind in ("onnx", "tflite")}
