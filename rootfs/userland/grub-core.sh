#!/bin/bash
# Make GRUB's core image for BIOS out of the package grub-pc-bin.
# Usage: grub-core.sh DEBS OUT, with the package in the directory DEBS
#
# The image is a constant: it looks for its configuration, /grub/grub.cfg, on the
# third partition of whatever disk the BIOS started it from. Only the position of
# its second sector is patched when a disk is composed.
set -euo pipefail

if (($# != 2)); then
	echo "usage: grub-core.sh DEBS OUT" >&2
	exit 2
fi
debs=$1 out=$2

modules=(biosdisk part_gpt fat ext2 # to reach grub.cfg
	linux normal configfile test minicmd loadenv reboot search
	echo serial terminal)

packages=("$debs"/grub-pc-bin_*.deb)
if ((${#packages[@]} != 1)) || [[ ! -e ${packages[0]} ]]; then
	echo "grub-core: want one grub-pc-bin_VERSION_amd64.deb in $debs; fetch.sh downloads it" >&2
	exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dpkg-deb -x "${packages[0]}" "$work"
echo 'configfile $prefix/grub.cfg' >"$work/early.cfg"
grub-mkimage -O i386-pc -d "$work/usr/lib/grub/i386-pc" -p '(,gpt3)/grub' \
	-c "$work/early.cfg" -o "$work/core.img" "${modules[@]}"
if ! cmp -s "$work/core.img" "$out"; then # do not make what depends on it older
	mkdir -p "$(dirname "$out")"
	mv "$work/core.img" "$out"
fi
