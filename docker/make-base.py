#!/usr/bin/env python3
"""Makes the base image of emulated devices from Debian packages, for machines that cannot pull images.

    python3 docker/make-base.py trixie arm64        # then: docker images edgepipe-base

Needs mmdebstrap (sudo apt-get install mmdebstrap), and a Docker or Podman that takes images. Packages are
unpacked and none of their scripts run, so no emulator is needed and a minute is enough; device/setup.sh does,
when a device is built, what the scripts would have done. Everything comes from the archive that APT of this
machine trusts. Root is not needed where unprivileged user namespaces are allowed.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGES = (
    "base-files", "base-passwd", "bash", "coreutils", "dash", "debianutils", "diffutils", "findutils", "grep",
    "gzip", "hostname", "libc-bin", "libstdc++6", "openssh-client", "openssh-server", "openssh-sftp-server",
    "procps", "python3", "sed", "tar", "util-linux",
)  # fmt: skip
MORE_PACKAGES = {"armhf": ("python3-numpy",)}  # PyPI has no NumPy for 32-bit Arm
NOT_NEEDED = ("doc", "man", "locale", "info", "lintian", "bug")
PLATFORMS = {"amd64": ("amd64", ""), "arm64": ("arm64", "v8"), "armhf": ("arm", "v7")}
EPOCH = {"SOURCE_DATE_EPOCH": "0"}


def main() -> None:
    """Makes and loads one image."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", help="a Debian release: trixie (Python 3.13), bookworm (Python 3.11)")
    parser.add_argument("architecture", choices=sorted(PLATFORMS))
    parser.add_argument("--engine", default="docker", help="docker or podman (%(default)s)")
    options = parser.parse_args()
    for program in ("mmdebstrap", options.engine):
        if shutil.which(program) is None:
            sys.exit(f"make-base.py: {program} is not installed: sudo apt-get install {program}")
    tag = f"edgepipe-base:{options.suite}-{options.architecture}"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root.tar")
        image = Path(folder, "image.tar")
        unpack(options.suite, options.architecture, root)
        write_image(root, options.architecture, tag, image)
        run([options.engine, "load", "--input", str(image)])
    print(tag)


def unpack(suite: str, architecture: str, root: Path) -> None:
    """Writes a tar of the packages' files.

    Args:
        suite: Debian release.
        architecture: Debian's name of it.
        root: The file to write.
    """
    packages = ",".join([*PACKAGES, *MORE_PACKAGES.get(architecture, ())])
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in NOT_NEEDED]
    options = ["--quiet", "--variant=extract", f"--architectures={architecture}", f"--include={packages}"]
    command = ["mmdebstrap", *options, *excluded, suite, str(root)]
    if run(command):
        return
    # A mirror of the security archive may be half way through an update, for one architecture for days.
    print("make-base.py: trying again with the main archive alone, without security updates", file=sys.stderr)
    if not run([*command, f"deb http://deb.debian.org/debian {suite} main"]):
        sys.exit("make-base.py: mmdebstrap failed; what it says stands above")


def write_image(root: Path, architecture: str, tag: str, path: Path) -> None:
    """Writes an archive for `docker load`, which names the architecture; `docker import` gets it wrong.

    Args:
        root: Tar of the file system.
        architecture: Debian's name of it.
        tag: Name and tag of the image.
        path: The file to write.
    """
    name, variant = PLATFORMS[architecture]
    with root.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = {
        "architecture": name,
        **({"variant": variant} if variant else {}),
        "os": "linux",
        "config": {
            "Cmd": ["/bin/bash"],
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created_by": "edgepipe docker/make-base.py"}],
    }
    written = json.dumps(config).encode()
    config_name = hashlib.sha256(written).hexdigest() + ".json"
    manifest = [{"Config": config_name, "RepoTags": [tag], "Layers": [f"{digest}/layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        for entry, data in ((config_name, written), ("manifest.json", json.dumps(manifest).encode())):
            member = tarfile.TarInfo(entry)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        archive.add(root, f"{digest}/layer.tar")


def run(command: list[str]) -> bool:
    """Runs a program whose messages go to stderr, and tells whether it did its work."""
    done = subprocess.run(command, env={**os.environ, **EPOCH}, stdout=sys.stderr, check=False)
    return done.returncode == 0


if __name__ == "__main__":
    main()
