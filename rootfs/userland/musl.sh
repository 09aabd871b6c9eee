# Sourced by what compiles C for the root file system: the compiler for musl, and
# Debian's sources. $work is a directory for files of the caller's.

# begin PACKAGE SYSROOT OUT is how a script begins that builds a Debian package's
# programs in SYSROOT and puts them into OUT: it ends the script if they are there,
# and otherwise sets sysroot, out, stamp, work and new, a directory to put them into,
# and what use_source and use_musl set.
begin() {
	if (($# != 3)); then
		echo "usage: $(basename "$0") SYSROOT OUT" >&2
		exit 2
	fi
	sysroot=$(cd "$2" && pwd) out=$3
	stamp="$(cat "$sysroot.stamp") $(sha256sum <"$0")"
	if [[ -d $out ]] && [[ $(cat "$out.stamp" 2>/dev/null) == "$stamp" ]]; then
		exit 0
	fi
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	new=$work/new
	use_source "$1"
	use_musl "$sysroot" "${ARCH:-$(dpkg --print-architecture)}"
}

# use_source PACKAGE fetches the source of a Debian package, and sets src to the
# directory it is in, and version.
use_source() {
	private_apt "$work/apt" "$(dpkg --print-architecture)" deb-src
	if ! (cd "$work" && APT_CONFIG=$work/apt/apt.conf apt-get source -qq "$1" >source.log 2>&1); then
		cat "$work/source.log" >&2
		return 1
	fi
	src=$(echo "$work/$1"-*/)
	src=${src%/}
	version=$(cd "$src" && dpkg-parsechangelog -SVersion)
	SOURCE_DATE_EPOCH=$(cd "$src" && dpkg-parsechangelog -STimestamp)
	export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
	unset MAKEFLAGS MFLAGS MAKELEVEL CFLAGS CPPFLAGS LDFLAGS # of whoever calls this
	echo "$1: building $version" >&2
}

# use_musl SYSROOT ARCH sets cc and cflags, the compiler for musl and its options, and
# triplet, what musl calls the architecture. Those options of musl-gcc that are in a
# file, its specs, name the directories musl is installed in; here these are in
# SYSROOT. The kernel's headers are without those of glibc, which lie beside them on
# the machine.
use_musl() {
	local gnu
	gnu=$(dpkg-architecture -a "$2" -qDEB_HOST_MULTIARCH 2>/dev/null)
	triplet=${gnu%-gnu}-musl
	sed "s:/usr/\(include\|lib\)/$triplet:$1&:g" "$1/usr/lib/$triplet/musl-gcc.specs" >"$work/musl-gcc.specs"
	cc="$gnu-gcc -specs=$work/musl-gcc.specs"
	cflags="-ffile-prefix-map=$src=. -isystem $1/usr/include -isystem $1/usr/include/$gnu"
}

# logged COMMAND runs it, and shows what it has printed if it fails.
logged() {
	if ! ("$@") >"$work/build.log" 2>&1; then
		tail -n 40 "$work/build.log" >&2
		echo "the build of $version failed" >&2
		return 1
	fi
}

# add_program FILE puts a program into $new/usr/bin. It has to be static.
add_program() {
	local headers
	headers=$(readelf -lW "$1")
	if grep -q INTERP <<<"$headers"; then
		echo "$1 is linked to a loader, want it static: $(file -b "$1")" >&2
		return 1
	fi
	install -D -m 755 "$1" "$new/usr/bin/$(basename "$1")"
}

# add_note PACKAGE MUSL WHAT... puts into $new what was built from the source, with
# which version of musl, and the licenses.
add_note() {
	local package=$1 musl=$2
	shift 2
	mkdir -p "$new/usr/share/doc/$package"
	{
		cat <<-NOTE
			Package: $package
			Version: $version
			Source: ${package}_$version, the source package of Debian, patches included
			Built-Using: musl $musl (MIT), linked statically
			Programs: $*

		NOTE
		cat "$src/debian/copyright"
	} >"$new/usr/share/doc/$package/copyright"
}

# publish OUT STAMP puts $new in the place of the directory OUT, and beside it
# OUT.stamp.
publish() {
	mkdir -p "$(dirname "$1")"
	rm -rf "$1"
	cp -r --no-preserve=ownership "$new" "$1"
	echo "$2" >"$1.stamp"
}
