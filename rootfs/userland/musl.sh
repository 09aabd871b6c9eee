# Sourced by what compiles C for the root file system: where the compiler for musl
# comes from, and Debian's sources.

# package_file DEBS PACKAGE ARCH prints the package's file in the directory DEBS.
package_file() {
	local files
	mapfile -t files < <(compgen -G "$1/$2_*.deb" | grep -E "_($3|all)\.deb\$")
	if ((${#files[@]} != 1)); then
		echo "want one $2_VERSION_$3.deb in $1, found ${#files[@]}; fetch.sh downloads it" >&2
		return 1
	fi
	echo "${files[0]}"
}

# musl_names ARCH sets gcc, the compiler's command, and triplet, musl's name of the
# architecture.
musl_names() {
	local gnu
	gnu=$(dpkg-architecture -a "$1" -qDEB_HOST_MULTIARCH 2>/dev/null)
	triplet=${gnu%-gnu}-musl
	gcc=$gnu-gcc
	command -v "$gcc" >/dev/null || {
		echo "no $gcc; it is in the package gcc-${gnu//_/-}, which 'make deps ARCH=$1' installs" >&2
		return 1
	}
}

# musl_compiler SYSROOT DIR sets cc and cflags to the compiler for musl and its
# options, with files of its own in DIR. musl-gcc's specs name the directories that
# the package is installed in; here it is in SYSROOT.
musl_compiler() {
	local gnu=${triplet%-musl}-gnu
	sed "s:/usr/\(include\|lib\)/$triplet:$1&:g" "$1/usr/lib/$triplet/musl-gcc.specs" >"$2/musl-gcc.specs"
	cc="$gcc -specs=$2/musl-gcc.specs"
	cflags="-isystem $1/usr/include -isystem $1/usr/include/$gnu"
}

# debian_source DIR PACKAGE unpacks the source of a Debian package, for which DIR/apt
# is the private APT, and sets src to the directory it is in and version.
debian_source() {
	if ! (cd "$1" && APT_CONFIG=$1/apt/apt.conf apt-get source -qq "$2" >source.log 2>&1); then
		cat "$1/source.log" >&2
		return 1
	fi
	src=$(echo "$1/$2"-*/)
	src=${src%/}
	version=$(cd "$src" && dpkg-parsechangelog -SVersion)
	SOURCE_DATE_EPOCH=$(cd "$src" && dpkg-parsechangelog -STimestamp)
	export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
	unset MAKEFLAGS MFLAGS MAKELEVEL CFLAGS CPPFLAGS LDFLAGS # of whoever calls this
}

# copyright_note DIR PACKAGE MUSL_DEB PROGRAM... writes what was built of src, and the
# licenses, to DIR.
copyright_note() {
	local dir=$1 package=$2 musl=$3
	shift 3
	mkdir -p "$dir/usr/share/doc/$package"
	{
		cat <<-NOTE
			Package: $package
			Version: $version
			Source: ${package}_$version, the source package of Debian, patches included
			Built-Using: musl $(dpkg-deb -f "$musl" Version) (MIT), linked statically
			Programs: $*

		NOTE
		cat "$src/debian/copyright"
	} >"$dir/usr/share/doc/$package/copyright"
}
