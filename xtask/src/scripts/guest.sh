#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# The guest: loads the modules, says what kernel and unit it has, and runs the programs of /lab/run. Everything goes
# through /dev/kmsg, so that lines of programs and of the kernel come whole and in the order in which they were made, and
# from there to the console by a program: the kernel, which prints byte by byte, is told to keep quiet until it crashes.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
exec >/dev/kmsg 2>&1 </dev/null
stty -F /dev/ttyS0 raw -echo
guest follow &
follower=$!

fact() { echo "VSVA-FACT $1 $2"; }

fact guest-seconds "$(cut -d' ' -f1 /proc/uptime)"
while read -r module; do
    insmod "/lab/modules/$module" || fact module-missing "$module"
done </lab/modules/order

fact release "$(uname -r)"
for unit in /sys/class/iommu/dmar*; do
    [ -e "$unit/intel-iommu/ecap" ] || continue
    fact cap "$(cat "$unit/intel-iommu/cap")"
    fact ecap "$(cat "$unit/intel-iommu/ecap")"
done
for group in /sys/kernel/iommu_groups/*; do
    [ -e "$group/type" ] || continue
    fact group "$(cat "$group/type") $(ls "$group/devices" | tr '\n' ' ')"
done

. /lab/run

for device in /sys/bus/dsa/devices/dsa*; do
    [ -e "$device/pasid_enabled" ] || continue
    fact pasid-enabled "$(cat "$device/pasid_enabled")"
done
fact end 0
wait "$follower"
sync
poweroff -f
