"""Readers of /proc and /sys, on trees of real boards: text in, values out."""

import errno
import re
import tomllib
from pathlib import Path

import pytest

from device_agent.board import firmware, os_name, power_mode, read_board
from device_agent.cpu import clock_readings, cpu_facts, userland_architecture
from device_agent.emulation import container, emulation, hypervisor
from device_agent.machine import Machine
from device_agent.memory import count_oom_kills, memory_facts
from device_agent.power import choose_source, rapl, sensor_facts
from device_agent.probe import probe
from device_agent.protocol import Facts, decode_event, encode
from device_agent.records import POWER_SOURCES, THROTTLE_SOURCES, CpuPolicy, Reading
from device_agent.thermal import temperature_readings
from device_agent.throttle import throttle_readings

BOARDS = Path(__file__).parent / "boards"
TARGETS = Path(__file__).resolve().parents[2] / "targets"


@pytest.fixture
def board(tmp_path):
    """Lays out a board's tree and gives it as a Machine."""

    def lay_out(name):
        parts = re.split(r"^==> (.+) <==\n", (BOARDS / f"{name}.txt").read_text(), flags=re.MULTILINE)[1:]
        commands = {}
        for path, text in zip(parts[::2], parts[1::2], strict=True):
            contents = text.removesuffix("\n")
            if path.startswith("$ "):
                commands[path[2:]] = contents
                continue
            if "device-tree" in path:
                contents = contents.rstrip("\n") + "\0"
            put(tmp_path, path, contents)
        return Machine(str(tmp_path), lambda argv: commands.get(" ".join(argv), ""))

    return lay_out


def put(root, path, contents):
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(contents)


ALL = sorted(path.stem for path in BOARDS.glob("*.txt"))


@pytest.mark.parametrize("name", ALL)
def test_facts_of_every_board_can_be_sent(name, board, tmp_path):
    facts = probe(board(name), str(tmp_path), import_runtimes=False)
    assert isinstance(facts, Facts)
    assert decode_event(encode(facts)) == facts
    assert tuple(sensor.source for sensor in facts.sensors) == POWER_SOURCES
    assert {reading.source for reading in facts.throttle} <= set(THROTTLE_SOURCES)
    assert facts.emulated == bool(facts.emulation)


@pytest.mark.parametrize(
    ("name", "model", "cpu", "system", "release", "mode"),
    [
        (
            "raspberrypi4",
            "Raspberry Pi 4 Model B Rev 1.4",
            "Cortex-A72",
            "Debian GNU/Linux 12 (bookworm)",
            "bootloader 2023/01/11",
            "",
        ),
        (
            "raspberrypi5",
            "Raspberry Pi 5 Model B Rev 1.0",
            "Cortex-A76",
            "Debian GNU/Linux 12 (bookworm)",
            "bootloader 2024/09/23",
            "",
        ),
        (
            "raspberrypi-zero2w",
            "Raspberry Pi Zero 2 W Rev 1.0",
            "Cortex-A53",
            "Debian GNU/Linux 12 (bookworm)",
            "",
            "",
        ),
        (
            "jetson-orin-nano",
            "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
            "Cortex-A78AE",
            "Ubuntu 22.04.5 LTS",
            "L4T R36.4.3",
            "15W",
        ),
        (
            "jetson-agx-orin",
            "NVIDIA Jetson AGX Orin Developer Kit",
            "Cortex-A78AE",
            "Ubuntu 22.04.5 LTS",
            "L4T R36.4.0",
            "MAXN",
        ),
        (
            "jetson-nano",
            "NVIDIA Jetson Nano Developer Kit",
            "Cortex-A57",
            "Ubuntu 18.04.6 LTS",
            "L4T R32.7.1",
            "MAXN",
        ),
        (
            "x86-laptop",
            "LENOVO 21HDCTO1WW",
            "13th Gen Intel(R) Core(TM) i5-1340P",
            "Fedora Linux 40 (Workstation Edition)",
            "",
            "",
        ),
    ],
)
def test_identity(name, model, cpu, system, release, mode, board):
    machine = board(name)
    assert read_board(machine).model == model
    assert cpu_facts(machine).model == cpu
    assert os_name(machine) == system
    assert firmware(machine) == release
    assert power_mode(machine) == mode


