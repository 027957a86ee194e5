"""What a pip user gets is what the checkout holds: targets, recipes, templates and the agent travel along."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(command: list[str | Path], **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, folder: Path) -> Path:
    run([sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder], cwd=source)
    [made] = [path for path in folder.iterdir() if path.suffix in {".whl", ".gz"}]
    return made


def files_of(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's packages and scripts, as pip lays them out."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*command, "--no-deps", "--no-index", "--no-compile", "--target", site, wheel])
    return site


def python(installed: Path, code: str, folder: Path) -> str:
    """Runs `code` in `folder` with the installed wheel in front of everything else."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return run([sys.executable, "-c", code], cwd=folder, env=environment).strip()


def tracked(folder: str, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((ROOT / folder).glob(pattern))}


def test_targets_travel(wheel: Path):
    files = files_of(wheel)
    expected = tracked("targets", "*.toml")
    assert len(expected) > 8
    for name, content in expected.items():
        assert files[f"edgepipe/targets/{name}"] == content


@pytest.mark.parametrize("folder", ["edgepipe/recipes", "edgepipe/report/templates"])
def test_data_files_travel(folder: str, wheel: Path):
    files = files_of(wheel)
    expected = {path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert expected
    for path in expected:
        assert files[path.relative_to(ROOT).as_posix()] == path.read_bytes()


def test_what_emulated_devices_are_made_of_travels(wheel: Path):
    files = files_of(wheel)
    expected = [
        path for path in (ROOT / "docker").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert ROOT / "docker" / "Dockerfile" in expected
    for path in expected:
        assert files[f"edgepipe/{path.relative_to(ROOT).as_posix()}"] == path.read_bytes()


def test_agent_travels_byte_for_byte(wheel: Path):
    files = files_of(wheel)
    sources = list((ROOT / "device_agent").rglob("*.py"))
    assert ROOT / "device_agent" / "__main__.py" in sources
    for path in sources:
        assert files[path.relative_to(ROOT).as_posix()] == path.read_bytes()


def test_nothing_else_travels(wheel: Path):
    tops = {name.partition("/")[0] for name in files_of(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edgepipe", "device_agent"}
    assert not [name for name in files_of(wheel) if name.endswith((".pyc", ".orig")) or "/tests/" in name]


def test_typed_marker_travels(wheel: Path):
    assert "edgepipe/py.typed" in files_of(wheel)


def test_installed_package_is_the_one_that_is_tested(installed: Path, tmp_path: Path):
    where = python(
        installed, "import edgepipe, device_agent; print(edgepipe.__file__, device_agent.__file__)", tmp_path
    )
    assert all(Path(path).is_relative_to(installed) for path in where.split())


def test_installed_targets_are_found_from_any_folder(installed: Path, tmp_path: Path):
    code = (
        "from edgepipe.target import list_targets, load_target, targets_folder\n"
        "print(targets_folder(), len(list_targets()), load_target('jetson').name)"
    )
    folder, count, name = python(installed, code, tmp_path).split()
    assert Path(folder).is_relative_to(installed)
    assert (int(count), name) == (len(tracked("targets", "*.toml")) - 1, "jetson-orin-nano")


def test_installed_recipes_are_found_from_any_folder(installed: Path, tmp_path: Path):
    code = "from edgepipe.recipe import list_recipes; print(*[each.name for each in list_recipes()])"
    assert python(installed, code, tmp_path).split() == [
        path.removesuffix(".toml") for path in tracked("edgepipe/recipes", "*.toml")
    ]


def test_installed_agent_has_the_same_digest(installed: Path, tmp_path: Path):
    build_it = "from edgepipe.device.agent import build_agent; import hashlib"
    code = f"{build_it}; print(hashlib.sha256(build_agent()).hexdigest())"
    assert python(installed, code, tmp_path) == run([sys.executable, "-c", code], cwd=ROOT).strip()


def test_installed_command_starts(installed: Path, tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    script = installed / "bin" / "edgepipe"
    assert "deploy" in run([script, "--help"], cwd=tmp_path, env=environment)


def test_sdist_makes_the_same_wheel(wheel: Path, tmp_path: Path):
    sdist = build("sdist", ROOT, tmp_path / "sdist")
    run(["tar", "-xzf", sdist, "-C", tmp_path])
    [source] = [path for path in tmp_path.iterdir() if path.name.startswith("edgepipe-")]
    again = files_of(build("wheel", source, tmp_path / "wheel"))
    assert again == files_of(wheel)


def third_party_imports() -> dict[str, set[str]]:
    """Which files import which top-level package that is neither the standard library nor ours."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "edgepipe").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top not in {"edgepipe", "device_agent"}:
                    found.setdefault(top, set()).add(path.relative_to(ROOT).as_posix())
    return found


def canonical(requirement: str) -> str:
    """The name of a requirement as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_every_import_is_a_declared_requirement():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [
        *project["dependencies"],
        *(each for name in extras if name != "dev" for each in extras[name]),
    ]
    names = set(map(canonical, declared))
    distributions = packages_distributions()
    undeclared = {
        package: files
        for package, files in third_party_imports().items()
        # Namespace packages such as `google` belong to many distributions: one of them must be declared.
        if not names & set(map(canonical, distributions.get(package, [package])))
    }
    assert not undeclared


def test_every_core_requirement_is_used():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    distributions = packages_distributions()
    imported = {
        canonical(each) for package in third_party_imports() for each in distributions.get(package, [])
    }
    assert set(map(canonical, project["dependencies"])) <= imported
