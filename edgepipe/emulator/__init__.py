"""Emulated devices: containers with the userland, sshd, runtimes and limits of a target."""
