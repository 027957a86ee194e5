"""Every error that edgepipe raises on purpose, each with a remedy and its own exit code.

EdgepipeError                    1
├── UsageError                   2   arguments that contradict each other or lack something
├── ProjectError                 3   edgepipe.toml is missing something or malformed
├── MissingExtra                 4   an optional package is not installed
├── ModelError                  10
│   ├── ModelNotFound           11
│   ├── ModelUnreadable         12   not a model, or a corrupt one
│   ├── UnsupportedOp           13   an op that no emitter can write, found before any work
│   └── FidelityError           14   a conversion changed what the model computes
├── DataError                   20
│   ├── DataNotFound            21
│   ├── DataUnreadable          22
│   ├── DataEmpty               23
│   ├── DataShapeMismatch       24
│   ├── DataTypeMismatch        25
│   ├── DataNotFinite           26   NaN or infinity
│   ├── LabelsOutOfRange        27
│   └── CalibrationDataMissing  28
├── TargetError                 30   unknown target, or a malformed target file
├── RecipeError                 31   unknown recipe, pass or key, or a chain that does not fit
├── BundleError                 32   no bundle or exported run, or one that was altered
├── RunNotFound                 33
├── ReproductionDiffers         34   a run was done again, and something else came out
├── DeviceError                 40
│   ├── HostUnreachable         41
│   ├── AuthenticationFailed    42
│   ├── HostKeyUnknown          43
│   ├── HostKeyChanged          44
│   ├── DevicePythonMissing     45
│   ├── DeviceRuntimeMissing    46
│   ├── DeviceRuntimeTooOld     47
│   ├── DeviceDiskFull          48
│   ├── DeviceTimeout           49
│   ├── AgentFailed             50   the agent broke the protocol or died
│   ├── VerificationFailed      51   the device computes something else than the host
│   ├── EngineMissing           52   no container engine for an emulated device
│   └── EmulatorFailed          53   an emulated device cannot be built, or does not start
├── OutputError                 60   a file of the host cannot be written
├── InternalError               70   a mistake of edgepipe's own
└── Interrupted                130   Ctrl-C
"""

from __future__ import annotations

from typing import ClassVar


class EdgepipeError(Exception):
    """Something the user can act on: what went wrong, where, what was found, what to do.

    Attributes:
        what: One sentence, no full stop needed: "the data has the wrong shape".
        where: The file, node, host or key concerned, or "".
        got: What was found there, or "".
        remedy: What the user can do about it, or "".
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", got: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.got = got
        self.remedy = remedy

    def __str__(self) -> str:
        """All four parts, a line each, the empty ones left out."""
        parts = [self.what]
        parts += [f"  {label}: {text}" for label, text in self._details() if text]
        return "\n".join(parts)

    def _details(self) -> list[tuple[str, str]]:
        return [("where", self.where), ("got", self.got), ("do", self.remedy)]

    def to_dict(self) -> dict[str, str | int]:
        """The error as ``--json`` prints it."""
        return {
            "error": type(self).__name__,
            "exit_code": self.exit_code,
            "what": self.what,
            "where": self.where,
            "got": self.got,
            "remedy": self.remedy,
        }


class UsageError(EdgepipeError):
    """Arguments that contradict each other, or one that is lacking."""

    exit_code = 2


class ProjectError(EdgepipeError):
    """edgepipe.toml lacks something or is malformed."""

    exit_code = 3


class MissingExtra(EdgepipeError):
    """An optional package is not installed."""

    exit_code = 4


class ModelError(EdgepipeError):
    """Something is wrong with the model."""

    exit_code = 10


class ModelNotFound(ModelError):
    """There is no file or object of that name."""

    exit_code = 11


class ModelUnreadable(ModelError):
    """The file is no model, or a corrupt one."""

    exit_code = 12


class UnsupportedOp(ModelError):
    """No emitter can write this op; raised before any work is done."""

    exit_code = 13


class FidelityError(ModelError):
    """A conversion changed what the model computes."""

    exit_code = 14


class DataError(EdgepipeError):
    """Something is wrong with the data."""

    exit_code = 20


class DataNotFound(DataError):
    """There is no such file or folder."""

    exit_code = 21


class DataUnreadable(DataError):
    """The file is no data set, or a corrupt one."""

    exit_code = 22


class DataEmpty(DataError):
    """The data set holds no sample."""

    exit_code = 23


class DataShapeMismatch(DataError):
    """The samples do not have the shape of the model's input."""

    exit_code = 24


class DataTypeMismatch(DataError):
    """The samples do not have the type of the model's input."""

    exit_code = 25


class DataNotFinite(DataError):
    """The samples hold NaN or infinity."""

    exit_code = 26


class LabelsOutOfRange(DataError):
    """A label is negative, or past the model's classes."""

    exit_code = 27


class CalibrationDataMissing(DataError):
    """Calibration needs real data and none was given."""

    exit_code = 28


class TargetError(EdgepipeError):
    """An unknown target, or a malformed target file."""

    exit_code = 30


class RecipeError(EdgepipeError):
    """An unknown recipe, pass or key, or a chain of passes that does not fit."""

    exit_code = 31


class BundleError(EdgepipeError):
    """No bundle or exported run, or one that was altered."""

    exit_code = 32


class RunNotFound(EdgepipeError):
    """The store holds no such run."""

    exit_code = 33


class ReproductionDiffers(EdgepipeError):
    """A run was done again, and something else came out than it records."""

    exit_code = 34


class DeviceError(EdgepipeError):
    """Something is wrong with the device or the way to it."""

    exit_code = 40


class HostUnreachable(DeviceError):
    """No connection could be made."""

    exit_code = 41


class AuthenticationFailed(DeviceError):
    """The device refused every key and password offered."""

    exit_code = 42


class HostKeyUnknown(DeviceError):
    """The device's host key is not in known_hosts."""

    exit_code = 43


class HostKeyChanged(DeviceError):
    """The device's host key differs from the one in known_hosts."""

    exit_code = 44


class DevicePythonMissing(DeviceError):
    """The device has no Python that can run the agent."""

    exit_code = 45


class DeviceRuntimeMissing(DeviceError):
    """The device has no inference runtime for any artifact."""

    exit_code = 46


class DeviceRuntimeTooOld(DeviceError):
    """The device's runtime is too old for the model."""

    exit_code = 47


class DeviceDiskFull(DeviceError):
    """The device has no room left."""

    exit_code = 48


class DeviceTimeout(DeviceError):
    """The device did not answer in time."""

    exit_code = 49


class AgentFailed(DeviceError):
    """The agent died, or said something that is not of the protocol."""

    exit_code = 50


class VerificationFailed(DeviceError):
    """The device computes something else than the host."""

    exit_code = 51


class EngineMissing(DeviceError):
    """There is no container engine that an emulated device could run in."""

    exit_code = 52


class EmulatorFailed(DeviceError):
    """An emulated device cannot be built, or does not start."""

    exit_code = 53


class OutputError(EdgepipeError):
    """A file of the host cannot be written."""

    exit_code = 60


class InternalError(EdgepipeError):
    """A mistake of edgepipe's own: an exception that nothing expected."""

    exit_code = 70


class Interrupted(EdgepipeError):
    """The user pressed Ctrl-C."""

    exit_code = 130