@pytest.mark.parametrize(
    ("name", "source", "coverage", "rails", "power_mw"),
    [
        ("jetson-orin-nano", "ina3221", "board", ("VDD_IN",), 5400.0),
        # 19 V x 0.2 A + 19 V x 0.1 A + 5 V x 0.8 A; the sub-rail of VIN_SYS_5V0 is left out
        ("jetson-agx-orin", "ina3221", "board", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 9700.0),
        ("jetson-nano", "ina3221", "board", ("POM_5V_IN",), 2386.0),
        ("raspberrypi-zero2w", "hwmon-ina", "board", ("ina219 hwmon2",), 1280.0),
        ("x86-laptop", "battery", "board", ("BAT0",), 10500.0),
    ],
)
def test_power(name, source, coverage, rails, power_mw, board):
    found = choose_source((source,), board(name)).source
    assert (found.name, found.kind, found.coverage, found.rails) == (source, "sampled", coverage, rails)
    assert found.read() == pytest.approx(power_mw)


def test_power_of_raspberry_pi_5_is_the_sum_of_its_rails(board):
    found = choose_source(("rpi-pmic",), board("raspberrypi5")).source
    rails_mw = [370, 660, 270, 22, 0, 220, 400, 2250, 3.3, 3.3, 4, 51]
    assert found.read() == pytest.approx(sum(rails_mw))
    assert len(found.rails) == len(rails_mw)
    assert "EXT5V" not in found.rails  # a voltage without a current
    assert "USB" in found.note


def test_rapl_counts_packages_once_and_survives_a_wrap(board, tmp_path):
    found = choose_source(("rapl",), board("x86-laptop")).source
    assert (found.kind, found.coverage, found.rails) == ("counter", "soc", ("package-0",))
    assert found.wrap_uj == 262143328850
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    assert found.read() == 0.0
    for raw_uj, expected_uj in ((262143100000, 100000), (171150, 500000), (671150, 1000000)):
        counter.write_text(f"{raw_uj}\n")
        assert found.read() == expected_uj


@pytest.mark.parametrize("name", ALL)
def test_boards_have_no_sensors_but_their_own(name, board):
    available = {sensor.source for sensor in sensor_facts(board(name)) if sensor.available}
    assert (
        available
        == {
            "jetson-agx-orin": {"ina3221"},
            "jetson-nano": {"ina3221"},
            "jetson-orin-nano": {"ina3221"},
            "raspberrypi-zero2w": {"hwmon-ina"},
            "raspberrypi4": set(),
            "raspberrypi5": {"rpi-pmic"},
            "x86-laptop": {"rapl", "battery"},
        }[name]
    )


def test_sources_are_tried_in_order_and_refusals_are_named(board):
    machine = board("x86-laptop")
    assert choose_source(("rpi-pmic", "battery", "rapl"), machine).source.name == "battery"
    choice = choose_source(("rpi-pmic", "telepathy", "hwmon-ina"), machine)
    assert choice.source is None
    assert "rpi-pmic: not a Raspberry Pi" in choice.note
    assert "telepathy: this agent has no such reader" in choice.note
    assert "hwmon-ina: no INA sensor" in choice.note


def test_battery_on_a_charger_is_no_power_source(board, tmp_path):
    machine = board("x86-laptop")
    source = choose_source(("battery",), machine).source
    (tmp_path / "sys/class/power_supply/BAT0/status").write_text("Charging\n")
    assert "unplug the charger" in choose_source(("battery",), machine).note
    with pytest.raises(ValueError, match="charger"):
        source.read()


