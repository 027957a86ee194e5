"""Writes what docker/compose.yaml needs of a device: build context, board files, a key, its environment.

    python docker/prepare.py raspberrypi4 [--python 3.13] [--folder devices]

`edgepipe emulator up` does all of this by itself; this is for those who start their devices with Compose.
"""

import argparse
import shutil
from pathlib import Path

from edgepipe.emulator.access import Access, lay_out, make_key
from edgepipe.emulator.device import emulation_of
from edgepipe.emulator.image import fill_context
from edgepipe.events import silent
from edgepipe.target import list_targets, load_target


def main() -> None:
    """Writes one device's folder anew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target")
    parser.add_argument("--python", help="version of the base's Python, where it is not the profile's")
    parser.add_argument("--folder", type=Path, default=Path("devices"))
    options = parser.parse_args()
    target = load_target(options.target)
    emulation = emulation_of(target)
    folder = options.folder / target.name
    shutil.rmtree(folder, ignore_errors=True)
    context = folder / "context"
    context.mkdir(parents=True)
    fill_context(target, options.python or target.python, context, silent)
    access = Access(folder)
    lay_out(access, emulation.board, target.memory_mb << 20)
    variables = {"EDGEPIPE_AUTHORIZED_KEY": make_key(access), "EDGEPIPE_EMULATED": target.name}
    variables |= {"QEMU_CPU": emulation.qemu_cpu} if emulation.qemu_cpu else {}
    (folder / "device.env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    # Compose wants the files of every service to be there, whichever is started.
    for other in list_targets():
        (options.folder / other.name / "context").mkdir(parents=True, exist_ok=True)
        (options.folder / other.name / "device.env").touch()
    print(folder)


if __name__ == "__main__":
    main()
