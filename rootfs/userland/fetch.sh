#!/bin/bash
# Download the Debian packages that a base is made of. Usage: fetch.sh DIR [FLAVOUR]
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

# systemd-boot and its stub, from this release if the machine's has an older one:
# 257 is the first to boot images with several profiles and to count boots.
efi_release=trixie
efi_version=257

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

private_apt "$work/apt" "$arch" deb
package=$(kernel "$work/apt") # and its headers, for Module.symvers
packages=("$package" "linux-headers-${package#linux-image-}" ca-certificates musl)
[[ $arch != amd64 ]] || packages+=(grub-pc-bin)
for package in "${packages[@]}"; do
	download "$work/apt" "$package"
done

efi=systemd-boot-efi
from=$work/apt
if dpkg --compare-versions "$(candidate "$from" $efi)" lt $efi_version; then
	if private_apt "$work/efi" "$arch" deb $efi_release && [[ -n $(candidate "$work/efi" $efi) ]]; then
		from=$work/efi
	else
		say "$efi_release is not to be had from the machine's mirror: $efi is $(candidate "$from" $efi) instead of $efi_version"
	fi
fi
download "$from" $efi

# What an earlier run has left is an older version now, or no longer asked for.
if [[ -e $done_file ]]; then
	tail -n +2 "$done_file" | grep -vxFf <(printf '%s\n' "${files[@]}") | (cd "$dir" && xargs -r -d '\n' rm -fv >&2) || true
fi
printf '%s\n' "$request" "${files[@]}" >"$done_file"
