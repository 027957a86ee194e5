"""Targets: kinds of board, as data. One TOML file each in targets/, with a one-level `extends`."""

from __future__ import annotations

from typing import Literal

import msgspec

Activation = Literal["uint8", "int8", "int8-symmetric"]
RuntimeName = Literal["onnxruntime", "litert", "tflite-runtime"]


class Runtime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An inference runtime that the board can have.

    Attributes:
        name: "onnxruntime", "litert" (package ai-edge-litert) or "tflite-runtime".
        package: What to install with pip.
        version: The version that this profile was made for.
    """

    name: RuntimeName
    package: str
    version: str

    @property
    def format(self) -> Literal["onnx", "tflite"]:
        """The artifact format that it runs."""
        return "onnx" if self.name == "onnxruntime" else "tflite"


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of board, and what edgepipe must know to make and measure artifacts for it.

    Attributes:
        name: Name of the file, and what `--target` takes.
        title: The board's name as its maker writes it.
        architecture: What `uname -m` says: "aarch64", "armv7l", "x86_64".
        cpu: Cores and clock, for people.
        cores: Number of CPU cores.
        memory_mb: RAM in MiB.
        os: Operating system that the profile assumes.
        python: Python version of that system: "3.11".
        runtimes: What can run there, the preferred one first.
        activation: Type of quantized activations that its kernels are fastest with.
        threads: Inference threads.
        execution_providers: ONNX Runtime's, in order of preference.
        power_sources: Names of the agent's power readers to try, in order; empty where there are none.
        throttle_sources: Names of the agent's throttle readers.
        facts: Where each figure comes from: an address or document by field name.
        notes: What a user should know.
    """

    name: str
    title: str
    architecture: Literal["aarch64", "armv7l", "x86_64"]
    cpu: str
    cores: int
    memory_mb: int
    os: str
    python: str
    runtimes: tuple[Runtime, ...]
    activation: Activation
    threads: int
    execution_providers: tuple[str, ...] = ("CPUExecutionProvider",)
    power_sources: tuple[str, ...] = ()
    throttle_sources: tuple[str, ...] = ()
    facts: dict[str, str] = {}
    notes: str = ""

    @property
    def formats(self) -> tuple[Literal["onnx", "tflite"], ...]:
        """Artifact formats that some runtime of the board can run, the preferred one first."""
        return tuple(dict.fromkeys(runtime.format for runtime in self.runtimes))
