#!/bin/sh
# Starts the device: EDGEPIPE_AUTHORIZED_KEY may log in as `edge`; QEMU_CPU and EDGEPIPE_EMULATED are what its
# sessions get. The host key is made here, so that no two devices share one.
set -eu

: "${EDGEPIPE_AUTHORIZED_KEY:?the public key that may log in}"
: "${EDGEPIPE_EMULATED:?name of the target that this device stands for}"

mkdir -p /run/sshd
chmod 755 /run/sshd
keys=~edge/.ssh/authorized_keys
echo "$EDGEPIPE_AUTHORIZED_KEY" >"$keys"
chown edge:edge "$keys"
chmod 600 "$keys"
[ -e /etc/ssh/ssh_host_ed25519_key ] || ssh-keygen -q -t ed25519 -N '' -C '' -f /etc/ssh/ssh_host_ed25519_key

cp /opt/edgepipe/sshd_config /etc/ssh/sshd_config
# sshd heeds the first SetEnv alone.
echo "SetEnv EDGEPIPE_EMULATED=$EDGEPIPE_EMULATED${QEMU_CPU:+ QEMU_CPU=$QEMU_CPU}" >>/etc/ssh/sshd_config
exec /usr/sbin/sshd -D -e
