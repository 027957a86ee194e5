"""Targets: the shipped profiles are whole and sourced, and a bad file gives one clear error."""

import inspect
import re
import tomllib
import types
import typing
from pathlib import Path

import msgspec
import pytest

import device_agent.throttle
from device_agent.machine import Machine
from device_agent.power import sensor_facts
from edgepipe.errors import TargetError
from edgepipe.target import (
    VENV,
    Emulation,
    Runtime,
    Target,
    list_targets,
    load_aliases,
    load_target,
    targets_folder,
)

SHIPPED = {
    "raspberrypi3",
    "raspberrypi4",
    "raspberrypi5",
    "raspberrypi-zero2w",
    "jetson-nano",
    "jetson-orin-nano",
    "jetson-agx-orin",
    "x86",
}
WHOLE = """
title = "A board"
architecture = "aarch64"
cpu = "2 x Cortex-A53"
cores = 2
memory_mb = 1024
os = "Debian 12"
python = "3.11"
activation = "int8"
threads = 2
runtimes = [{ name = "litert", package = "ai-edge-litert", version = "2.3.0" }]
"""
every_target = pytest.mark.parametrize("target", list_targets(), ids=lambda target: target.name)


@pytest.fixture
def board(tmp_path: Path):
    """Writes a target file of the given text and returns its path."""

    def write(text: str, name: str = "board.toml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def fails(text_or_path: object) -> TargetError:
    with pytest.raises(TargetError) as caught:
        load_target(text_or_path)
    assert caught.value.exit_code == 30
    return caught.value


def test_every_promised_target_is_shipped():
    assert {target.name for target in list_targets()} == SHIPPED


def test_list_is_sorted_and_equals_loading_one_by_one():
    targets = list_targets()
    assert [target.name for target in targets] == sorted(SHIPPED)
    assert targets == tuple(load_target(name) for name in sorted(SHIPPED))


@pytest.mark.parametrize(
    ("family", "default"), [("raspberrypi", "raspberrypi4"), ("jetson", "jetson-orin-nano")]
)
def test_family_name_means_its_default(family: str, default: str):
    assert load_target(family) == load_target(default)


def test_no_alias_hides_a_target_and_each_leads_to_one():
    aliases = load_aliases()
    assert not aliases.keys() & SHIPPED
    assert set(aliases.values()) <= SHIPPED


@every_target
def test_every_figure_has_a_source(target: Target):
    explained = set(Target.__struct_fields__) - {"name", "title", "facts", "notes"}
    if target.execution_providers == ("CPUExecutionProvider",):
        explained.discard("execution_providers")
        assert set(target.facts) - {"execution_providers"} == explained
    else:
        assert set(target.facts) == explained
    for source in target.facts.values():
        assert re.match(r"https://\S+\.\S+|measured: \w|assumption: \w|NVIDIA [\w .-]+,", source), source


@every_target
def test_profile_agrees_with_itself(target: Target):
    assert target.threads <= target.cores
    assert "CPUExecutionProvider" in target.execution_providers, "the last resort of ONNX Runtime"
    assert len({runtime.name for runtime in target.runtimes}) == len(target.runtimes)
    symmetric = target.activation == "int8-symmetric"
    assert symmetric == ("TensorrtExecutionProvider" in target.execution_providers)
    assert (target.activation == "uint8") == (target.architecture == "x86_64")


@every_target
def test_every_shipped_target_can_be_extended(target: Target, board):
    mine = load_target(board(f'extends = "{target.name}"\nthreads = 1\n'))
    assert mine == msgspec.structs.replace(
        target, name="board", threads=1, facts={k: v for k, v in target.facts.items() if k != "threads"}
    )


@every_target
def test_agent_has_the_readers_that_are_named(target: Target, tmp_path: Path):
    nowhere = Machine(root=str(tmp_path), run=lambda argv: "")
    assert set(target.power_sources) <= {facts.source for facts in sensor_facts(nowhere)}
    throttle = inspect.getsource(device_agent.throttle)
    assert all(f'Reading("{name}"' in throttle for name in target.throttle_sources)


def test_32_bit_arm_runs_tflite_runtime_only():
    target = load_target("raspberrypi3")
    assert (target.architecture, target.formats) == ("armv7l", ("tflite",))
    assert [runtime.name for runtime in target.runtimes] == ["tflite-runtime"]


def test_install_command_names_all_that_pip_must_know():
    [runtime] = load_target("raspberrypi3").runtimes
    assert runtime.install_command.endswith("/pip install 'tflite-runtime==2.14.0' 'numpy<2'")
    plain = Runtime(name="litert", package="ai-edge-litert", version="2.3.0")
    assert plain.install_command == (
        "python3 -m venv --system-site-packages ~/.edgepipe/venv && "
        "~/.edgepipe/venv/bin/pip install 'ai-edge-litert==2.3.0'"
    )


def test_what_is_installed_goes_where_the_agent_looks_first():
    from edgepipe.device import agent

    assert agent._CANDIDATES[0] == f"{VENV}/bin/python3".removeprefix("~/")


def test_formats_follow_the_order_of_runtimes_without_repeats():
    runtimes = tuple(
        Runtime(name=name, package="p", version="1") for name in ("tflite-runtime", "onnxruntime", "litert")
    )
    target = msgspec.structs.replace(load_target("x86"), runtimes=runtimes)
    assert target.formats == ("tflite", "onnx")


def test_file_of_the_user_is_named_after_itself(board):
    target = load_target(board(WHOLE, "gateway-c.toml"))
    assert (target.name, target.title, target.cores) == ("gateway-c", "A board", 2)
    assert target.execution_providers == ("CPUExecutionProvider",)


def test_a_provider_of_a_vendors_build_is_taken(board):
    path = board('execution_providers = ["VendorNpuExecutionProvider"]\n' + WHOLE)
    assert load_target(path).execution_providers == ("VendorNpuExecutionProvider",)


def test_path_may_be_a_text(board):
    path = board(WHOLE)
    assert load_target(str(path)) == load_target(path)


def test_facts_merge_and_an_overridden_figure_loses_its_source(board):
    base = load_target("raspberrypi5")
    mine = load_target(
        board('extends = "raspberrypi5"\nmemory_mb = 99\ncpu = "x"\n[facts]\nmemory_mb = "my sheet"\n')
    )
    assert mine.facts["memory_mb"] == "my sheet"
    assert "cpu" not in mine.facts
    assert mine.facts["cores"] == base.facts["cores"]


def test_extending_by_family_name_takes_the_default(board):
    assert load_target(board('extends = "jetson"\n')).cores == load_target("jetson-orin-nano").cores


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("rasberrypi4", "raspberrypi4"), ("Jetson", "jetson"), ("jetson-orin", "jetson-orin-nano")],
)
def test_unknown_name_suggests_near_ones(wrong: str, near: str):
    error = fails(wrong)
    assert error.got == wrong
    assert near in error.remedy


