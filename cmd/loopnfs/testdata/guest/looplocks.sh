# Locks of the kernel's client on the server's own host, in the same network, with rpcbind
# and rpc.statd as they are, and of another host: a network with an rpcbind and an rpc.statd
# of its own. Ends at the first thing that is not so.
set -u
PATH=$PATH:/job:/sbin:/usr/sbin
here=10.9.0.1 there=10.9.0.2

fail() {
	echo "FAIL: $*"
	rpcinfo -p 127.0.0.1
	cat /tmp/log
	kill -9 $server
	exit 1
}

serve() {
	: >/tmp/ready
	loopnfs serve --export /srv/export:/e --listen :2049 --portmap --locks \
		--memory 16MiB --state /srv/state --squash none >/tmp/ready 2>>/tmp/log &
	server=$!
	until grep -q ready /tmp/ready; do
		kill -0 $server || fail "no server"
		sleep 0.1
	done
}

# A process of the other host: its network, and its own /run and /var/lib/nfs.
remote() { nsenter --net=/run/netns/cli --mount=/tmp/ns/mnt "$@"; }

# lock NAME MODE...: tries to lock and says "got", "busy", or an error; rlock on the other host.
lock() { timeout 100 python3 /job/locks.py try "$@"; }
rlock() { timeout 100 nsenter --net=/run/netns/cli --mount=/tmp/ns/mnt python3 /job/locks.py try "$@"; }
is() { [ "$1" = "$2" ] || fail "$2, want $1"; }

await() {
	for _ in $(seq 200); do
		! grep -q "$1" "$2" 2>/dev/null || return 0
		sleep 0.1
	done
	fail "no $1 in $2"
}

# port VERSION PROTO: what the portmapper has of the lock manager.
port() { rpcinfo -p 127.0.0.1 | awk -v v=$1 -v p=$2 '$1 == 100021 && $2 == v && $3 == p { print $4 }'; }

# hold NAME FILE: has a process, holder, lock a file until it is killed.
hold() {
	python3 /job/locks.py hold "$2" exclusive >/tmp/"$1" &
	holder=$!
	await got /tmp/"$1"
}

# waits CMD...: a process that CMD runs waits for $file, and gets it when holder goes.
waits() {
	: >/tmp/waited
	"$@" python3 /job/locks.py wait $file exclusive >/tmp/waited &
	sleep 2
	is "" "$(cat /tmp/waited)"
	kill $holder
	await got /tmp/waited
	cat /tmp/waited
	# Without GRANTED the client would ask again after 30 s.
	[ "$(cut -d' ' -f2 /tmp/waited)" -le 15 ] || fail "it took too long: nobody called"
}

mkdir -p /srv/export /mnt1 /mnt2 /mnt3 /tmp/ns
ip link set lo up
ip netns add cli
ip link add v0 type veth peer name v1 netns cli || exit 1
ip addr add $here/24 dev v0
ip link set v0 up
ip -n cli link set lo up
ip -n cli addr add $there/24 dev v1
ip -n cli link set v1 up
rpcbind -w
serve
rpcinfo -p 127.0.0.1
mount --bind /tmp/ns /tmp/ns && mount --make-private /tmp/ns && : >/tmp/ns/mnt
nsenter --net=/run/netns/cli unshare --mount=/tmp/ns/mnt sh -c '
	mount -t tmpfs tmpfs /run && mkdir /run/rpcbind && cp -a /var/lib/nfs /run/nfs &&
	mount --bind /run/nfs /var/lib/nfs && rpcbind -w && rpc.statd --no-notify' || fail "the other host"

echo "== mounts on the server's own host, which starts rpc.statd for them"
mount -t nfs -o vers=3,proto=tcp,nosharecache 127.0.0.1:/e /mnt1 || fail "mount"
rpcinfo -p 127.0.0.1
is 2049 "$(port 4 tcp)"
is 2049 "$(port 4 udp)"
[ "$(port 3 tcp)" != 2049 ] || fail "version 3 is not the kernel's"
pidof rpc.statd || fail "no rpc.statd"
mount -t nfs -o vers=3,proto=tcp,nosharecache 127.0.0.1:/e /mnt2 || fail "mount"
remote mount -t nfs -o vers=3,proto=tcp,nosharecache $here:/e /mnt3 || fail "mount of the other host"
is 2049 "$(port 4 tcp)"

echo "== two mounts that know nothing of each other, and another host"
file=/mnt2/f
echo text >/mnt1/f
is "got" "$(lock /mnt1/f exclusive)"
hold h1 /mnt1/f
is "busy" "$(lock /mnt2/f exclusive)"
is "got" "$(lock /mnt2/f exclusive 20)"
is "busy" "$(rlock /mnt3/f exclusive)"
is "got" "$(rlock /mnt3/f exclusive 40)"

echo "== a process waits here, and then there"
waits env
hold h2 /mnt1/f
file=/mnt3/f waits nsenter --net=/run/netns/cli --mount=/tmp/ns/mnt

echo "== the server is killed: what was locked stays locked"
hold h3 /mnt1/f
nsenter --net=/run/netns/cli --mount=/tmp/ns/mnt python3 /job/locks.py hold /mnt3/f exclusive 60 >/tmp/h4 &
rholder=$!
await got /tmp/h4
kill -9 $server
wait $server 2>/dev/null
serve
is "busy" "$(lock /mnt2/f exclusive)"
is "busy" "$(rlock /mnt3/f exclusive)"
is "busy" "$(lock /mnt2/f exclusive 60)"
is "busy" "$(lock /mnt1/f exclusive 60)"
grep "grace period" /tmp/log || fail "no grace period"
file=/mnt3/f waits nsenter --net=/run/netns/cli --mount=/tmp/ns/mnt

echo "== the other host says that it has started again: rpc.statd tells the server"
[ -e /var/lib/nfs/sm/$there ] || fail "rpc.statd does not monitor the other host: $(ls /var/lib/nfs/sm)"
is "busy" "$(lock /mnt2/f exclusive 60)"
remote sm-notify -f
for _ in $(seq 20); do
	got=$(lock /mnt2/f exclusive 60)
	[ "$got" = busy ] || break
	sleep 1
done
is "got" "$got"
kill $rholder
wait $rholder

echo "== unmounted, and mounted again"
remote umount /mnt3 && umount /mnt2 && umount /mnt1 || fail "umount"
for _ in $(seq 10); do
	[ "$(port 4 tcp)" != 2049 ] || break
	sleep 1
done
is 2049 "$(port 4 tcp)"
mount -t nfs -o vers=3,proto=tcp,nosharecache $here:/e /mnt1 || fail "mount"
is 2049 "$(port 4 tcp)"
mount -t nfs -o vers=3,proto=tcp,nosharecache $here:/e /mnt2 || fail "mount"
hold h5 /mnt1/f
is "busy" "$(lock /mnt2/f exclusive)"
file=/mnt2/f waits env
umount /mnt2 && umount /mnt1 || fail "umount"
cat /tmp/log
kill $server
wait $server || fail "the server ended badly"
echo PASS
