#!/bin/sh
# Healthy is a device whose sshd introduces itself.
exec bash -c 'exec 3<>/dev/tcp/127.0.0.1/22 && read -r -t 8 banner <&3 && [[ $banner == SSH-2.0-* ]]'