def test_name_unlike_any_lists_all():
    remedy = fails("zzzz").remedy
    assert all(name in remedy for name in SHIPPED | {"jetson", "raspberrypi"})


def test_aliases_file_is_not_a_target():
    fails("aliases")


@pytest.mark.parametrize("name", ["../targets/x86", "", ".", "x86.toml/"])
def test_name_is_never_a_path_into_the_folder(name: str):
    fails(name)


def test_missing_file_is_named(tmp_path: Path):
    path = tmp_path / "absent.toml"
    assert fails(path).where == str(path)


def test_folder_is_not_a_file(tmp_path: Path):
    path = tmp_path / "folder.toml"
    path.mkdir()
    assert fails(path).where == str(path)


@pytest.mark.parametrize(
    ("text", "key", "remedy"),
    [
        (WHOLE + "coers = 4\n", "coers", "cores"),
        (WHOLE.replace("cores = 2", 'cores = "two"'), "cores", ""),
        (WHOLE.replace("cores = 2", "cores = 0"), "cores", ""),
        (WHOLE.replace("cores = 2", ""), "cores", ""),
        (WHOLE.replace('"3.11"', '"2.7"'), "python", ""),
        (WHOLE.replace('"aarch64"', '"sparc"'), "architecture", ""),
        (WHOLE.replace('"int8"', '"int4"'), "activation", ""),
        (WHOLE.replace('"litert"', '"tvm"'), "runtimes[0].name", ""),
        (WHOLE.replace("version =", "versoin ="), "runtimes[0]", ""),
        (re.sub("runtimes = .*", "runtimes = []", WHOLE), "runtimes", ""),
        ('power_sources = ["hwmn-ina"]\n' + WHOLE, "power_sources", "did you mean hwmon-ina?"),
        ('throttle_sources = ["thermal", "zzz"]\n' + WHOLE, "throttle_sources", "rpi, jetson-oc, thermal"),
        ('execution_providers = ["CUDA"]\n' + WHOLE, "execution_providers", "in full"),
        ('execution_providers = [""]\n' + WHOLE, "execution_providers", "in full"),
        (WHOLE + 'name = "other"\n', "name", "rename"),
        (WHOLE + "extends = 3\n", "extends", ""),
        (WHOLE + 'extends = "raspberrypy5"\n', "extends", "raspberrypi5"),
    ],
)
def test_malformed_file_names_file_and_key(text: str, key: str, remedy: str, board):
    path = board(text)
    error = fails(path)
    assert error.where.startswith(f"{path}: {key}")
    assert remedy in error.remedy
    assert error.remedy or error.got


