"""What a run records of its job gives the same job again, through files that people can read."""

import tomllib

import msgspec
import pytest

from edgepipe import errors
from edgepipe.job import Job
from edgepipe.preprocess import Preprocessing
from edgepipe.provenance import Environment, Origin
from edgepipe.recipe import list_recipes, load_recipe
from edgepipe.store import Run
from edgepipe.target import list_targets, load_target
from edgepipe.workflow.origin import job_of, model_path, recipe_toml, target_toml, this_environment


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.name)
def test_a_recipe_is_read_as_it_was_written(tmp_path, recipe):
    path = tmp_path / f"{recipe.name}.toml"
    path.write_text(recipe_toml(recipe))
    assert load_recipe(path) == recipe


def test_a_recipe_with_overrides_is_read_as_it_was_written(tmp_path):
    lines = [
        'description = "by \\"hand\\": ümlaut"',
        'precision = "int8"',
        "[[passes]]",
        'use = "quantize.static"',
        'ranges = "mse"',
        "[[passes.overrides]]",
        'layers = ["conv*", "head"]',
        "keep_float = true",
        "[[passes.overrides]]",
        'layers = ["fc"]',
        "weight_bits = 4",
    ]
    (tmp_path / "mine.toml").write_text("\n".join(lines))
    recipe = load_recipe(tmp_path / "mine.toml")
    assert len(recipe.passes[0].overrides) == 2
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "mine.toml").write_text(recipe_toml(recipe))
    assert load_recipe(tmp_path / "again" / "mine.toml") == recipe


def test_every_setting_is_written_out():
    tables = tomllib.loads(recipe_toml(load_recipe("int8")))["passes"]
    settings = load_recipe("int8").passes[-1]
    named = {name for name in settings.__struct_fields__ if getattr(settings, name) is not None}
    assert named <= {*tables[-1]}


@pytest.mark.parametrize("target", list_targets(), ids=lambda target: target.name)
def test_a_target_is_read_as_it_was_written(tmp_path, target):
    path = tmp_path / f"{target.name}.toml"
    path.write_text(target_toml(target))
    assert load_target(path) == target


def run(**changes):
    fields = {
        "id": "r",
        "created": "",
        "edgepipe_version": "",
        "command": "",
        "model_name": "m",
        "model_source": "m",
        "model_digest": "",
        "target": "x86",
        "recipe": "int8",
        "seed": 7,
        "bundle_digest": "",
        "host": "h",
        "kind": "board",
    }
    return Run(**{**fields, **changes})


def origin(**changes):
    fields = {
        "model": "net.py:build",
        "model_sha256": None,
        "weights": "net.pt",
        "data": "photos",
        "limit": 9,
        "input_shape": (1, 3, 8, 8),
        "preprocessing": {"resize": 9, "crop": 8},
        "calibration_samples": 5,
        "ports": "integer",
        "recipe": recipe_toml(load_recipe("int8")),
        "target": target_toml(load_target("x86")),
    }
    return Origin(**{**fields, **changes})


def test_the_job_is_asked_for_again(tmp_path):
    job = job_of(origin(), run(), tmp_path)
    assert load_recipe(job.recipe) == load_recipe("int8")
    assert load_target(job.target) == load_target("x86")
    assert job == Job(
        model="net.py:build",
        weights="net.pt",
        data="photos",
        limit=9,
        input_shape=(1, 3, 8, 8),
        preprocessing=Preprocessing(resize=9, crop=8),
        calibration_samples=5,
        ports="integer",
        seed=7,
        recipe=job.recipe,
        target=job.target,
    )


def test_names_of_a_strangers_record_lead_nowhere(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    job_of(origin(), run(recipe="../../recipe", target="/etc/target"), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
    assert sorted(path.name for path in folder.rglob("*.toml")) == ["recipe.toml", "target.toml"]


def test_preprocessing_that_is_not_known_here_is_told(tmp_path):
    with pytest.raises(errors.ProjectError, match="does not know the preprocessing"):
        job_of(origin(preprocessing={"rotate": 90}), run(), tmp_path)


def test_a_record_with_an_origin_is_read_as_it_was_written():
    kept = run(origin=origin(), environment=this_environment())
    assert msgspec.json.decode(msgspec.json.encode(kept), type=Run) == kept


def test_the_environment_names_what_takes_part_and_not_the_developers_tools():
    found = this_environment()
    assert isinstance(found, Environment)
    assert {"numpy", "onnx", "onnxruntime", "ai-edge-litert", "msgspec"} <= {*found.packages}
    assert not {"pytest", "ruff", "mypy", "edgepipe"} & {*found.packages}
    assert len(found.code) == 64
    assert found.cores >= 1


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("net.py:build", "net.py"),
        ("C:model.onnx", "C:model.onnx"),
        ("dir/saved", "dir/saved"),
        ("a.onnx", "a.onnx"),
    ],
)
def test_the_file_of_a_model(model, path):
    assert str(model_path(model)) == path
