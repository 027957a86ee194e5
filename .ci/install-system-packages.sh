#!/bin/sh
# Installs the system packages that the tests use and that are absent. Where that cannot be done, it says
# which tests will be skipped and lets the others run.
set -eu

missing=""
[ -x /usr/sbin/sshd ] || command -v sshd >/dev/null 2>&1 || missing="$missing openssh-server"
command -v ssh-keygen >/dev/null 2>&1 && command -v ssh-agent >/dev/null 2>&1 || missing="$missing openssh-client"
[ -n "$missing" ] || exit 0

become_root=""
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null && become_root="sudo -n"
fi

install() {
    [ "$(id -u)" -eq 0 ] || [ -n "$become_root" ] || return 1
    command -v apt-get >/dev/null 2>&1 || return 1
    echo "Installing system packages:$missing"
    $become_root apt-get update -qq || true
    # RUNLEVEL=1 keeps Debian from starting a server: the tests start their own, on a port of their own.
    # shellcheck disable=SC2086
    $become_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

install || {
    echo "Not installed:$missing (needs apt-get and root)." >&2
    echo "The tests against a real OpenSSH server are skipped. To run them: sudo apt-get install$missing" >&2
}
