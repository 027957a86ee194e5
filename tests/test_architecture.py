"""The shape of the code itself: layers, sizes, names, docstrings, the error tree, the repository's files."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

import edgepipe
from edgepipe import errors

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "edgepipe").rglob("*.py"), *(ROOT / "device_agent").rglob("*.py")])
MAX_FUNCTION_LINES = 60
MAX_MODULE_LINES = 450
MAX_PARAMETERS = 7
MAX_FILE_BYTES = 1_000_000
MAX_FOLDER_DEPTH = 3
VAGUE_NAME = re.compile(r"(^|_)(utils?|helpers?|misc|common)(_|$)|Manager|Helper|Utils?($|[A-Z])")

COMMANDS = ROOT / "edgepipe" / "cli"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


every_source = pytest.mark.parametrize("path", SOURCES, ids=name_of)


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def tracked_files() -> list[Path]:
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: git lists the files that belong to the project")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


@every_source
def test_functions_and_modules_are_short(path: Path):
    long = [
        f"{node.name}: {size} lines"
        for node in functions(path)
        if (size := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long, "which noun is missing?"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_MODULE_LINES


@pytest.mark.parametrize("path", [path for path in SOURCES if COMMANDS not in path.parents], ids=name_of)
def test_parameters_are_few(path: Path):
    """Commands are apart: there each parameter is one option of the command line."""
    many = []
    for node in functions(path):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        names = [argument.arg for argument in arguments if argument.arg not in {"self", "cls"}]
        if len(names) > MAX_PARAMETERS:
            many.append(f"{node.name}({', '.join(names)})")
    assert not many


@every_source
def test_names_say_what_things_are(path: Path):
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = [path.stem, *(node.name for node in nodes if isinstance(node, Function | ast.ClassDef))]
    assert not [name for name in names if VAGUE_NAME.search(name)]


@every_source
def test_public_things_have_docstrings(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [(path.stem, tree)] if tree.body else []
    public_classes = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    for owner in (tree, *public_classes):
        nodes += [(node.name, node) for node in owner.body if isinstance(node, Function | ast.ClassDef)]
    bare = [name for name, node in nodes if not name.startswith("_") and not ast.get_docstring(node)]
    assert not bare


def test_folders_are_flat():
    deep = [
        name_of(path)
        for path in SOURCES
        if len(path.relative_to(ROOT / path.relative_to(ROOT).parts[0]).parts) - 1 > MAX_FOLDER_DEPTH
    ]
    assert not deep


def test_layers_are_kept():
    """The contracts themselves stand in pyproject.toml under [tool.importlinter]."""
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_module_is_in_a_layer():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    named = {name.strip(" ()") for layer in layers for name in re.split(r"[|:]", layer)}
    # Subcommands of `python -m edgepipe` and the like are starters, not layers.
    modules = {module.name for module in pkgutil.iter_modules(edgepipe.__path__)} - {"__main__"}
    assert modules <= named


def test_agent_imports_the_standard_library_and_itself():
    """The runtimes and NumPy are the exception: they are what is measured, and loaded inside functions."""
    measured = {"numpy", "onnxruntime", "ai_edge_litert", "tflite_runtime"}
    for path in sorted((ROOT / "device_agent").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_module_level = set(map(id, tree.body))
        for node in ast.walk(tree):
            for name in _imported(node):
                top = name.partition(".")[0]
                if top in measured:
                    assert path.parent.name == "runtimes", f"{name_of(path)} imports {name}"
                    assert id(node) not in at_module_level, f"{name_of(path)} imports {name} at module level"
                else:
                    assert top == "device_agent" or top in sys.stdlib_module_names, (
                        f"{name_of(path)} imports {name}"
                    )


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module or ""]
    return []


def _error_classes() -> list[type[errors.EdgepipeError]]:
    members = inspect.getmembers(errors, inspect.isclass)
    return [kind for _, kind in members if issubclass(kind, errors.EdgepipeError)]


def test_exit_codes_are_unique_and_can_be_exit_codes():
    codes = [kind.exit_code for kind in _error_classes()]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 256 for code in codes)


def test_error_tree_in_the_docstring_is_the_real_one():
    drawn: dict[str, tuple[int, str]] = {}
    path: list[str] = []
    for line in inspect.getdoc(errors).splitlines():
        row = re.match(r"^((?:│   |    )*)(├── |└── )?(\w+)\s+(\d+)\b", line)
        if row is None:
            continue
        depth = len(row[1]) // 4 + bool(row[2])
        del path[depth:]
        drawn[row[3]] = (int(row[4]), path[-1] if path else "Exception")
        path.append(row[3])
    assert drawn == {kind.__name__: (kind.exit_code, kind.__base__.__name__) for kind in _error_classes()}


def test_errors_are_defined_in_one_place():
    elsewhere = []
    for path in SOURCES:
        if path.name == "errors.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                if bases & {kind.__name__ for kind in _error_classes()}:
                    elsewhere.append(f"{name_of(path)}: {node.name}")
    assert not elsewhere


def test_public_surface_is_all_there():
    assert len(set(edgepipe.__all__)) == len(edgepipe.__all__)
    for name in edgepipe.__all__:
        assert getattr(edgepipe, name) is not None
    assert set(edgepipe.__all__) <= set(dir(edgepipe))


def test_every_module_can_be_imported():
    """A module that nothing imports yet must not be broken in silence."""
    for module in pkgutil.walk_packages(edgepipe.__path__, "edgepipe."):
        if module.name.rpartition(".")[2] != "__main__":
            importlib.import_module(module.name)


def test_repository_holds_no_large_file():
    large = [path for path in tracked_files() if path.stat().st_size >= MAX_FILE_BYTES]
    assert not large


def test_no_file_names_a_path_of_one_machine():
    """Paths of the machine that made them make files useless elsewhere, and say more than they should."""
    here = re.compile(
        "|".join(re.escape(str(path)) for path in (ROOT, ROOT.parent / "shared", Path.home() / ".pyenv"))
        + r"|/(?:home|Users)/(?!(?:pi|nvidia|someone|user|you)\b)[a-z]\w*/"
    )
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name_of(path)}: {hit}" for hit in here.findall(text)]
    assert not found


def test_constraints_pin_every_requirement():
    """`make` installs from the constraints alone, so each requirement stands there, at one plain version."""
    pins = dict(
        line.strip().split("==")
        for line in (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    names = {re.match(r"[\w.-]+", requirement)[0] for requirement in wanted} - {"edgepipe"}
    pinned = {_canonical(name) for name in pins}
    assert {_canonical(name) for name in names} <= pinned
    assert not [version for version in pins.values() if "+" in version], (
        "local versions exist on one index only"
    )


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
