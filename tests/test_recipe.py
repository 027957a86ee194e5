"""Recipes: those that come with edgepipe, the user's own, and every way in which one can be wrong."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import msgspec
import pytest

from edgepipe import recipe
from edgepipe.errors import RecipeError
from edgepipe.passes import Pass


class ToTorch(Pass, frozen=True, kw_only=True):
    """Gives a torch model."""

    gives = "torch"


@pytest.fixture
def write(tmp_path):
    def write_text(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write_text


def with_pass(*lines):
    return "\n".join(['description = "mine"', "[[passes]]", *lines])


@pytest.fixture
def offer(monkeypatch):
    """Lets another package offer passes through the entry-point group."""

    def offered(**places):
        found = [
            EntryPoint(name.replace("__", "."), place, recipe.ENTRY_POINTS) for name, place in places.items()
        ]
        monkeypatch.setattr(
            recipe, "entry_points", lambda group: found if group == recipe.ENTRY_POINTS else []
        )

    return offered


def test_shipped_recipes_load_and_quantize_by_default():
    recipes = {each.name: each for each in recipe.list_recipes()}
    assert {"float32", "float16", "int8"} <= recipes.keys()
    assert [recipe.pass_name(each) for each in recipes["int8"].passes] == [
        "graph.simplify",
        "quantize.static",
    ]
    assert {each.name: each.precision for each in recipes.values()}["float16"] == "float16"
    assert all(each == recipe.load_recipe(each.name) for each in recipes.values())


def test_settings_are_the_fields_of_the_pass(write):
    path = write(with_pass('use = "quantize.static"', 'ranges = "percentile"', "percentile = 99.5"))
    found = recipe.load_recipe(path)
    assert (found.name, found.description) == ("mine", "mine")
    assert (found.passes[0].ranges, found.passes[0].percentile, found.passes[0].granularity) == (
        "percentile",
        99.5,
        "per-channel",
    )
    assert recipe.load_recipe(str(path)) == found


@pytest.mark.parametrize(
    ("text", "what", "says"),
    [
        ("passes = 3 =", "cannot be read", "line 1"),
        ('passes = []\ndescription = ""', "holds no pass", "[[passes]]"),
        ('description = "no passes"', "does not fit", "passes"),
        ('description = 7\npasses = [{use = "graph.simplify"}]', "does not fit", "key description"),
        (with_pass('use = "quantize.statik"'), "no such pass", "did you mean quantize.static"),
        (with_pass('range = "mse"'), "does not say which pass", "step 1"),
        (with_pass('use = "quantize.static"', 'range = "mse"'), "unknown key", "did you mean ranges"),
        (
            'descripton = "x"\n' + with_pass('use = "graph.simplify"'),
            "unknown key",
            "did you mean description",
        ),
        (with_pass('use = "quantize.static"', "percentile = 30"), "does not fit", "key percentile"),
        (with_pass('use = "quantize.static"', 'ranges = "best"'), "does not fit", "best"),
        (
            with_pass('use = "quantize.static"', 'bias_correction = "yes"'),
            "does not fit",
            "key bias_correction",
        ),
        (with_pass('use = "graph.simplify"') + '\n[[passes]]\nuse = "?"', "no such pass", "step 2"),
    ],
)
def test_each_mistake_is_named_with_its_place(write, text, what, says):
    path = write(text)
    with pytest.raises(RecipeError) as caught:
        recipe.load_recipe(path)
    assert what in caught.value.what
    assert says in str(caught.value)
    assert str(path) in caught.value.where


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        recipe.load_recipe(path)


def test_unknown_recipes_suggest_near_names(tmp_path):
    with pytest.raises(RecipeError, match="did you mean int8"):
        recipe.load_recipe("int88")
    with pytest.raises(RecipeError, match="no such recipe file"):
        recipe.load_recipe(tmp_path / "absent.toml")


def test_a_name_is_never_a_path_out_of_the_shipped_folder():
    with pytest.raises(RecipeError):
        recipe.load_recipe("../recipes/int8")


def test_other_packages_offer_passes(offer, write):
    offer(other__to_torch=f"{__name__}:ToTorch", absent="no_such_module:Absent", wrong="json:dumps")
    assert {"other.to_torch", "graph.simplify"} <= set(recipe.list_passes())
    assert recipe.load_pass("other.to_torch") is ToTorch
    assert recipe.pass_name(ToTorch()) == "other.to_torch"
    for name, says in (("absent", "cannot be imported"), ("wrong", "is no pass")):
        with pytest.raises(RecipeError, match=says):
            recipe.load_pass(name)


def test_other_packages_cannot_replace_a_pass(offer):
    offer(graph__simplify="json:dumps")
    assert recipe.load_pass("graph.simplify").__module__ == "edgepipe.graph.simplify"


def test_a_chain_that_does_not_fit_is_refused_before_any_work():
    simplify = recipe.load_pass("graph.simplify")()
    with pytest.raises(
        RecipeError, match=r"step 2 \(graph.simplify\) takes an onnx model, but step 1 gives torch"
    ):
        recipe.check_chain([ToTorch(), simplify])
    with pytest.raises(
        RecipeError, match=r"step 1 \(graph.simplify\) takes an onnx model, but the model is torch"
    ):
        recipe.check_chain([simplify], given="torch")
    recipe.check_chain([simplify, ToTorch()], given="onnx")


def test_every_pass_documents_itself_and_has_a_schema():
    for name in recipe.list_passes():
        kind = recipe.load_pass(name)
        assert kind.__doc__
        assert recipe.pass_name(kind) == name
        needed = {"average_weight_bits": 4} if name == "quantize.mixed" else {}  # a budget has no default
        assert recipe.pass_name(kind(**needed)) == name
        msgspec.json.schema(kind)


def test_loading_every_recipe_imports_no_heavy_package():
    code = (
        "import sys; from edgepipe import recipe; recipe.list_recipes();"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'tensorflow'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("line", "got", "takes"),
    [
        ("weight_bits = 9", "9", "2 to 8"),
        ('rounding = "adaround"', '"adaround"', '"nearest", "gptq"'),
        ('overrides = [{ layers = "*" }]', '"*"', "a list of text"),
        ('overrides = [{ layers = ["*"], wieght_bits = 4 }]', "wieght_bits", "layers, weight_bits"),
        ('overrides = [{ layers = ["*"], activation_bits = 4 }]', "4", "8, 16"),
        ("overrides = [{ layers = [] }]", "layers names none", "layers, weight_bits"),
        (
            'overrides = [{ layers = ["*"], keep_float = true, weight_bits = 4 }]',
            "keep_float leaves no integers",
            "keep_float",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_told_with_what_would(tmp_path, line, got, takes):
    path = tmp_path / "own.toml"
    path.write_text(f'description = "x"\n[[passes]]\nuse = "quantize.static"\n{line}\n')
    with pytest.raises(RecipeError) as raised:
        recipe.load_recipe(path)
    assert got in raised.value.got
    assert takes in raised.value.remedy
    assert "passes show quantize.static" in raised.value.remedy


def test_edgepipes_own_passes_are_found_without_a_look_at_every_package(monkeypatch):
    monkeypatch.setattr(recipe, "entry_points", lambda **_: pytest.fail("looked at the packages installed"))
    assert recipe.load_pass("quantize.static").__name__ == "QuantizeStatic"
