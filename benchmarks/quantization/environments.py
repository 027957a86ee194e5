"""Makes the peers' virtual environments, one each, from the pinned files in requirements/.

    python environments.py [--cache FOLDER] [NAME ...]

PyTorch from PyPI for x86-64 Linux brings gigabytes of CUDA: `PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu`
gets the CPU's build, which is all that is used here.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
NAMES = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--cache", type=Path, default=default_cache())
    arguments = parser.parse_args()
    for name in arguments.names:
        print(f"{name}: {python_of(name, arguments.cache)}", flush=True)


def default_cache() -> Path:
    """Where environments, models and artifacts are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgepipe-benchmark"


def python_of(name: str, cache: Path) -> Path:
    """The Python of an environment, which is made where it is absent or its pins have changed.

    Args:
        name: "edgepipe" for the Python that runs this, or the stem of a file in requirements/.
        cache: The folder that holds the environments.

    Raises:
        subprocess.CalledProcessError: pip failed; it has said why.
    """
    if name == "edgepipe":
        return Path(sys.executable)
    pins = REQUIREMENTS / f"{name}.txt"
    folder = cache.absolute() / "environments" / name
    stamp, wanted = folder / "pins.sha256", hashlib.sha256(pins.read_bytes()).hexdigest()
    python = folder / "bin" / "python"
    if not (stamp.is_file() and stamp.read_text() == wanted):
        print(f"making the environment {name} in {folder} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(pins)], check=True)
        stamp.write_text(wanted)
    return python


if __name__ == "__main__":
    main()
