#!/bin/sh
# discard-stale-venv.sh VENV: removes a virtual environment that cannot work any more, keeps a good one.
set -eu
venv=$1
[ -d "$venv" ] || exit 0

stale=""
"$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || stale="its Python is gone or too old"
# The scripts name the folder that they were made in; after a move they start the wrong Python, or none.
if [ -z "$stale" ] && [ -f "$venv/bin/pip" ] && ! head -n 1 "$venv/bin/pip" | grep -qF "$PWD/$venv/bin/"; then
    stale="it was made in another folder"
fi
if [ -n "$stale" ]; then
    echo "Removing $venv: $stale." >&2
    rm -rf "$venv"
fi
