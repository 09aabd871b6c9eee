#!/bin/bash
# Build iptables from Debian's source against musl, static, for the root file system:
# the variant that speaks to the kernel's xtables, with which the CNI plugins bridge
# and portmap, and kube-proxy, translate addresses.
# Usage: iptables.sh SYSROOT OUT, with what sysroot.sh makes in the directory SYSROOT
#
# Puts into the directory OUT:
#
#	usr/bin/xtables-legacy-multi, and the names it is called by, as links
#	usr/share/doc/iptables/copyright    what was built, from what, and the licenses
#
# and beside it OUT.stamp: what was built once is not built again, remove OUT for a
# newer version. ARCH in the environment is the architecture, if it is not this
# machine's: amd64, arm64.
set -euo pipefail
. "$(dirname "$0")/apt.sh"
. "$(dirname "$0")/musl.sh"

begin iptables "$@"

build() {
	cd "$src"
	./configure CC="$cc" --host="$triplet" --prefix=/usr --with-xtlibdir=/usr/lib/xtables \
		--disable-nftables --disable-shared --enable-static --disable-bpf-compiler --disable-libipq \
		--disable-devel --disable-connlabel CFLAGS="-Os $cflags"
	# libtool takes -static for itself.
	make -j"$(nproc)" V=1 LDFLAGS="-all-static -s"
}
logged build
add_program "$src/iptables/xtables-legacy-multi"
for name in iptables{,-save,-restore} ip6tables{,-save,-restore}; do
	ln -s xtables-legacy-multi "$new/usr/bin/$name"
done
add_note iptables "$(cat "$sysroot/musl.version")" xtables-legacy-multi
publish "$out" "$stamp"
