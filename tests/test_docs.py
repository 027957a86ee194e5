"""Documents say what the code says: tables are compared with the records, links with the files."""

import re
import tomllib
import types
import typing
from pathlib import Path

import msgspec
import pytest

from edgepipe.quantize.scheme import Override
from edgepipe.recipe import PASSES, list_recipes, load_pass, load_recipe, pass_name

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "targets").glob("*.md")]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_shipped_recipes_are_documented():
    rows = re.findall(r"^\| `(\w+)` \| (`.+`) \| (.+) \|$", text_of("docs/recipes.md"), re.MULTILINE)
    assert rows == [
        (each.name, ", ".join(f"`{pass_name(one)}`" for one in each.passes), each.description)
        for each in list_recipes()
    ]


def _values(kind: object) -> str:
    if typing.get_origin(kind) in {typing.Union, types.UnionType}:
        [kind] = [one for one in typing.get_args(kind) if one is not types.NoneType]
    if typing.get_origin(kind) is tuple and typing.get_origin(typing.get_args(kind)[0]) is typing.Literal:
        return f"several of {', '.join(map(str, typing.get_args(typing.get_args(kind)[0])))}"
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{msgspec.json.encode(value).decode()}`" for value in typing.get_args(kind))
    if typing.get_origin(kind) is typing.Annotated:
        [bounds] = kind.__metadata__
        if bounds.le is None:
            return f"{bounds.ge} or more"
        return f"{bounds.ge} to {bounds.le}" if bounds.gt is None else f"above {bounds.gt}, to {bounds.le}"
    return {bool: "`true`, `false`", tuple[Override, ...]: "tables, see below"}[kind]


def test_settings_of_passes_are_documented():
    rows = []
    for name in sorted(PASSES):
        kind = load_pass(name)
        inherited = set(kind.__base__.__struct_fields__)  # they are documented with that pass
        fields = [field for field in msgspec.structs.fields(kind) if field.name not in inherited]
        if not fields:
            rows.append(f"| `{name}` | none | | |")
        for field in fields:
            default = msgspec.json.encode(field.default).decode()
            rows.append(f"| `{name}` | `{field.name}` | `{default}` | {_values(field.type)} |")
    assert "\n".join(rows) in text_of("docs/recipes.md")


def test_example_recipe_is_valid(tmp_path: Path):
    [example] = re.findall(r"```toml\n(description.*?)```", text_of("docs/recipes.md"), re.DOTALL)
    path = tmp_path / "careful.toml"
    path.write_text(example)
    recipe = load_recipe(path)
    assert recipe.passes[1].ranges == tomllib.loads(example)["passes"][1]["ranges"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(document: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:|#", target):
            assert (document.parent / target.partition("#")[0]).exists(), target


def test_changelog_covers_the_version():
    import edgepipe

    headings = re.findall(r"^## (.+)$", text_of("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0].startswith(edgepipe.__version__)


def _layers() -> list[str]:
    contracts = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return [re.sub(r"[()]", "", layer) for layer in layers]


def test_documented_layers_are_the_enforced_ones():
    assert "\n".join(_layers()) in text_of("docs/architecture.md")


def test_documented_tree_names_every_module():
    tree = text_of("docs/architecture.md").partition("## Tree")[2].partition("## A pass")[0]
    entries = {path.name for path in (ROOT / "edgepipe").iterdir() if not path.name.startswith("__")}
    for name in entries - {"py.typed"}:
        assert re.search(rf"\b{re.escape(name)}(/| |$)", tree, re.MULTILINE), name
