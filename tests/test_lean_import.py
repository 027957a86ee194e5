"""Starting edgepipe is cheap: no framework, no runtime and no SSH is loaded before it is needed."""

import json
import subprocess
import sys

import pytest

HEAVY = {
    "PIL",
    "ai_edge_litert",
    "asyncssh",
    "jinja2",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "paramiko",
    "sklearn",
    "tensorflow",
    "tf2onnx",
    "torch",
}
NOUNS = ("errors", "events", "units", "model", "data", "target", "passes", "bundle")


def loaded_by(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after running `code`."""
    report = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_the_check_itself_sees_what_is_loaded():
    assert "numpy" in loaded_by("import numpy")


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_by("import edgepipe") & HEAVY


@pytest.mark.parametrize("noun", NOUNS)
def test_nouns_load_nothing_heavy(noun: str):
    assert not loaded_by(f"import edgepipe.{noun}") & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["deploy", "--help"], ["targets", "list", "--json"]])
def test_help_and_listings_load_nothing_heavy(arguments: list[str]):
    code = (
        "import sys\n"
        "from edgepipe.cli import main\n"
        f"sys.argv = ['edgepipe', *{arguments!r}]\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
    )
    assert not loaded_by(code) & HEAVY
