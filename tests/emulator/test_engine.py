"""Which container engine is taken, and what is said where there is none that works."""

import pytest

from edgepipe.emulator.engine import find_engine, install_command
from edgepipe.errors import EmulatorFailed, EngineMissing

DOCKER = {"ServerVersion": "28.2.2", "NCPU": 8, "MemTotal": 16 << 30, "SecurityOptions": ["name=seccomp"]}
PODMAN = {
    "host": {"cpus": 4, "memTotal": 8 << 30, "security": {"rootless": True}},
    "version": {"Version": "5.4.0"},
}


def refused():
    with pytest.raises(EngineMissing) as caught:
        find_engine()
    assert caught.value.exit_code == 52
    assert "--emulator native" in caught.value.remedy
    return caught.value


def test_without_any_the_install_command_is_told(engines):
    error = refused()
    assert "no container engine is installed" in error.what
    assert install_command() in error.remedy


def test_docker_goes_before_podman(engines):
    engines("podman", stdout=PODMAN)
    engines("docker", stdout=DOCKER)
    engine = find_engine()
    assert (engine.kind, engine.version, engine.cpus, engine.memory_bytes) == (
        "docker",
        "28.2.2",
        8,
        16 << 30,
    )
    assert not engine.rootless


def test_podman_is_known_under_the_name_of_docker(engines):
    engines("docker", stdout=PODMAN)
    engine = find_engine()
    assert (engine.kind, engine.cpus, engine.rootless) == ("podman", 4, True)


def test_rootless_docker_is_seen(engines):
    engines("docker", stdout=DOCKER | {"SecurityOptions": ["name=seccomp", "name=rootless"]})
    assert find_engine().rootless


def test_an_engine_that_does_not_answer_leaves_the_turn_to_the_other(engines):
    engines("docker", stderr="Cannot connect to the Docker daemon", status=1)
    engines("podman", stdout=PODMAN)
    assert find_engine().kind == "podman"


def test_a_daemon_that_does_not_run_is_to_be_started(engines):
    complaint = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock."
    engines("docker", stdout={"ServerErrors": [complaint]}, status=1)
    error = refused()
    assert error.got == complaint
    assert "start" in error.remedy


def test_a_socket_that_is_not_ours_names_the_group(engines):
    engines(
        "docker", stderr="permission denied while trying to connect to the Docker daemon socket", status=1
    )
    assert "usermod -aG docker" in refused().remedy


def test_the_engine_can_be_named(engines, monkeypatch):
    engines("docker", stdout=DOCKER)
    engines("podman", stdout=PODMAN)
    monkeypatch.setenv("EDGEPIPE_ENGINE", "podman")
    assert find_engine().kind == "podman"
    monkeypatch.setenv("EDGEPIPE_ENGINE", "nerdctl")
    assert "EDGEPIPE_ENGINE=nerdctl" in refused().where


def test_a_command_that_fails_quotes_the_engine(engines):
    engines("docker", stdout=DOCKER)
    engine = find_engine()
    engines("docker", stderr="exec /bin/sh: exec format error", status=1)
    with pytest.raises(EmulatorFailed) as caught:
        engine.run("build", "--platform", "linux/arm64")
    assert "exec format error" in caught.value.got
    assert "qemu-user-static" in caught.value.remedy


def test_a_command_that_hangs_is_given_up(engines, tmp_path):
    engines("docker", stdout=DOCKER)
    engine = find_engine()
    program = tmp_path / "bin" / "docker"
    program.write_text("#!/bin/sh\nexec /bin/sleep 20\n")
    with pytest.raises(EmulatorFailed, match="did not end"):
        engine.attempt("ps", timeout_s=0.2)
