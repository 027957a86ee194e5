#!/bin/sh
# freeze.sh VENV: prints constraints.txt for what VENV holds now. Run it after an upgrade that passes `make test`.
set -eu
cat <<'END'
# The versions that `make demo` and `make test` install: one set, known to work together.
# Printed by .ci/freeze.sh from a tested environment, without edgepipe itself, pip, and local version labels.
END
"$1/bin/python" -m pip freeze --all --exclude-editable --exclude pip |
    grep -v -e '^#' -e ' @ ' | sed -E 's/^([^+]+)\+.*/\1/' | LC_ALL=C sort -f
