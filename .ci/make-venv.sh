#!/bin/sh
# make-venv.sh VENV: makes a virtual environment with the first Python of 3.11 or later.
# $PYTHON names another one. python3.11 comes first because constraints.txt was made with it.
set -eu
venv=$1
for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3 python; do
    # A pyenv shim exists even where the Python behind it does not, so each one is run.
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "Creating $venv with $("$candidate" --version) ..."
        exec "$candidate" -m venv --clear "$venv"
    fi
done
echo "edgepipe needs Python 3.11 or later with the venv module, and none was found." >&2
echo "Install one (Debian and Ubuntu: apt-get install python3 python3-venv), or name it: PYTHON=/path/to/python make ..." >&2
exit 1
