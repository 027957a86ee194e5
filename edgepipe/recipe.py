"""Recipes: named lists of passes, as TOML.

A recipe file holds what the passes' own records can hold, and nothing else::

    description = "INT8 with least-error ranges"
    precision = "int8"

    [[passes]]
    use = "graph.simplify"

    [[passes]]
    use = "quantize.static"
    ranges = "mse"

Passes are loaded by name when a recipe uses them, so that a recipe costs the imports of its own passes
alone. Packages add passes through the entry-point group ``edgepipe.passes``.
"""

from __future__ import annotations

import difflib
import importlib
import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec

from edgepipe.bundle import Precision
from edgepipe.errors import RecipeError
from edgepipe.model import Format
from edgepipe.passes import Pass, accepted_values

PASSES = {
    "graph.simplify": "edgepipe.graph.simplify:Simplify",
    "quantize.dynamic": "edgepipe.quantize.dynamic:QuantizeDynamic",
    "quantize.equalize": "edgepipe.quantize.rescaling.equalize:Equalize",
    "quantize.mixed": "edgepipe.quantize.mixed.allocate:QuantizeMixed",
    "quantize.smooth": "edgepipe.quantize.rescaling.smooth:Smooth",
    "quantize.static": "edgepipe.quantize.static:QuantizeStatic",
}
"""Where each of edgepipe's own passes lives, by the name that recipes use."""

ENTRY_POINTS = "edgepipe.passes"
_SHIPPED = Path(__file__).parent / "recipes"
Record = TypeVar("Record", bound=msgspec.Struct)


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What to do to a model, in order.

    Attributes:
        name: Its file's stem.
        description: One line for people.
        passes: What to apply.
        precision: How the artifacts store their numbers. "float16" is a matter of emission alone: the
            passes leave a float32 graph, and the writer stores its weights as float16.
    """

    name: str
    description: str
    passes: tuple[Pass, ...]
    precision: Precision = "float32"


class _RecipeFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file's form; what stands in `passes` is checked by the passes themselves."""

    description: str
    passes: list[dict[str, Any]]
    precision: Precision = "float32"


def list_passes() -> tuple[str, ...]:
    """Names of all passes, edgepipe's own and those of other packages, sorted."""
    return tuple(sorted(PASSES.keys() | {entry.name for entry in entry_points(group=ENTRY_POINTS)}))


def load_pass(name: str) -> type[Pass]:
    """The class of a pass.

    Raises:
        RecipeError: There is no such pass, or the package that offers it is broken.
    """
    if name in PASSES:
        return _import_pass(name, PASSES[name])
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            return _import_pass(name, entry.value)
    raise RecipeError(
        "there is no such pass", got=name, remedy=_suggestion(name, list_passes(), "passes list")
    )


def _import_pass(name: str, place: str) -> type[Pass]:
    module, _, attribute = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"pass {name} cannot be imported",
            where=place,
            got=str(error),
            remedy="install the package that it needs",
        ) from error
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise RecipeError(
            f"{name} is no pass", where=place, got=repr(found), remedy="derive it from edgepipe.passes.Pass"
        )
    return found


def pass_name(each: Pass | type[Pass]) -> str:
    """The name by which recipes use a pass; its class's place for one that is not in any table."""
    kind = each if isinstance(each, type) else type(each)
    place = f"{kind.__module__}:{kind.__qualname__}"
    for name, known in PASSES.items():
        if known == place:
            return name
    return next((entry.name for entry in entry_points(group=ENTRY_POINTS) if entry.value == place), place)


