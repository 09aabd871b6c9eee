#!/bin/bash
# Make the sysroot that C for the root file system is compiled in: musl, the
# kernel's headers and libseccomp, static. Usage: sysroot.sh DEBS OUT, with the
# packages musl-dev and linux-libc-dev in the directory DEBS
#
# Puts into the directory OUT:
#
#	usr/include, usr/lib                  what is in the packages, where it is in them
#	usr/{include,lib}/TRIPLET             seccomp.h, libseccomp.a, pkgconfig/libseccomp.pc
#	usr/share/doc/libseccomp/copyright    what was built, from what, and the licenses
#	musl.version                          of the package musl-dev
#
# where TRIPLET is x86_64-linux-musl, and beside it OUT.stamp: what was built once is
# not built again, remove OUT for a newer version. ARCH in the environment is the
# architecture, if it is not this machine's: amd64, arm64.
set -euo pipefail
. "$(dirname "$0")/apt.sh"
. "$(dirname "$0")/musl.sh"

if (($# != 2)); then
	echo "usage: sysroot.sh DEBS OUT" >&2
	exit 2
fi
debs=$1 out=$2
arch=${ARCH:-$(dpkg --print-architecture)}

# package NAME prints its file in DEBS.
package() {
	local files
	mapfile -t files < <(compgen -G "$debs/$1_*.deb" | grep -E "_($arch|all)\.deb\$")
	if ((${#files[@]} != 1)); then
		echo "sysroot: want one $1_VERSION_$arch.deb in $debs, found ${#files[@]}; fetch.sh downloads it" >&2
		return 1
	fi
	echo "${files[0]}"
}
musl_deb=$(package musl-dev)
headers_deb=$(package linux-libc-dev)
gnu=$(dpkg-architecture -a "$arch" -qDEB_HOST_MULTIARCH 2>/dev/null)
command -v "$gnu-gcc" >/dev/null || {
	echo "sysroot: no $gnu-gcc; it is in the package gcc-${gnu//_/-}, which 'make deps ARCH=$arch' installs" >&2
	exit 1
}

stamp="$arch $(basename "$musl_deb") $(basename "$headers_deb") gcc=$("$gnu-gcc" -dumpfullversion) $(cat "$0" "$(dirname "$0")/musl.sh" | sha256sum)"
if [[ -d $out ]] && [[ $(cat "$out.stamp" 2>/dev/null) == "$stamp" ]]; then
	exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
new=$work/new
dpkg-deb -x "$musl_deb" "$new"
dpkg-deb -x "$headers_deb" "$new"
dpkg-deb -f "$musl_deb" Version >"$new/musl.version"

use_source libseccomp
use_musl "$new" "$arch"

# Into musl's own directories, which its compiler looks in.
build() {
	cd "$src"
	./configure CC="$cc" --host="$triplet" --prefix=/usr --includedir="/usr/include/$triplet" --libdir="/usr/lib/$triplet" \
		--disable-shared --enable-static --disable-python CFLAGS="-O2 $cflags"
	make -j"$(nproc)" -C src
	make -C src install DESTDIR="$work/installed"
	make -C include install DESTDIR="$work/installed"
	install -D -m 644 libseccomp.pc "$work/installed/usr/lib/$triplet/pkgconfig/libseccomp.pc"
}
logged build
rm -f "$work/installed/usr/lib/$triplet"/*.la
cp -r "$work/installed/." "$new"
add_note libseccomp "$(cat "$new/musl.version")" libseccomp.a
publish "$out" "$stamp"
