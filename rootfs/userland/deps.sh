#!/bin/bash
# Install the Debian packages that building, running and testing kiln needs, as
# far as they are missing. Usage: deps.sh
#
# ARCH in the environment is the architecture that is built for, if it is not this
# machine's: amd64, arm64.
set -euo pipefail

# libelf1 and patch are for building kernel modules.
build=(dpkg-dev file gcc gperf grub-common libc6-dev libelf1 linux-libc-dev make musl-tools patch pkg-config xz-utils)
# What judges images, and what runs them.
judge=(attr binutils btrfs-progs cpio cryptsetup-bin dmidecode dnsmasq-base dosfstools e2fsprogs efibootmgr fdisk gdisk grub-pc-bin iproute2 kmod libcap2-bin libprotobuf-dev libxml2-utils
	mtools openssl parted procps protobuf-compiler qemu-utils sbsigntool squashfs-tools strace util-linux xorriso xva-img zstd)
run=(ovmf qemu-efi-aarch64 qemu-system-arm qemu-system-x86)

arch=${ARCH:-$(dpkg --print-architecture)}

die() {
	printf 'deps: %s\n' "$*" >&2
	exit 1
}

go_version() {
	local want have
	want=$(cd "$(dirname "$0")" && sed -n 's/^go //p' ../../go.mod ./*/go.mod | sort -V | tail -n 1)
	have=$(cd / && go env GOVERSION 2>/dev/null) || have=none
	have=${have#go}
	if [[ $have == none ]] || [[ $(printf '%s\n' "$want" "${have%%[- ]*}" | sort -V | head -n 1) != "$want" ]]; then
		die "Go $want or later is needed, found ${have}; install it from the Go project's downloads page, or from your distribution's backports, and put its bin directory first in PATH"
	fi
}

# The compiler, by the name of what it compiles for: gcc depends on this machine's.
if [[ $arch != "$(dpkg --print-architecture)" ]]; then
	case $arch in
	amd64) build+=(gcc-x86-64-linux-gnu) ;;
	arm64) build+=(gcc-aarch64-linux-gnu) ;;
	*) die "architecture $arch, want amd64 or arm64" ;;
	esac
fi

missing=()
for p in "${build[@]}" "${judge[@]}" "${run[@]}"; do
	[[ $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true) == installed ]] || missing+=("$p")
done
# Debian's would replace a Docker from elsewhere.
command -v dockerd >/dev/null || [[ -x /usr/sbin/dockerd ]] || missing+=(docker.io)
# The package lists tell fetch.sh and e2fsprogs.sh where the machine's mirror is.
lists=$(apt-get indextargets --format '$(ORIGIN)' 'Created-By: Packages' | grep -cx Debian || true)

if ((${#missing[@]} > 0 || lists == 0)); then
	sudo=()
	if ((EUID != 0)); then
		command -v sudo >/dev/null || die "as root, run: apt-get update && apt-get install --no-install-recommends ${missing[*]}"
		sudo=(sudo)
	fi
	"${sudo[@]}" apt-get update -q
	if ((${#missing[@]} > 0)); then
		"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
	fi
fi
go_version