def list_recipes() -> tuple[Recipe, ...]:
    """The recipes that come with edgepipe, by name."""
    return tuple(_read(path) for path in sorted(_SHIPPED.glob("*.toml")))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A recipe that comes with edgepipe, by name, or one of the user's, by a path that ends in .toml.

    Raises:
        RecipeError: There is no such recipe, or the file is malformed: no TOML, an unknown key or pass,
            a value out of bounds, or passes that do not fit each other.
    """
    text = str(name_or_path)
    path = Path(text)
    if path.suffix == ".toml":
        if not path.is_file():
            raise RecipeError("there is no such recipe file", where=text, remedy="check the path")
        return _read(path)
    shipped = _SHIPPED / f"{text}.toml"
    names = [each.stem for each in sorted(_SHIPPED.glob("*.toml"))]
    if text not in names:
        raise RecipeError(
            "there is no such recipe", got=text, remedy=_suggestion(text, names, "recipes list")
        )
    return _read(shipped)


def _read(path: Path) -> Recipe:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(
            "the recipe cannot be read",
            where=str(path),
            got=str(error),
            remedy="correct the file; `edgepipe recipes show int8` shows one",
        ) from error
    file = _convert(content, _RecipeFile, str(path))
    if not file.passes:
        raise RecipeError("the recipe holds no pass", where=str(path), remedy="add a [[passes]] table")
    passes = tuple(
        _read_pass(table, f"{path}, step {step}") for step, table in enumerate(file.passes, start=1)
    )
    check_chain(passes, where=str(path))
    return Recipe(name=path.stem, description=file.description, passes=passes, precision=file.precision)


def _read_pass(table: dict[str, Any], where: str) -> Pass:
    name = table.get("use")
    if not isinstance(name, str):
        raise RecipeError(
            "a step does not say which pass it is", where=where, remedy='write use = "the pass\'s name"'
        )
    try:
        kind = load_pass(name)
    except RecipeError as error:
        raise RecipeError(error.what, where=where, got=error.got, remedy=error.remedy) from error
    settings = {key: value for key, value in table.items() if key != "use"}
    return _convert(settings, kind, f"{where} ({name})")


def _convert(content: dict[str, Any], kind: type[Record], where: str) -> Record:
    """Validates a TOML table against a record."""
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    for key in content:
        if key not in known:
            raise RecipeError(
                "an unknown key", where=where, got=key, remedy=_suggestion(key, known, "passes show")
            )
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        key = place.strip("`").removeprefix("$.")
        raise RecipeError(
            "a value that does not fit",
            where=f"{where}, key {key}" if key else where,
            got=_found(content, key, what),
            remedy=_taken(kind, key),
        ) from error


def _steps(key: str) -> list[str]:
    """The names and numbers of a path such as "overrides[0].layers"."""
    return re.findall(r"[^.\[\]]+", key)


def _found(content: Any, key: str, what: str) -> str:
    """The value that does not fit, with what is wrong with it where the value does not tell."""
    for step in _steps(key):
        content = content[int(step) if isinstance(content, list) else step]
    if isinstance(content, dict | list):
        return what
    return msgspec.json.encode(content).decode()


def _taken(kind: type[msgspec.Struct], key: str) -> str:
    """What a key of a table takes, in words."""
    described: Any = kind
    for step in _steps(key):
        if step.isdigit():
            described = get_args(described)[0]
        elif isinstance(described, type) and issubclass(described, msgspec.Struct):
            fields = {field.encode_name: field.type for field in msgspec.structs.fields(described)}
            described = fields[step]
    takes = f"it takes {accepted_values(described)}"
    return f"{takes}; see edgepipe passes show {pass_name(kind)}" if issubclass(kind, Pass) else takes


def check_chain(passes: Iterable[Pass], *, given: Format | None = None, where: str = "") -> None:
    """Makes sure that each pass takes what the one before it gives.

    Args:
        passes: The passes, in order.
        given: Format of the model that the first is applied to; None where that is not known yet.
        where: Names the recipe in the error.

    Raises:
        RecipeError: A pass does not fit.
    """
    giver = "the model is" if given else ""
    current: str | None = given
    for step, each in enumerate(passes, start=1):
        if current is not None and each.takes != current:
            article = "an" if each.takes == "onnx" else "a"
            raise RecipeError(
                f"step {step} ({pass_name(each)}) takes {article} {each.takes} model, but {giver} {current}",
                where=where,
                remedy="reorder the passes, or put a conversion between them",
            )
        current, giver = each.gives, f"step {step} gives"


def _suggestion(name: str, known: Iterable[str], command: str) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    listed = (
        f"see them with: edgepipe {command}" if command.endswith("list") else f"known: {', '.join(known)}"
    )
    return f"did you mean {' or '.join(near)}? {listed}" if near else listed
