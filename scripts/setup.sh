#!/bin/bash
# Installs what building, testing and drilling need, and is not there yet.
#
#   scripts/setup.sh build|test|drill|bench|vm|cluster|vagrant
#
# Knows Debian and Ubuntu. Elsewhere it names what is missing and fails.
set -euo pipefail

missing=()
# need COMMAND PACKAGE: PACKAGE is missing if there is no COMMAND.
need() {
	PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}

case "${1:-}" in
build) ;;
test | drill)
	need fusermount3 fuse3
	need fio fio
	need nfs-cp libnfs-utils
	;;
bench)
	need mkfs.ext4 e2fsprogs
	need losetup util-linux
	need fusermount3 fuse3
	need fio fio
	need bindfs bindfs
	need nfs-cp libnfs-utils
	need rpcbind rpcbind
	need ganesha.nfsd nfs-ganesha
	[ -n "$(find /usr/lib -name 'libfsalvfs.so' 2>/dev/null)" ] || missing+=(nfs-ganesha-vfs)
	;;
vm)
	need qemu-system-x86_64 qemu-system-x86
	need debootstrap debootstrap
	need mkfs.ext4 e2fsprogs
	need xz xz-utils
	[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
	;;
cluster)
	need corosync corosync
	need pacemakerd pacemaker
	need crm_resource pacemaker-cli-utils
	need ocf-tester resource-agents
	need xmllint libxml2-utils # for ocf-tester
	need ip iproute2
	need nft nftables
	need arping iputils-arping
	need modprobe kmod # for resource-agents
	need mkfs.ext4 e2fsprogs
	need nsenter util-linux
	need pgrep procps
	need fusermount3 fuse3
	;;
vagrant)
	need vagrant vagrant
	vagrant plugin list 2>/dev/null | grep -q vagrant-libvirt || missing+=(vagrant-libvirt)
	need libvirtd libvirt-daemon-system
	need dnsmasq dnsmasq-base # for the networks of libvirt
	need qemu-system-x86_64 qemu-system-x86
	need qemu-img qemu-utils
	need mmdebstrap mmdebstrap
	need mkfs.ext4 e2fsprogs
	;;
*)
	echo "usage: scripts/setup.sh build|test|drill|bench|vm|cluster|vagrant" >&2
	exit 2
	;;
esac
if [ "$1" = test ]; then
	need mkfs.ext4 e2fsprogs
	need losetup util-linux
	# For -race.
	need gcc gcc
	[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
fi

if ! command -v go >/dev/null 2>&1; then
	echo "setup: go is not installed: get Go 1.26 or later from https://go.dev/dl/" >&2
	exit 1
fi

sudo=()
if [ "$(id -u)" -ne 0 ]; then
	sudo=(sudo)
fi

# What is installed for clusters must not start here: they run in hosts of their own.
policy=/usr/sbin/policy-rc.d
keep_stopped() {
	[ -e "$policy" ] && return
	printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
	"${sudo[@]}" chmod 755 "$policy"
	trap '"${sudo[@]}" rm -f "$policy"' EXIT
}

install() {
	"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y --no-install-recommends "${missing[@]}"
}

if [ ${#missing[@]} -gt 0 ]; then
	if ! command -v apt-get >/dev/null 2>&1; then
		echo "setup: please install what these Debian packages contain: ${missing[*]}" >&2
		exit 1
	fi
	if [ ${#sudo[@]} -gt 0 ] && ! command -v sudo >/dev/null 2>&1; then
		echo "setup: as root, run: apt-get install ${missing[*]}" >&2
		exit 1
	fi
	echo "setup: installing ${missing[*]}"
	if [ "$1" = cluster ]; then
		keep_stopped
	fi
	# The lists of packages may be missing or old: fetch them only then.
	install || { "${sudo[@]}" apt-get update && install; }
fi

if [[ $1 = test || $1 = drill || $1 = cluster ]] && [ ! -e /dev/fuse ]; then
	"${sudo[@]}" modprobe fuse 2>/dev/null || true
	if [ ! -e /dev/fuse ]; then
		echo "setup: there is no /dev/fuse: load the kernel module fuse, or give this container the device" >&2
		exit 1
	fi
fi

if [[ $1 = test || $1 = cluster ]] && [ ! -e /dev/loop-control ]; then
	"${sudo[@]}" modprobe loop 2>/dev/null || true # what needs it says so
fi
