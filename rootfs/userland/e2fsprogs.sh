#!/bin/bash
# Build mke2fs, e2fsck and resize2fs from Debian's source of e2fsprogs against
# musl, static, for the root file system.
# Usage: e2fsprogs.sh DEBS OUT, with the packages musl-dev and linux-libc-dev in the
# directory DEBS
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

if (($# != 2)); then
	echo "usage: e2fsprogs.sh DEBS OUT" >&2
	exit 2
fi
debs=$1 out=$2
programs=(misc/mke2fs e2fsck/e2fsck resize/resize2fs)
arch=${ARCH:-$(dpkg --print-architecture)}

say() { printf 'e2fsprogs: %s\n' "$*" >&2; }

# package NAME prints its file in DEBS.
package() {
	local files
	mapfile -t files < <(compgen -G "$debs/$1_*.deb" | grep -E "_($arch|all)\.deb\$")
	if ((${#files[@]} != 1)); then
		say "want one $1_VERSION_$arch.deb in $debs, found ${#files[@]}; fetch.sh downloads it"
		return 1
	fi
	echo "${files[0]}"
}
musl_deb=$(package musl-dev)
headers_deb=$(package linux-libc-dev)
triplet=$(dpkg-architecture -a "$arch" -qDEB_HOST_MULTIARCH 2>/dev/null)
gcc=$triplet-gcc
command -v "$gcc" >/dev/null || {
	say "no $gcc; it is in the package gcc-${triplet//_/-}, which 'make deps ARCH=$arch' installs"
	exit 1
}

stamp="$arch $(basename "$musl_deb") $(basename "$headers_deb") gcc=$("$gcc" -dumpfullversion) $(sha256sum <"$0")"
if [[ -d $out ]] && [[ $(cat "$out.stamp" 2>/dev/null) == "$stamp" ]]; then
	exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# musl, whose specs for the compiler name the directories it is installed in, and
# the kernel's headers without those of glibc, which lie beside an installed one's.
dpkg-deb -x "$musl_deb" "$work/musl"
dpkg-deb -x "$headers_deb" "$work/linux"
libc=${triplet%-gnu}-musl
specs=$work/musl-gcc.specs
sed "s:/usr/\(include\|lib\)/$libc:$work/musl&:g" "$work/musl/usr/lib/$libc/musl-gcc.specs" >"$specs"
musl=$(dpkg-deb -f "$musl_deb" Version)

private_apt "$work/apt" "$arch" deb-src
(cd "$work" && APT_CONFIG=$work/apt/apt.conf apt-get source -qq e2fsprogs >source.log 2>&1) || {
	cat "$work/source.log" >&2
	exit 1
}
src=$(echo "$work"/e2fsprogs-*/)
src=${src%/}
version=$(cd "$src" && dpkg-parsechangelog -SVersion)
SOURCE_DATE_EPOCH=$(cd "$src" && dpkg-parsechangelog -STimestamp)
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
unset MAKEFLAGS MFLAGS MAKELEVEL CFLAGS CPPFLAGS LDFLAGS # of whoever calls this
say "building $version"

# Its own uuid and blkid are used, not the machine's, which need glibc.
build() {
	cd "$src"
	./configure CC="$gcc -specs=$specs" --host="$libc" --prefix=/usr --sysconfdir=/etc \
		--disable-nls --disable-fuse2fs --disable-debugfs --disable-imager --disable-defrag \
		--disable-uuidd --disable-e2initrd-helper --disable-tdb --disable-backtrace --disable-rpath \
		--enable-libuuid --enable-libblkid --without-udev-rules-dir --without-systemd-unit-dir --without-crond-dir \
		CFLAGS="-Os -ffile-prefix-map=$src=. -isystem $work/linux/usr/include -isystem $work/linux/usr/include/$triplet" LDFLAGS="-static -s"
	make -j"$(nproc)" V=1 subs libs progs
}
if ! (build) >"$work/build.log" 2>&1; then
	tail -n 40 "$work/build.log" >&2
	say "the build of $version failed"
	exit 1
fi

new=$work/new
for p in "${programs[@]}"; do
	install -D -m 755 "$src/$p" "$new/usr/bin/$(basename "$p")"
	headers_of=$(readelf -lW "$src/$p")
	if grep -q INTERP <<<"$headers_of"; then
		say "$p is linked to a loader, want it static: $(file -b "$src/$p")"
		exit 1
	fi
done
mkdir -p "$new/usr/share/doc/e2fsprogs"
{
	cat <<-NOTE
		Package: e2fsprogs
		Version: $version
		Source: e2fsprogs_$version, the source package of Debian, patches included
		Built-Using: musl $musl (MIT), linked statically
		Programs: $(basename -a "${programs[@]}" | paste -sd ' ')

	NOTE
	cat "$src/debian/copyright"
} >"$new/usr/share/doc/e2fsprogs/copyright"

mkdir -p "$(dirname "$out")"
rm -rf "$out"
cp -r --no-preserve=ownership "$new" "$out"
echo "$stamp" >"$out.stamp"
