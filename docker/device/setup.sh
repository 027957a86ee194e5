#!/bin/sh
# Makes a device of a Debian or Ubuntu base: packages that it lacks, accounts, and where Python looks.
# Runs at build, as root, emulated: so it starts few programs. Running it twice changes nothing.
set -eu

missing=""
command -v python3 >/dev/null || missing="$missing python3"
[ -x /usr/sbin/sshd ] || missing="$missing openssh-server"
[ -z "${DEBIAN_NUMPY:-}" ] || [ -d /usr/lib/python3/dist-packages/numpy ] || missing="$missing python3-numpy"
if [ -n "$missing" ]; then
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
    rm -rf /var/lib/apt/lists/*
fi

# A base of unpacked packages has had none of their scripts run: this is what they would have done.
for file in passwd group; do
    [ -e "/etc/$file" ] || cp "/usr/share/base-passwd/$file.master" "/etc/$file"
done
for link in libblas.so.3:blas liblapack.so.3:lapack; do
    for found in /usr/lib/*/"${link#*:}/${link%:*}"; do
        [ ! -e "$found" ] || ln -sf "${link#*:}/${link%:*}" "${found%/*/*}/${link%:*}"
    done
done
ldconfig

account() { # NAME UID HOME SHELL
    grep -q "^$1:" /etc/passwd || echo "$1:x:$2:$2::$3:$4" >>/etc/passwd
    grep -q "^$1:" /etc/group || echo "$1:x:$2:" >>/etc/group
}
account sshd 990 /run/sshd /usr/sbin/nologin
home=/home/edge
account edge 1500 $home /bin/bash
mkdir -p $home/.ssh /run/sshd /var/empty
chown -R edge:edge $home
chmod 700 $home $home/.ssh

# Keys that a package made at build would be the same on every device.
rm -f /etc/ssh/ssh_host_*

# Where this system's Python looks for what was installed beside its packages.
folder=$(python3 -c 'import site; print(site.getsitepackages()[0])')
mkdir -p "$folder"
echo /opt/edgepipe/site-packages >"$folder/edgepipe.pth"
