"""What `passes show` and `recipes show` print: every setting explained, with what it takes."""

import io

import msgspec
import pytest
from rich.console import Console

from edgepipe.passes import accepted_values
from edgepipe.recipe import PASSES, load_pass, load_recipe
from edgepipe.report import catalogue


def printed(renderable) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


@pytest.mark.parametrize("name", sorted(PASSES))
def test_every_setting_of_a_pass_is_explained(name):
    kind = load_pass(name)
    shown = printed(catalogue.pass_text(name, kind))
    assert not {"Annotated", "Literal", "Optional", "Attributes:"} & set(shown.replace("[", " ").split())
    assert max(map(len, shown.splitlines())) <= 80
    for field in msgspec.structs.fields(kind):
        _, _, rest = shown.partition(f"\n{field.name} ")
        words = rest.partition("\n")[0].split()
        assert words, f"{field.name} of {name} has no description"
        first = accepted_values(field.type).split()[0]
        assert first in rest


def test_settings_of_a_recipe_are_its_toml():
    shown = printed(catalogue.recipe_table(load_recipe("mixed")))
    assert 'rounding = "gptq"' in shown
    assert "bias_correction = true" in shown
    assert "weight_candidates = [2, 3" in shown
    assert "None" not in shown


def test_bounds_in_words():
    from typing import Annotated, Literal

    from edgepipe.quantize.scheme import Override

    assert accepted_values(Annotated[int, msgspec.Meta(ge=2, le=8)] | None) == "2 to 8"
    assert accepted_values(Annotated[float, msgspec.Meta(gt=0, le=4)]) == "above 0, to 4"
    assert accepted_values(Annotated[int, msgspec.Meta(ge=1)]) == "1 or more"
    assert accepted_values(Annotated[int, msgspec.Meta(lt=9)]) == "below 9"
    assert accepted_values(tuple[Literal[4, 8], ...]) == "a list of 4, 8"
    assert accepted_values(Literal["a", True]) == '"a", true'
    assert accepted_values(tuple[Override, ...]).startswith("tables with layers, weight_bits")
    assert accepted_values(bool) == "true, false"
