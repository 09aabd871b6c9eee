#!/bin/bash
# Build mke2fs, e2fsck and resize2fs from Debian's source of e2fsprogs against
# musl, static, for the root file system.
# Usage: e2fsprogs.sh SYSROOT OUT, with what sysroot.sh makes in the directory SYSROOT
#
# Puts into the directory OUT:
#
#	usr/bin/{mke2fs,e2fsck,resize2fs}    mke2fs has its default mke2fs.conf built in
#	usr/share/doc/e2fsprogs/copyright    what was built, from what, and the licenses
#
# and beside it OUT.stamp: what was built once is not built again, remove OUT for
# a newer version. ARCH in the environment is the architecture, if it is not this
# machine's: amd64, arm64.
set -euo pipefail
. "$(dirname "$0")/apt.sh"
. "$(dirname "$0")/musl.sh"

begin e2fsprogs "$@"

# Its own uuid and blkid are used, not the machine's, which need glibc.
build() {
	cd "$src"
	./configure CC="$cc" --host="$triplet" --prefix=/usr --sysconfdir=/etc \
		--disable-nls --disable-fuse2fs --disable-debugfs --disable-imager --disable-defrag \
		--disable-uuidd --disable-e2initrd-helper --disable-tdb --disable-backtrace --disable-rpath \
		--enable-libuuid --enable-libblkid --without-udev-rules-dir --without-systemd-unit-dir --without-crond-dir \
		CFLAGS="-Os $cflags" LDFLAGS="-static -s"
	make -j"$(nproc)" V=1 subs libs progs
}
logged build
programs=(misc/mke2fs e2fsck/e2fsck resize/resize2fs)
for p in "${programs[@]}"; do
	add_program "$src/$p"
done
add_note e2fsprogs "$(cat "$sysroot/musl.version")" "${programs[@]##*/}"
publish "$out" "$stamp"
