"""The scripts behind `make`: a stale virtual environment goes, a good one stays, what is missing is said."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / ".ci"


def run(script: str, *arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", SCRIPTS / script, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A folder that looks like a virtual environment made in `tmp_path`."""
    folder = tmp_path / ".venv"
    program(folder / "bin" / "python", f'exec {sys.executable} "$@"')
    (folder / "bin" / "pip").write_text(f"#!{folder}/bin/python\n")
    return folder


def test_good_venv_is_kept(venv: Path, tmp_path: Path):
    done = run("discard-stale-venv.sh", ".venv", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert venv.is_dir()


def test_absent_venv_is_no_error(tmp_path: Path):
    assert run("discard-stale-venv.sh", ".venv", folder=tmp_path).returncode == 0


@pytest.mark.parametrize("spoil", ["gone", "broken", "old"])
def test_venv_whose_python_does_not_work_is_removed(spoil: str, venv: Path, tmp_path: Path):
    if spoil == "gone":
        (venv / "bin" / "python").unlink()
    else:
        program(venv / "bin" / "python", "exit 1" if spoil == "old" else "kill -9 $$")
    done = run("discard-stale-venv.sh", ".venv", folder=tmp_path)
    assert done.returncode == 0
    assert "Removing .venv" in done.stderr
    assert not venv.exists()


def test_venv_that_was_made_elsewhere_is_removed(venv: Path, tmp_path: Path):
    moved = tmp_path / "moved"
    moved.mkdir()
    venv.rename(moved / ".venv")
    done = run("discard-stale-venv.sh", ".venv", folder=moved)
    assert "another folder" in done.stderr
    assert not (moved / ".venv").exists()


def test_first_python_that_is_new_enough_makes_the_venv(tmp_path: Path):
    programs = tmp_path / "programs"
    program(programs / "python3.11", "exit 127")  # a shim without a Python behind it
    program(programs / "python3.12", 'echo "$0 $*" >>"$LOG"; if [ "$1" = --version ]; then echo 3.12; fi')
    log = tmp_path / "log"
    done = run("make-venv.sh", ".venv", folder=tmp_path, PATH=str(programs), LOG=str(log), PYTHON="")
    assert done.returncode == 0, done.stderr
    assert log.read_text().splitlines()[-1] == f"{programs / 'python3.12'} -m venv --clear .venv"


def test_machine_without_python_is_told_what_to_install(tmp_path: Path):
    done = run("make-venv.sh", ".venv", folder=tmp_path, PATH=str(tmp_path), PYTHON="")
    assert done.returncode == 1
    assert "Python 3.11" in done.stderr
    assert "apt-get install" in done.stderr


def test_missing_system_packages_are_named_where_they_cannot_be_installed(tmp_path: Path):
    expected = "openssh-client" if Path("/usr/sbin/sshd").exists() else "openssh-server openssh-client"
    program(tmp_path / "id", "echo 1000")
    done = run("install-system-packages.sh", folder=tmp_path, PATH=str(tmp_path))
    assert done.returncode == 0, "the other tests run all the same"
    assert f"apt-get install {expected}" in done.stderr
