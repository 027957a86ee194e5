"""Tables of what edgepipe knows: targets, recipes and passes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Group
from rich.markdown import Markdown
from rich.table import Table

from edgepipe.passes import Pass
from edgepipe.recipe import Recipe, pass_name
from edgepipe.target import Target


def targets_table(targets: Sequence[Target]) -> Table:
    """One row a target: what a user chooses by."""
    table = _table("name", "board", "cores", "memory", "runtimes")
    for target in targets:
        runtimes = "\n".join(f"{runtime.name} {runtime.version}" for runtime in target.runtimes)
        cores = f"{target.cores} {target.architecture}"
        table.add_row(target.name, target.title, cores, f"{target.memory_mb} MB", runtimes)
    return table


def record_table(record: msgspec.Struct) -> Table:
    """One row a field of any record."""
    table = _table("field", "value")
    for field, value in msgspec.to_builtins(record).items():
        table.add_row(field, _cell(value))
    return table


def recipes_table(recipes: Sequence[Recipe]) -> Table:
    """One row a recipe."""
    table = _table("name", "passes", "what it does")
    for recipe in recipes:
        table.add_row(recipe.name, " → ".join(map(pass_name, recipe.passes)), recipe.description)
    return table


def recipe_data(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON: each pass with all its settings, the defaults included."""
    passes = [{"use": pass_name(each), **msgspec.to_builtins(each)} for each in recipe.passes]
    return {"name": recipe.name, "description": recipe.description, "passes": passes}


def recipe_table(recipe: Recipe) -> Table:
    """One row a pass of the recipe, with its settings."""
    table = _table("step", "pass", "settings", title=f"{recipe.name}: {recipe.description}")
    for number, each in enumerate(recipe.passes, start=1):
        table.add_row(str(number), pass_name(each), _cell(msgspec.to_builtins(each)))
    return table


def passes_table(passes: Mapping[str, type[Pass]]) -> Table:
    """One row a pass: what it takes and gives, and the first line of its docstring."""
    table = _table("name", "takes", "gives", "what it does")
    for name, each in passes.items():
        table.add_row(name, each.takes, each.gives, (inspect.getdoc(each) or "").partition("\n")[0])
    return table


def passes_data(passes: Mapping[str, type[Pass]]) -> dict[str, Any]:
    """Passes as JSON: documentation, and the JSON schema of the settings."""
    return {
        name: {
            "takes": each.takes,
            "gives": each.gives,
            "needs_calibration": each.needs_calibration,
            "doc": inspect.getdoc(each),
            "settings": msgspec.json.schema(each),
        }
        for name, each in passes.items()
    }


def pass_text(name: str, each: type[Pass]) -> Group:
    """The documentation of a pass and its settings with their defaults."""
    table = _table("setting", "type", "default")
    for field in msgspec.structs.fields(each):
        default = "required" if field.default is msgspec.NODEFAULT else repr(field.default)
        table.add_row(field.name, _type_text(field.type), default)
    return Group(Markdown(f"# {name}\n\n{inspect.getdoc(each)}"), table)


def _type_text(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=index == 0)  # a name in two pieces can't be copied
    return table


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key} = {_cell(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return "\n".join(_cell(each) for each in value)
    return str(value)
