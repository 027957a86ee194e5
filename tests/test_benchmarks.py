"""What the benchmarks count on: their recipes load, their rows are whole, their verdicts are sound."""

import importlib.util
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from edgepipe.recipe import load_recipe

FOLDER = Path(__file__).parents[1] / "benchmarks" / "quantization"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the benchmarks are not part of a distribution")


def load(name):
    spec = importlib.util.spec_from_file_location(f"quantization_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(FOLDER.glob("recipes/*.toml")), ids=lambda path: path.stem)
def test_recipes_load(path):
    assert load_recipe(path).passes


def test_rows_name_environments_adapters_and_recipes():
    rows = load("tools").read_tools()
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert (FOLDER / "adapters" / f"with_{row.environment}.py").is_file()
        assert row.environment == "edgepipe" or (FOLDER / "requirements" / f"{row.environment}.txt").is_file()
        recipe = next(iter(row.settings.values())).get("recipe", "int8")
        assert load_recipe(FOLDER / "recipes" / recipe if recipe.endswith(".toml") else recipe)


def test_efforts_cover_every_model():
    content = tomllib.loads((FOLDER / "rows.toml").read_text())
    for effort in content["efforts"].values():
        assert tuple(effort) == load("tools").MODELS


def rank(tmp_path, outputs):
    paths = {}
    for name, values in outputs.items():
        np.save(tmp_path / f"{name}.npy", values)
        paths[name] = str(tmp_path / f"{name}.npy")
    return load("judge").rank({"reference": paths.pop("float"), "outputs": paths})


def noisy(reference, size, seed):
    noise = np.random.default_rng(seed).normal(size=reference.shape)
    return (reference + size * noise).astype(np.float32)


def test_equals_are_within_noise_and_the_worse_are_not(tmp_path):
    reference = np.random.default_rng(0).normal(size=(400, 10)).astype(np.float32)
    good, equal, bad = noisy(reference, 0.1, 1), noisy(reference, 0.1, 2), noisy(reference, 0.5, 3)
    found = rank(tmp_path, {"float": reference, "good": good, "equal": equal, "bad": bad})
    assert {name for name in found if found[name]["first_in_sqnr"]} <= {"good", "equal"}
    assert all(found[name]["agreement_p_value"] > 0.05 for name in ("good", "equal"))
    assert all(found[name]["sqnr_behind_db"][0] <= 0.3 for name in ("good", "equal"))
    assert found["bad"]["agreement_p_value"] < 0.05
    low, high = found["bad"]["sqnr_behind_db"]
    assert low < 10 * np.log10(25) < high  # five times the noise


def test_the_first_is_behind_itself_by_nothing(tmp_path):
    reference = np.random.default_rng(0).normal(size=(50, 10)).astype(np.float32)
    found = rank(tmp_path, {"float": reference, "only": noisy(reference, 0.1, 1)})
    assert found["only"]["sqnr_behind_db"] == [0, 0]
    assert found["only"]["agreement_p_value"] == 1


def test_not_finite_is_never_within_noise(tmp_path):
    reference = np.random.default_rng(0).normal(size=(50, 10)).astype(np.float32)
    broken = reference.copy()
    broken[3, 4] = np.nan
    found = rank(tmp_path, {"float": reference, "good": noisy(reference, 0.1, 1), "broken": broken})
    assert found["broken"]["sqnr_behind_db"] is None
    assert found["good"]["first_in_sqnr"]
