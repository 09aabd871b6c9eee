#!/bin/busybox sh
# What Xen runs when a guest gets a disk, see xl-disk-configuration(5), "script".
[ "$1" = add ] || exit 0
device=$(readlink -f "$(xenstore-read "$XENBUS_PATH/params")")
xenstore-write "$XENBUS_PATH/physical-device" "$(stat -c %t:%T "$device")" \
	"$XENBUS_PATH/physical-device-path" "$device" "$XENBUS_PATH/hotplug-status" connected
