"""What emulated boards show of themselves, read by the agent as on a device."""

import re
from pathlib import Path

import pytest

from device_agent.board import read_board as read_model
from device_agent.cpu import clock_readings, cpu_facts, cpuinfo_architecture
from device_agent.machine import Machine
from device_agent.memory import memory_facts
from device_agent.power import sensor_facts
from device_agent.thermal import temperature_readings
from device_agent.throttle import throttle_readings
from edgepipe.emulator.access import access_to, lay_out
from edgepipe.emulator.assets import docker_folder, read_board
from edgepipe.errors import TargetError
from edgepipe.target import list_targets

EMULATED = [target for target in list_targets() if target.emulation]
every_emulated = pytest.mark.parametrize("target", EMULATED, ids=lambda target: target.name)

ARMV8_2 = "fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
PROMISED = {
    # Bits of AT_HWCAP that a program sees on each processor of QEMU 7.2, by the names of /proc/cpuinfo.
    "cortex-a53": "fp asimd aes pmull sha1 sha2 crc32 cpuid",
    "cortex-a72": "fp asimd aes pmull sha1 sha2 crc32 cpuid",
    "cortex-a76": ARMV8_2,
    "neoverse-n1": ARMV8_2,
    "cortex-a7": "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae",
}


@pytest.fixture
def laid_out():
    """The tree of a target's board as a device would see it."""

    def build(target, memory_bytes=512 << 20):
        access = access_to(target.name)
        mounts = lay_out(access, target.emulation.board, memory_bytes)
        return Machine(str(access.tree), lambda argv: ""), mounts

    return build


@every_emulated
def test_every_board_says_what_the_profile_says(target, laid_out):
    machine, _ = laid_out(target)
    facts = cpu_facts(machine)
    assert facts.cores_online == target.cores
    assert read_model(machine).model
    if target.emulation.qemu_cpu:
        assert cpuinfo_architecture(machine) == "arm"
        assert machine.text("/proc/cpuinfo").count("processor\t") == target.cores
        core = re.search(r"Cortex-\w+", target.cpu)[0]
        assert facts.model == core
    else:
        assert not machine.exists("/proc/cpuinfo"), "the machine's own processor speaks for itself"


@every_emulated
def test_no_board_promises_a_feature_that_its_processor_lacks(target, laid_out):
    """A runtime that believes such a promise is killed by its first instruction that is not there."""
    machine, _ = laid_out(target)
    promised = set(cpu_facts(machine).features) - {"evtstrm"}  # of the kernel, not of the processor
    assert promised <= set(PROMISED.get(target.emulation.qemu_cpu, "").split())


@every_emulated
def test_sensors_that_can_be_read_are_the_targets(target, laid_out):
    machine, _ = laid_out(target)
    assert temperature_readings(machine)
    available = {facts.source for facts in sensor_facts(machine) if facts.available}
    assert available <= set(target.power_sources)
    assert ("ina3221" in available) == target.name.startswith("jetson")
    assert {reading.source for reading in throttle_readings(machine)} <= {*target.throttle_sources, "thermal"}
    assert bool(clock_readings(machine)) == (target.name != "x86")


def test_the_limit_of_memory_is_told_as_the_kernel_tells_it(laid_out):
    machine, _ = laid_out(EMULATED[0], 123 << 20)
    for line in ("0::/\n", "5:memory:/docker/abc\n"):
        proc = Path(machine.path("/proc"))
        (proc / "meminfo").write_text("MemTotal: 99999999 kB\n")
        (proc / "self").mkdir(exist_ok=True)
        (proc / "self" / "cgroup").write_text(line)
        assert memory_facts(machine).limit_bytes == 123 << 20


def test_mounts_are_the_whole_of_sys_and_single_files(laid_out):
    target = next(each for each in EMULATED if each.name == "raspberrypi4")
    _, mounts = laid_out(target)
    assert mounts.keys() == {"/sys", "/proc/cpuinfo"}
    assert mounts["/sys"].is_dir()
    assert mounts["/proc/cpuinfo"].is_file()


def test_a_string_of_the_devicetree_ends_in_nul(laid_out):
    target = next(each for each in EMULATED if each.name == "raspberrypi4")
    machine, _ = laid_out(target)
    model = Path(machine.path("/sys/firmware/devicetree/base/model"))
    assert model.read_bytes() == b"Raspberry Pi 4 Model B Rev 1.4\0"


def test_every_board_belongs_to_a_target():
    boards = {path.name for path in (docker_folder() / "boards").iterdir() if path.is_dir()}
    assert boards == {target.emulation.board for target in EMULATED}


def test_a_board_that_is_not_there_names_the_others():
    with pytest.raises(TargetError) as caught:
        read_board("raspberrypi9")
    assert "raspberrypi4" in caught.value.remedy
