#!/bin/bash
# Builds what a guest boots from.
#
#   image.sh root FILE           the root file system, as an ext4 image
#   image.sh kernel VERSION DIR  a Debian kernel: DIR/vmlinuz, DIR/modules, DIR/version
#
# VERSION is 6.12.43, or the beginning of a version (6.1), which stands for the
# newest. Everything comes from the Debian mirror that this host uses; elsewhere
# than on Debian, LOOPNFS_DEBIAN_MIRROR and LOOPNFS_DEBIAN_SECURITY name one.
# A target is complete or absent. Needs root, and debootstrap for the root.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

suite=bookworm
packages=nfs-common,nfs-kernel-server,rpcbind,fuse3,fio,xfsprogs,nbdkit,nbd-client,nfs-ganesha,nfs-ganesha-vfs,libnfs-utils,procps,iproute2,kmod,util-linux
packages+=,corosync,pacemaker,pacemaker-cli-utils,resource-agents,nftables,iputils-arping,psmisc
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

die() {
	echo "$*" >&2
	exit 1
}

# configured RELEASE: where this host gets that suite from.
configured() {
	apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
		awk -v r="$1" '$2 == r { print $1; exit }'
}

mirror=${LOOPNFS_DEBIAN_MIRROR:-$(configured $suite)}
security=${LOOPNFS_DEBIAN_SECURITY:-$(configured $suite-security)}
[ -n "$mirror" ] || die "this host has no mirror of Debian $suite: name one with LOOPNFS_DEBIAN_MIRROR=URL (and LOOPNFS_DEBIAN_SECURITY=URL)"
[ -e $keyring ] || die "$keyring is missing: apt install debian-archive-keyring"

target=${*: -1}
work=$(mktemp -d "$(dirname "$target")/.build.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT

build_root() {
	# Nothing is configured that starts a service: there is no init to run it.
	if ! debootstrap --variant=minbase --include=$packages --keyring=$keyring \
		$suite "$work/root" "$mirror" >"$work/log" 2>&1; then
		tail -20 "$work/log" >&2
		die "debootstrap failed"
	fi
	rm -rf "$work"/root/var/cache/apt/* "$work"/root/var/lib/apt/lists/* "$work"/root/usr/share/{doc,man,locale}
	mkdir -p "$work"/root/{job,mnt,srv}
	ln -sf /proc/self/mounts "$work/root/etc/mtab"
	echo '127.0.0.1 localhost guest' >"$work/root/etc/hosts"
	truncate -s 2G "$work/image"
	mkfs.ext4 -q -F -O ^metadata_csum -E lazy_itable_init=0 -d "$work/root" "$work/image"
	mv "$work/image" "$target"
}

# A configuration of apt of our own: this host's may lack the suites.
private_apt() {
	mkdir -p "$work"/apt/{lists/partial,archives/partial}
	printf "deb [signed-by=$keyring] %s %s main\n" \
		"$mirror" $suite "$mirror" $suite-backports ${security:+"$security" $suite-security} >"$work/apt/sources.list"
	aptopts=(-o Dir::Etc::SourceList="$work/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o Dir::State::Lists="$work/apt/lists" -o Dir::Cache="$work/apt" -o Dir::Cache::Archives="$work/apt/archives"
		-o Dir::State::Status=/dev/null -o APT::Sandbox::User=root -o APT::Architecture=amd64
		-o Acquire::Languages=none -o Debug::NoLocking=1)
	apt-get "${aptopts[@]}" -qq update >"$work/log" 2>&1 || { tail "$work/log" >&2; die "apt cannot read the mirror"; }
}

# candidates prints "version package" of every kernel there is.
candidates() {
	apt-cache "${aptopts[@]}" dumpavail |
		awk '/^Package: /{p=$2} /^Version: /{print $2, p}' |
		grep -E ' linux-image-[0-9][^ ]*-cloud-amd64$' | sort -V
}

build_kernel() {
	private_apt
	all=$(candidates)
	found=$(grep -E "^${1//./\\.}[.-]" <<<"$all" | tail -1) ||
		die "there is no kernel $1; the mirror has: $(cut -d- -f1 <<<"$all" | sort -uV | tr '\n' ' ')"
	package=${found#* }
	(cd "$work" && apt-get "${aptopts[@]}" -qq download "$package=${found% *}") >"$work/log" 2>&1 ||
		{ tail "$work/log" >&2; die "cannot fetch $package"; }
	dpkg -x "$work/$package"_*.deb "$work/root"
	mkdir "$work/out"
	mv "$work"/root/boot/vmlinuz-* "$work/out/vmlinuz"
	mv "$work"/root/lib/modules/* "$work/out/modules"
	find "$work/out/modules" -name '*.ko.xz' -exec xz -d {} +
	basename "$work"/root/boot/config-* | sed 's/config-//' >"$work/out/release"
	cut -d- -f1 <<<"$found" >"$work/out/version"
	mv "$work/out" "$target"
}

case "${1:-}" in
root) build_root ;;
kernel) build_kernel "$2" ;;
*) die "usage: image.sh root FILE | kernel VERSION DIR" ;;
esac