@pytest.mark.parametrize("content", [b"cores = = 2", b"\xff\xfe\x00", b"[facts\n"])
def test_not_toml_names_the_file(content: bytes, tmp_path: Path):
    path = tmp_path / "board.toml"
    path.write_bytes(content)
    error = fails(path)
    assert (error.where, bool(error.got)) == (str(path), True)


def test_second_level_of_extends_is_refused(board, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    folder = tmp_path / "targets"
    folder.mkdir()
    (folder / "aliases.toml").write_text("")
    (folder / "base.toml").write_text(WHOLE)
    (folder / "middle.toml").write_text('extends = "base"\nthreads = 1\n')
    monkeypatch.setattr("edgepipe.target.targets_folder", lambda: folder)
    assert load_target("middle").threads == 1
    error = fails(board('extends = "middle"\n'))
    assert "'base'" in error.remedy


def test_malformed_aliases_name_their_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "aliases.toml").write_text("jetson = 3\n")
    monkeypatch.setattr("edgepipe.target.targets_folder", lambda: tmp_path)
    assert fails("jetson").where.endswith("aliases.toml")


def _field_rows(record: type) -> list[str]:
    """The rows of the field table, from the record's own docstring and types."""
    described = dict(
        re.findall(r"^ {4,8}(\w+): (.+)$", inspect.getdoc(record).split("Attributes:")[1], re.MULTILINE)
    )
    rows = []
    for field in msgspec.structs.fields(record):
        if record is Target and field.name == "name":
            continue
        optional = "" if field.required else ", optional"
        rows.append(f"| `{field.name}` | {_type_name(field.type)}{optional} | {described[field.name]} |")
    return rows


def _type_name(kind: object) -> str:
    if typing.get_origin(kind) is typing.Annotated:
        return _type_name(typing.get_args(kind)[0])
    if typing.get_origin(kind) is tuple:
        return "tables" if typing.get_args(kind)[0] is Runtime else "list of texts"
    if isinstance(kind, types.GenericAlias) and typing.get_origin(kind) is dict:
        return "texts by name"
    return {int: "integer", bool: "true or false", Emulation | None: "table"}.get(kind, "text")


@pytest.mark.parametrize("record", [Target, Runtime, Emulation])
def test_field_table_is_that_of_the_record(record: type):
    table = (targets_folder() / "README.md").read_text(encoding="utf-8")
    assert "\n".join(_field_rows(record)) in table


def test_readme_example_is_a_valid_target(board):
    text = (targets_folder() / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1]
    target = load_target(board(example))
    assert (target.memory_mb, target.threads) == (16384, 2)
    assert tomllib.loads(example)["facts"]["memory_mb"] == target.facts["memory_mb"]


def test_documented_table_is_that_of_the_files():
    text = (targets_folder().parent / "docs" / "targets.md").read_text(encoding="utf-8")
    names = {"tflite": "TFLite", "onnx": "ONNX"}
    for target in list_targets():
        formats = ", ".join(names[each] for each in target.formats)
        assert f"| `{target.name}` | {target.title} | {formats} | {target.activation} |" in text
