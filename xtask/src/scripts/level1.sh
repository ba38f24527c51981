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

# Stock kernels give memory files no huge pages. vsva asks for them, and each that is missing costs the emulation dear.
echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled

# The guest's disk, empty: to bring its zeroes here would cost more.
if [ -e /lab/disk-bytes ]; then
    truncate -s "$(cat /lab/disk-bytes)" /lab/disk
fi

if [ -e /lab/exits ]; then
    mount -t tracefs tracefs /sys/kernel/tracing
    for key in kvm_exit/exit_reason kvm_pio/port kvm_msr/ecx kvm_mmio/gpa; do
        echo "hist:keys=${key#*/}" >"/sys/kernel/tracing/events/kvm/${key%/*}/trigger"
    done
fi

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
    if [ -e /lab/exits ]; then
        for event in kvm_exit kvm_pio kvm_msr kvm_mmio; do
            sed -n "s/^{ [a-z_]*: *\([0-9]*\) } hitcount: *\([0-9]*\).*/VSVA-FACT exits $event:\1:\2/p" \
                "/sys/kernel/tracing/events/kvm/$event/hist"
        done
    fi
    echo "VSVA-FACT exit $status"
else
    echo "level 1: there is no /dev/kvm"
    echo "VSVA-FACT exit 127"
fi
poweroff -f
