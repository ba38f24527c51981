#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Level 1: gives vsva a real /dev/kvm. Its own console is the first serial line, the guest's the second.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /tmp

while read -r module; do
    insmod "/lab/modules/$module" || echo "level 1: cannot load $module"
done </lab/modules/order

echo "VSVA-FACT level1-seconds $(cut -d' ' -f1 /proc/uptime)"
if [ -c /dev/kvm ]; then
    stty -F /dev/ttyS1 raw -echo
    # Tells the lab that it is not level 1 that hangs when the guest falls silent.
    while sleep 10; do echo "VSVA-ALIVE"; done &
    sh /lab/run </dev/null >/dev/ttyS1
    status=$?
    if [ -e /lab/trace ]; then
        tar -c -C /lab -f /dev/vda trace trace.trace.json || echo "level 1: cannot write the trace"
        sync
    fi
    echo "VSVA-FACT exit $status"
else
    echo "level 1: there is no /dev/kvm"
    echo "VSVA-FACT exit 127"
fi
poweroff -f
