"""Tables of what edgepipe knows: targets, recipes and passes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Group
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from edgepipe.passes import Pass, accepted_values
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
        settings = (
            f"{field} = {_toml(value)}"
            for field, value in msgspec.to_builtins(each).items()
            if value is not None
        )
        table.add_row(str(number), pass_name(each), "\n".join(settings))
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
    """The documentation of a pass, and its settings: default, meaning and what each takes."""
    text, _ = _documentation(each)
    meanings = {
        field: meaning
        for kind in reversed(each.__mro__)
        for field, meaning in (_documentation(kind)[1] if issubclass(kind, Pass) else {}).items()
    }
    table = _table("setting", "what it is, and what it takes")
    for field in msgspec.structs.fields(each):
        if field.default is msgspec.NODEFAULT:
            label = f"{field.name}\nrequired"
        else:
            default = msgspec.to_builtins(field.default)
            label = f"{field.name}\n" + ("not set" if default is None else f"= {_toml(default)}")
        values = Text(accepted_values(field.type), style="dim")
        table.add_row(Text(label), Text(meanings.get(field.name, "")).append("\n").append(values))
    return Group(Markdown(f"# {name}\n\n{text}"), table)


def _documentation(kind: type) -> tuple[str, dict[str, str]]:
    """A docstring without its list of attributes, and that list."""
    text, _, attributes = (inspect.cleandoc(kind.__doc__ or "")).partition("\nAttributes:\n")
    described = re.findall(r"^    (\w+): (.+(?:\n {6,}.+)*)", attributes, re.MULTILINE)
    return text.strip(), {field: " ".join(meaning.replace("`", "").split()) for field, meaning in described}


def _toml(value: Any) -> str:
    """A setting as a recipe's file holds it; what is not set in a table is left out."""
    if isinstance(value, dict):
        pairs = ((key, each) for key, each in value.items() if each is not None)
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in pairs) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return msgspec.json.encode(value).decode()


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
