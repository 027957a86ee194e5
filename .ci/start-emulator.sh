#!/usr/bin/env bash
# start-emulator.sh: makes a Debian or Ubuntu machine ready for emulated devices: a container engine that answers,
# QEMU for Arm programs, and the base images, made of Debian packages so that no registry is needed. What is there
# already is left alone; run it twice and the second time does nothing. Exit status 1, with the reason, where the
# machine does not allow it (no root, no namespaces).
set -euo pipefail
cd "$(dirname "$0")/.."

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi; }
give_up() {
    echo "No emulated devices: $1" >&2
    exit 1
}
engine_answers() { docker info >/dev/null 2>&1; }

missing=()
command -v docker >/dev/null || missing+=(docker.io)
[ -n "${DOCKER_HOST:-}" ] || command -v dockerd >/dev/null || missing+=(docker.io iptables)
[ -x /usr/bin/qemu-aarch64-static ] || missing+=(qemu-user-static)
command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
command -v arch-test >/dev/null || missing+=(arch-test) # mmdebstrap asks it whether Arm programs run
if [ "${#missing[@]}" -gt 0 ]; then
    command -v apt-get >/dev/null || give_up "missing ${missing[*]}, and this machine has no apt-get"
    as_root true 2>/dev/null || give_up "missing ${missing[*]}, and installing them needs root"
    echo "Installing ${missing[*]} ..."
    as_root apt-get update -qq || true
    as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || give_up "apt-get failed"
fi

# The kernel has to know who runs Arm programs. P keeps argv[0], F opens QEMU now, for every container.
binfmt=/proc/sys/fs/binfmt_misc
[ -e $binfmt/register ] || as_root mount -t binfmt_misc binfmt_misc $binfmt || give_up "binfmt_misc cannot be mounted"
for machine in aarch64 arm; do
    [ -e $binfmt/qemu-$machine ] || [ "$(uname -m)" = $machine ] ||
        as_root sh -c "cat /usr/lib/binfmt.d/qemu-$machine.conf >$binfmt/register" ||
        give_up "the kernel takes no interpreter for $machine"
done

if ! engine_answers; then
    [ -z "${DOCKER_HOST:-}" ] || give_up "no engine answers at DOCKER_HOST=$DOCKER_HOST"
    echo "Starting dockerd ..."
    mountpoint -q /sys/fs/cgroup || as_root mount -t cgroup2 cgroup2 /sys/fs/cgroup || give_up "no control groups"
    log=$(mktemp /tmp/edgepipe-dockerd.XXXXXX)
    # A session of its own: it outlives this script, as a service would.
    as_root setsid dockerd >"$log" 2>&1 </dev/null &
    for _ in $(seq 60); do
        engine_answers && break
        sleep 1
    done
    engine_answers || give_up "dockerd does not start: $(grep -iE 'fail|error' "$log" | tail -n 3)"
fi

# What the profiles name: trixie for 64-bit Raspberry Pis, bookworm for the 32-bit one, x86 and Jetsons.
for base in trixie-arm64 bookworm-amd64 bookworm-armhf; do
    docker image inspect "edgepipe-base:$base" >/dev/null 2>&1 ||
        python3 docker/make-base.py "${base%-*}" "${base#*-}" || give_up "the base $base cannot be made"
done
docker run --rm --platform linux/arm64 edgepipe-base:trixie-arm64 true || give_up "containers of Arm programs do not run here"
echo "Emulated devices can run: docker $(docker info --format '{{.ServerVersion}}'), $(/usr/bin/qemu-aarch64-static --version | head -n 1)"
