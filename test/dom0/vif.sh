#!/bin/busybox sh
# What Xen runs when a guest gets a network card, see xl-network-configuration(5),
# "script": vif is its name here, or emu for that of an HVM guest's emulated card.
case $1 in
online)
	brctl addif xenbr0 "$vif"
	ip link set "$vif" up
	xenstore-write "$XENBUS_PATH/hotplug-status" connected
	;;
add)
	brctl addif xenbr0 "$INTERFACE"
	ip link set "$INTERFACE" up
	;;
esac
exit 0
