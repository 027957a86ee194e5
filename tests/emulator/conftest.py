"""What tests of emulated devices share: a state folder of their own, and engines that are scripts."""

import json

import pytest


@pytest.fixture(autouse=True)
def state(tmp_path_factory, monkeypatch):
    """Keeps the developer's own emulated devices out of every test."""
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    monkeypatch.delenv("EDGEPIPE_ENGINE", raising=False)
    return folder


@pytest.fixture
def engines(tmp_path, monkeypatch):
    """Puts programs on a PATH that has no others; each prints what it is told to, and ends as told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(name, *, stdout="", stderr="", status=0, **answers):
        for command, said in {"": stdout, **answers}.items():
            text = said if isinstance(said, str) else json.dumps(said)
            (folder / f"{name}.{command}.out").write_text(text)
        (folder / f"{name}.err").write_text(stderr)
        program = folder / name
        program.write_text(
            "#!/bin/sh\n"
            f'echo "$@" >>{folder}/{name}.log\n'
            f'said={folder}/{name}.$1.out; [ -e "$said" ] || said={folder}/{name}..out\n'
            f'while IFS= read -r line || [ -n "$line" ]; do echo "$line"; done <"$said"\n'
            f'while IFS= read -r line || [ -n "$line" ]; do echo "$line" >&2; done <{folder}/{name}.err\n'
            f"exit {status}\n"
        )
        program.chmod(0o755)
        return folder / f"{name}.log"

    return install
