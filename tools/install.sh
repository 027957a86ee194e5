#!/bin/sh
# install.sh VENV EXTRAS: installs edgepipe from this checkout, editable, in the versions of constraints.txt.
# $PIP_FLAGS goes to pip; its other settings come from the environment as always (PIP_INDEX_URL, ...).
set -eu
python=$1/bin/python
extras=$2

# PyPI's PyTorch for x86-64 brings gigabytes of CUDA. The CPU build has an index of its own: it is used where it
# answers, and a machine without a way to it does with what its own indexes hold.
cpu_build=$(
    "$python" - <<'END'
import importlib.util
import platform
import urllib.request

INDEX = "https://download.pytorch.org/whl/cpu"
if platform.system() == "Linux" and platform.machine() == "x86_64" and not importlib.util.find_spec("torch"):
    try:
        with urllib.request.urlopen(f"{INDEX}/torch/", timeout=3):
            print(f"--extra-index-url {INDEX}")
    except OSError:
        pass
END
)

echo "Installing edgepipe[$extras] into $1, which takes minutes the first time ..."
# shellcheck disable=SC2086
"$python" -m pip install --disable-pip-version-check -qq $cpu_build ${PIP_FLAGS:-} -c constraints.txt -e ".[$extras]"
