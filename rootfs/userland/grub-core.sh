#!/bin/bash
# Make GRUB's images for BIOS out of the package grub-pc-bin: core.img for disks
# and eltorito.img for CDs.
# Usage: grub-core.sh DEBS OUT, with the package in the directory DEBS, for files in
# the directory OUT
#
# They are constants: core.img looks for its configuration, /grub/grub.cfg, on the
# third partition of whatever disk the BIOS started it from, eltorito.img for
# /boot/grub/grub.cfg on what it was started from. Only where they lie is patched
# when an image is composed.
set -euo pipefail

if (($# != 2)); then
	echo "usage: grub-core.sh DEBS OUT" >&2
	exit 2
fi
debs=$1 out=$2

modules=(biosdisk part_gpt fat ext2 # to reach grub.cfg
	linux normal configfile test minicmd loadenv reboot search
	echo serial terminal)

cd_modules=(biosdisk iso9660 linux normal configfile echo serial terminal test minicmd reboot search)

packages=("$debs"/grub-pc-bin_*.deb)
if ((${#packages[@]} != 1)) || [[ ! -e ${packages[0]} ]]; then
	echo "grub-core: want one grub-pc-bin_VERSION_amd64.deb in $debs; fetch.sh downloads it" >&2
	exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dpkg-deb -x "${packages[0]}" "$work"
echo 'configfile $prefix/grub.cfg' >"$work/early.cfg"
dir=$work/usr/lib/grub/i386-pc
grub-mkimage -O i386-pc -d "$dir" -p '(,gpt3)/grub' -c "$work/early.cfg" -o "$work/core.img" "${modules[@]}"
grub-mkimage -O i386-pc-eltorito -d "$dir" -p /boot/grub -c "$work/early.cfg" -o "$work/eltorito.img" "${cd_modules[@]}"
mkdir -p "$out"
for image in core.img eltorito.img; do
	cmp -s "$work/$image" "$out/$image" || mv "$work/$image" "$out/$image" # do not make what depends on it older
done
