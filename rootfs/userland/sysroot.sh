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

musl_deb=$(package_file "$debs" musl-dev "$arch")
headers_deb=$(package_file "$debs" linux-libc-dev "$arch")
musl_names "$arch"
stamp="$arch $(basename "$musl_deb") $(basename "$headers_deb") gcc=$("$gcc" -dumpfullversion) $(cat "$0" "$(dirname "$0")/musl.sh" | sha256sum)"
if [[ -d $out ]] && [[ $(cat "$out.stamp" 2>/dev/null) == "$stamp" ]]; then
	exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
new=$work/new
dpkg-deb -x "$musl_deb" "$new"
dpkg-deb -x "$headers_deb" "$new"

private_apt "$work/apt" "$(dpkg --print-architecture)" deb-src
debian_source "$work" libseccomp
echo "sysroot: building libseccomp $version" >&2
musl_compiler "$new" "$work"

# Into musl's own directories, which its compiler looks in.
build() {
	cd "$src"
	./configure CC="$cc" --host="$triplet" --prefix=/usr --includedir="/usr/include/$triplet" --libdir="/usr/lib/$triplet" \
		--disable-shared --enable-static --disable-python CFLAGS="-O2 -ffile-prefix-map=$src=. $cflags"
	make -j"$(nproc)" -C src
	make -C src install DESTDIR="$work/installed"
	make -C include install DESTDIR="$work/installed"
	install -D -m 644 libseccomp.pc "$work/installed/usr/lib/$triplet/pkgconfig/libseccomp.pc"
}
if ! (build) >"$work/build.log" 2>&1; then
	tail -n 40 "$work/build.log" >&2
	echo "sysroot: the build of libseccomp $version failed" >&2
	exit 1
fi
rm -f "$work/installed/usr/lib/$triplet"/*.la
cp -r "$work/installed/." "$new"
copyright_note "$new" libseccomp "$musl_deb" libseccomp.a

mkdir -p "$(dirname "$out")"
rm -rf "$out"
cp -r --no-preserve=ownership "$new" "$out"
echo "$stamp" >"$out.stamp"
