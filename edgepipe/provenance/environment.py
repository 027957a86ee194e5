"""What a result may depend on besides its inputs: the code, the packages, the machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

_BLOCK_BYTES = 1 << 20
_COMPUTING = frozenset({
    "ai-edge-litert", "numpy", "onnx", "onnx-ir", "onnxruntime", "scipy", "tensorflow-cpu", "tf2onnx",
    "torch",
})  # fmt: skip


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Where a bundle was made.

    Attributes:
        edgepipe: Version of edgepipe.
        code: sha256 of edgepipe's sources: between two releases its version says nothing.
        python: Version and implementation: "CPython 3.11.7".
        system: "Linux x86_64, glibc 2.36".
        cpu: The processor's own name.
        cores: Cores that the process could use.
        packages: Version of every installed package that edgepipe needs, directly or not.
    """

    edgepipe: str
    code: str
    python: str
    system: str
    cpu: str
    cores: int
    packages: dict[str, str]

    def lock(self) -> str:
        """The packages as pip takes them: ``numpy==2.4.6``, a line each."""
        return "".join(f"{name}=={version}\n" for name, version in sorted(self.packages.items()))


class Change(msgspec.Struct, frozen=True):
    """Something of the surroundings that was one thing then and is another now; "" stands for absent."""

    what: str
    then: str
    now: str

    def __str__(self) -> str:
        """``numpy 2.4.5, now 2.4.6``."""
        return f"{self.what} {self.then or 'absent'}, now {self.now or 'absent'}"


def changes(then: Environment, now: Environment) -> tuple[Change, ...]:
    """What differs between two environments, what is likeliest to change a result first."""
    found = [Change("edgepipe", then.edgepipe, now.edgepipe)]
    if then.edgepipe == now.edgepipe:
        found.append(Change("edgepipe's sources", then.code[:12], now.code[:12]))
    found += version_changes(then.packages, now.packages)
    for what, before, after in (
        ("CPU", then.cpu, now.cpu),
        ("cores", str(then.cores), str(now.cores)),
        ("Python", then.python, now.python),
        ("system", then.system, now.system),
    ):
        found.append(Change(what, before, after))
    return tuple(each for each in found if each.then != each.now)


def version_changes(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Change]:
    """Packages whose version differs, or that only one side has: those that compute first, then by name."""
    for name in sorted({*then, *now}, key=lambda name: (name not in _COMPUTING, name)):
        if then.get(name) != now.get(name):
            yield Change(name, then.get(name, ""), now.get(name, ""))


def digest_path(path: Path) -> str | None:
    """sha256 of a file, as `sha256sum` gives it; None for a folder, and where nothing can be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()
