#!/bin/busybox sh
# PID 1 of a Xen host.
/bin/busybox mkdir -p /bin /sbin /usr/bin /usr/sbin /proc /sys /dev /run /tmp /var/lock /var/log/xen /var/lib/xen/images /var/lib/xenstored
/bin/busybox --install -s
PATH=$(echo /usr/lib/xen-*/bin):/usr/sbin:/usr/bin:/sbin:/bin
export PATH
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mkdir -p /dev/pts /run/xen
ln -s /run /var/run
mount -t devpts devpts /dev/pts
for module in /modules/*.ko; do
	insmod "$module" || echo "dom0: $module does not load"
done
mount -t xenfs xenfs /proc/xen
ip link set lo up
brctl addbr xenbr0
ip link set xenbr0 up
xenstored --pid-file /run/xenstored.pid
until xenstore-exists /; do sleep 0.1; done
xen-init-dom0
xenconsoled --pid-file /run/xenconsoled.pid
echo "dom0: up"
sh /guest.sh
echo "dom0: the end"
poweroff -f