def test_rail_that_vanishes_is_a_missed_reading_not_a_smaller_sum(tmp_path):
    one = "VDD_A current(1)=1.0A\nVDD_V volt(2)=2.0V\n"
    texts = [one + "X_A current(3)=1.0A\nX_V volt(4)=1.0V\n", one]
    put(tmp_path, "/proc/device-tree/model", "Raspberry Pi 5 Model B\0")
    source = choose_source(("rpi-pmic",), Machine(str(tmp_path), lambda argv: texts[0])).source
    assert source.read() == 3000.0
    del texts[0]
    with pytest.raises(ValueError, match="rails"):
        source.read()


def test_rapl_for_root_only_says_so(board, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(rapl, "read_number", refuse)
    assert "readable by root only" in choose_source(("rapl",), board("x86-laptop")).note


def test_throttling_of_raspberry_pi(board):
    flags = {reading.name: reading.value for reading in throttle_readings(board("raspberrypi4"))}
    assert {name for name, value in flags.items() if value} == {
        "under-voltage-now",
        "throttled-now",
        "under-voltage-since-boot",
        "throttled-since-boot",
    }
    assert len(flags) == 8


def test_throttling_of_raspberry_pi_without_vcgencmd(board):
    machine = board("raspberrypi4")
    assert throttle_readings(machine._replace(run=lambda argv: "")) == throttle_readings(machine)


def test_throttling_of_jetson(board):
    jetson = throttle_readings(board("jetson-orin-nano"))
    assert Reading("jetson-oc", "oc3", 4, "count") in jetson
    assert Reading("thermal", "pwm-fan-0", 2, "level") in jetson


def test_throttling_of_x86(board):
    readings = throttle_readings(board("x86-laptop"))
    assert Reading("thermal", "core-throttle", 9, "count") in readings
    assert Reading("thermal", "package-throttle", 12, "count") in readings
    assert Reading("thermal", "Processor-1", 3, "level") in readings


def test_temperatures_leave_out_zones_that_are_off(board):
    found = {reading.name: reading.value for reading in temperature_readings(board("jetson-orin-nano"))}
    assert found == {"cpu-thermal": 47312, "gpu-thermal": 46531, "soc0-thermal": 46093, "tj-thermal": 47312}


def test_clocks_in_natural_order(board):
    machine = board("x86-laptop")
    assert clock_readings(machine) == (
        Reading("cpufreq", "policy0", 1200000, "khz"),
        Reading("cpufreq", "policy2", 1300000, "khz"),
        Reading("cpufreq", "policy10", 900000, "khz"),
    )
    assert cpu_facts(machine).policies[0] == CpuPolicy("policy0", "0", "powersave", 1200000, 400000, 4600000)


def test_architecture_is_that_of_programs_not_of_the_kernel():
    assert userland_architecture("aarch64", 64) == "aarch64"
    assert userland_architecture("aarch64", 32) == "armv7l"
    assert userland_architecture("armv7l", 32) == "armv7l"
    assert userland_architecture("x86_64", 64) == "x86_64"


@pytest.mark.parametrize("name", sorted(path.stem for path in TARGETS.glob("*.toml")))
def test_targets_name_readers_that_the_agent_has(name):
    settings = tomllib.loads((TARGETS / f"{name}.toml").read_text())
    assert set(settings.get("power_sources", ())) <= set(POWER_SOURCES)
    assert set(settings.get("throttle_sources", ())) <= set(THROTTLE_SOURCES)


def test_memory(board, tmp_path):
    machine = board("raspberrypi-zero2w")
    facts = memory_facts(machine)
    assert facts.total_bytes == 439572 * 1024
    assert facts.available_bytes == 280000 * 1024
    assert (facts.swap_total_bytes, facts.swap_free_bytes) == (102396 * 1024, 80000 * 1024)
    assert facts.limit_bytes is None
    put(tmp_path, "/proc/self/cgroup", "0::/a/b\n")
    put(tmp_path, "/sys/fs/cgroup/a/b/memory.max", "max\n")
    put(tmp_path, "/sys/fs/cgroup/a/memory.max", "104857600\n")
    assert memory_facts(machine).limit_bytes == 104857600
    put(tmp_path, "/proc/self/cgroup", "4:memory:/docker/x\n0::/\n")
    put(tmp_path, "/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "9223372036854771712\n")
    assert memory_facts(machine).limit_bytes is None
    put(tmp_path, "/sys/fs/cgroup/memory/memory.limit_in_bytes", "50000000\n")
    assert memory_facts(machine).limit_bytes == 50000000


def test_out_of_memory_kills_are_counted(board, tmp_path):
    machine = board("raspberrypi4")
    assert count_oom_kills(machine) == 3
    (tmp_path / "proc/vmstat").unlink()
    assert count_oom_kills(machine) is None


def test_empty_tree_gives_facts_without_inventing_any(tmp_path):
    facts = probe(Machine(str(tmp_path), lambda argv: ""), str(tmp_path), import_runtimes=False)
    assert (facts.board, facts.cpu.model, facts.system.name, facts.power_mode) == ("", "", "", "")
    assert facts.memory.total_bytes == 0
    assert facts.throttle == facts.temperatures == facts.cpu.policies == ()
    assert not any(sensor.available for sensor in facts.sensors)


def test_torn_files_do_not_break_the_probe(board, tmp_path):
    machine = board("jetson-orin-nano")
    for file in tmp_path.rglob("*"):
        if file.is_file():
            file.write_bytes(b"\xff\xfe nonsense\0\n")
    facts = probe(machine._replace(run=lambda argv: "nonsense"), str(tmp_path), import_runtimes=False)
    assert not any(sensor.available for sensor in facts.sensors)
    assert facts.throttle == ()


@pytest.mark.parametrize(
    ("name", "architecture", "environment", "expected"),
    [
        ("raspberrypi4", "aarch64", {}, ""),
        ("raspberrypi4", "armv7l", {}, ""),
        ("x86-laptop", "x86_64", {}, ""),
        ("x86-laptop", "aarch64", {}, "user-mode emulation"),
        ("raspberrypi4", "x86_64", {}, "user-mode emulation"),
        ("raspberrypi4", "aarch64", {"EDGEPIPE_EMULATED": "qemu"}, "EDGEPIPE_EMULATED=qemu"),
        ("x86-laptop", "x86_64", {"EDGEPIPE_EMBEDDED": "1"}, "embedded device"),
    ],
)
def test_emulation(name, architecture, environment, expected, board):
    found = emulation(board(name), environment, architecture)
    assert expected in found
    assert bool(found) == bool(expected)
    assert "EDGEPIPE_EMBEDDED" not in found  # how it is known is no business of who reads the report


def test_emulation_behind_a_bound_cpuinfo_shows_in_the_thread_link(board, tmp_path):
    machine = board("raspberrypi4")
    link = tmp_path / "proc/thread-self/exe"
    link.parent.mkdir()
    link.symlink_to("/usr/bin/python3.11")
    assert emulation(machine, {}, "aarch64") == ""
    link.unlink()
    link.symlink_to("/usr/bin/qemu-aarch64-static")
    assert emulation(machine, {}, "aarch64") == "QEMU user mode (/usr/bin/qemu-aarch64-static)"


def test_containers_and_virtual_machines(board, tmp_path):
    machine = board("x86-laptop")
    assert container(machine, {}) == ""
    assert hypervisor(machine) == ""
    assert container(machine, {"container": "lxc"}) == "lxc"
    put(tmp_path, "/.dockerenv", "")
    assert container(machine, {}) == "docker"
    put(tmp_path, "/sys/class/dmi/id/sys_vendor", "QEMU\n")
    put(tmp_path, "/sys/class/dmi/id/product_name", "Standard PC (Q35 + ICH9, 2009)\n")
    assert hypervisor(machine) == "QEMU Standard PC (Q35 + ICH9, 2009)"
