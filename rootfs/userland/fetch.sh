#!/bin/bash
# Download the Debian packages that a base and its kernel kit are made of, and some
# sources of modules for tests. Usage: fetch.sh DIR [FLAVOUR]
#
# FLAVOUR is that of the kernel: cloud, if none is given, or generic. ARCH in the
# environment is the architecture, if it is not this machine's: amd64, arm64.
#
# Files are called NAME_VERSION_ARCH.deb, one version of each. What was downloaded
# once is not asked for again: remove DIR to get newer versions.
set -euo pipefail
. "$(dirname "$0")/apt.sh"

if (($# < 1 || $# > 2)); then
	echo "usage: fetch.sh DIR [cloud|generic]" >&2
	exit 2
fi
dir=$1
flavour=${2-cloud}
arch=${ARCH:-$(dpkg --print-architecture)}
series=6.12 # of the kernel

# What the machine's release has only older versions of comes from this one, whose
# kernel is of the series.
next_release=trixie

# systemd-boot and its stub: 257 is the first to boot images with several profiles
# and to count boots.
efi_version=257

# Sources of modules, and the first versions of them that build for the series.
dkms=(v4l2loopback-dkms=0.13.2 rapiddisk-dkms=9.2.0 vpoll-dkms=0.1.1)

[[ $flavour == cloud || $flavour == generic ]] || {
	echo "fetch: kernel flavour $flavour, want cloud or generic" >&2
	exit 2
}

say() { printf 'fetch: %s\n' "$*" >&2; }

done_file=$dir/.fetched-$flavour-$arch # what was asked for, then the files that came of it
request="$flavour $arch $(sha256sum <"$0")"
if [[ -e $done_file ]] && [[ $(head -n 1 "$done_file") == "$request" ]] &&
	(cd "$dir" && tail -n +2 "$(basename "$done_file")" | xargs -d '\n' ls >/dev/null 2>&1); then
	exit 0
fi

mkdir -p "$dir"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
files=()

# candidate APT PACKAGE prints the version that APT would install, or nothing.
candidate() { APT_CONFIG=$1/apt.conf apt-cache show --no-all-versions "$2" 2>/dev/null | sed -n 's/^Version: //p' | head -n 1; }

# download APT PACKAGE puts the package into DIR.
download() {
	local version file
	version=$(candidate "$1" "$2")
	if [[ -z $version ]]; then
		say "the machine's mirror has no package $2 for $arch"
		return 1
	fi
	version=${version#*:} # a file name has no epoch, as on Debian's mirrors
	file=$(cd "$dir" && compgen -G "${2}_${version}_*.deb" | grep -E "_($arch|all)\.deb\$" || true)
	if [[ -z $file ]]; then
		say "$2 $version"
		mkdir "$work/new"
		(cd "$work/new" && APT_CONFIG=$1/apt.conf apt-get download -qq "$2")
		file=$(ls "$work/new")
		mv "$work/new/$file" "$dir/${2}_${version}_${file##*_}"
		file=${2}_${version}_${file##*_}
		rmdir "$work/new"
	fi
	files+=("$file")
}

# kernel APT prints the package that has the kernel: what the package
# named after its series, or the release's default kernel if it is of the series,
# depends on.
kernel() {
	local suffix=$arch meta real
	[[ $flavour == generic ]] || suffix=$flavour-$arch
	for meta in "linux-image-$series-$suffix" "linux-image-$suffix"; do
		real=$(APT_CONFIG=$1/apt.conf apt-cache depends --no-recommends --no-suggests "$meta" 2>/dev/null |
			sed -n "s/^ *Depends: \(linux-image-$series\.[^ ]*-$suffix\)\$/\1/p")
		if [[ -n $real ]]; then
			echo "$real"
			return
		fi
	done
	say "the machine's mirror has no linux-image-$series-$suffix"
	return 1
}

# at_least PACKAGE VERSION sets from to the private APT that has the package in that
# version: that of the machine's release, if it has.
at_least() {
	from=$work/apt
	dpkg --compare-versions "$(candidate "$from" "$1")" lt "$2" || return 0
	if [[ ! -e $work/next/apt.conf ]]; then
		private_apt "$work/next" "$arch" deb $next_release || true
	fi
	if [[ -n $(candidate "$work/next" "$1") ]]; then
		from=$work/next
	else
		say "$next_release is not to be had from the machine's mirror: $1 is '$(candidate "$from" "$1")' instead of $2"
	fi
}

private_apt "$work/apt" "$arch" deb
package=$(kernel "$work/apt") # and its headers, for Module.symvers and the kernel kit
headers=linux-headers-${package#linux-image-}
packages=("$package" "$headers" ca-certificates linux-libc-dev musl musl-dev)
[[ $arch != amd64 ]] || packages+=(grub-pc-bin)
mapfile -t shared < <(APT_CONFIG=$work/apt/apt.conf apt-cache depends --no-recommends --no-suggests "$headers" |
	sed -n 's/^ *Depends: \(linux-headers-[^ ]*-common\|linux-kbuild-[^ ]*\)$/\1/p')
for package in "${packages[@]}" "${shared[@]}"; do
	if [[ $package == linux-kbuild-* ]] && [[ $arch != "$(dpkg --print-architecture)" ]]; then
		# Its programs run here, whatever they build for.
		private_apt "$work/host" "$(dpkg --print-architecture)" deb
		arch=$(dpkg --print-architecture) download "$work/host" "$package"
		continue
	fi
	download "$work/apt" "$package"
done

at_least systemd-boot-efi $efi_version
download "$from" systemd-boot-efi
for want in "${dkms[@]}"; do
	at_least "${want%=*}" "${want#*=}"
	download "$from" "${want%=*}" || say "tests that build ${want%=*} will fail"
done

# What an earlier run has left is an older version now, or no longer asked for.
if [[ -e $done_file ]]; then
	tail -n +2 "$done_file" | grep -vxFf <(printf '%s\n' "${files[@]}") | (cd "$dir" && xargs -r -d '\n' rm -fv >&2) || true
fi
printf '%s\n' "$request" "${files[@]}" >"$done_file"
