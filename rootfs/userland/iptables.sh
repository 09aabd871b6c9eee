#!/bin/bash
# Build iptables from Debian's source against musl, static, for the root file system:
# the variant that speaks to the kernel's xtables, with which the CNI plugins bridge
# and portmap, and kube-proxy, translate addresses.
# Usage: iptables.sh DEBS SYSROOT OUT, with the package musl-dev in the directory DEBS
# and what sysroot.sh makes in the directory SYSROOT
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

if (($# != 3)); then
	echo "usage: iptables.sh DEBS SYSROOT OUT" >&2
	exit 2
fi
debs=$1 sysroot=$(cd "$2" && pwd) out=$3
arch=${ARCH:-$(dpkg --print-architecture)}
musl_deb=$(package_file "$debs" musl-dev "$arch")
stamp="$(cat "$sysroot.stamp") $(sha256sum <"$0")"
if [[ -d $out ]] && [[ $(cat "$out.stamp" 2>/dev/null) == "$stamp" ]]; then
	exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
private_apt "$work/apt" "$(dpkg --print-architecture)" deb-src
debian_source "$work" iptables
echo "iptables: building $version" >&2
musl_names "$arch"
musl_compiler "$sysroot" "$work"

build() {
	cd "$src"
	./configure CC="$cc" --host="$triplet" --prefix=/usr --with-xtlibdir=/usr/lib/xtables \
		--disable-nftables --disable-shared --enable-static --disable-bpf-compiler --disable-libipq \
		--disable-devel --disable-connlabel CFLAGS="-Os -ffile-prefix-map=$src=. $cflags"
	# libtool takes -static for itself.
	make -j"$(nproc)" V=1 LDFLAGS="-all-static -s"
}
if ! (build) >"$work/build.log" 2>&1; then
	tail -n 40 "$work/build.log" >&2
	echo "iptables: the build of $version failed" >&2
	exit 1
fi

new=$work/new program=xtables-legacy-multi
install -D -m 755 "$src/iptables/$program" "$new/usr/bin/$program"
headers_of=$(readelf -lW "$new/usr/bin/$program")
if grep -q INTERP <<<"$headers_of"; then
	echo "iptables: $program is linked to a loader, want it static: $(file -b "$new/usr/bin/$program")" >&2
	exit 1
fi
for name in iptables{,-save,-restore} ip6tables{,-save,-restore}; do
	ln -s $program "$new/usr/bin/$name"
done
copyright_note "$new" iptables "$musl_deb" $program

mkdir -p "$(dirname "$out")"
rm -rf "$out"
cp -r --no-preserve=ownership "$new" "$out"
echo "$stamp" >"$out.stamp"
