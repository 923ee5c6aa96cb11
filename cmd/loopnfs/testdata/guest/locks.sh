# Locks of the kernel's client, with rpcbind and rpc.statd as they are. The server has a
# network of its own, as another host would: its lock manager and that of the client
# have one name in the portmapper. Ends at the first thing that is not so.
set -u
PATH=$PATH:/job
here=10.9.0.1 there=10.9.0.2

fail() {
	echo "FAIL: $*"
	cat /tmp/log
	kill -9 $server
	exit 1
}

serve() {
	: >/tmp/ready
	nsenter --net=/run/netns/srv loopnfs serve --export /srv/export:/e --listen $there:2049 --portmap --locks \
		--memory 16MiB --state /srv/state --squash none >/tmp/ready 2>>/tmp/log &
	server=$!
	until grep -q ready /tmp/ready; do
		kill -0 $server || fail "no server"
		sleep 0.1
	done
}

# lock NAME MODE...: tries to lock bytes 10 to 19 and says "got", "busy", or an error.
lock() { timeout 100 python3 /job/locks.py try "$@"; }

# is WANT GOT
is() { [ "$1" = "$2" ] || fail "$2, want $1"; }

await() {
	for _ in $(seq 200); do
		! grep -q "$1" "$2" 2>/dev/null || return 0
		sleep 0.1
	done
	fail "no $1 in $2"
}

mkdir -p /srv/export /mnt1 /mnt2
ip link set lo up
ip netns add srv
ip link add v0 type veth peer name v1 netns srv || exit 1
ip addr add $here/24 dev v0
ip link set v0 up
ip -n srv link set lo up
ip -n srv addr add $there/24 dev v1
ip -n srv link set v1 up
rpcbind -w
rpc.statd --no-notify
ip netns exec srv unshare -m sh -c 'mount -t tmpfs tmpfs /run && rpcbind -w'
serve
rpcinfo -p $there

echo "== two mounts that know nothing of each other"
mount -t nfs -o vers=3,proto=tcp,nosharecache $there:/e /mnt1 || fail "mount"
mount -t nfs -o vers=3,proto=tcp,nosharecache $there:/e /mnt2 || fail "mount"
echo text >/mnt1/f
is "got" "$(lock /mnt1/f exclusive)"
python3 /job/locks.py hold /mnt1/f exclusive >/tmp/held &
holder=$!
await got /tmp/held
is "busy" "$(lock /mnt2/f exclusive)"
is "busy" "$(lock /mnt2/f shared)"
is "got" "$(lock /mnt2/f exclusive 20)"

echo "== a process waits until another one lets go"
python3 /job/locks.py wait /mnt2/f exclusive >/tmp/waited &
sleep 2
is "" "$(cat /tmp/waited)"
kill $holder
await got /tmp/waited
cat /tmp/waited
is "got" "$(cut -d' ' -f1 /tmp/waited)"
# Without GRANTED the client would ask again after 30 s.
[ "$(cut -d' ' -f2 /tmp/waited)" -le 15 ] || fail "it took too long: nobody called"

echo "== the server is killed: what was locked stays locked"
python3 /job/locks.py hold /mnt1/f exclusive >/tmp/held2 &
holder=$!
await got /tmp/held2
kill -9 $server
wait $server 2>/dev/null
serve
is "busy" "$(lock /mnt2/f exclusive)"
grep "grace period" /tmp/log || fail "no grace period"

echo "== the client says that it has started again"
sm-notify -f
for _ in $(seq 20); do
	got=$(lock /mnt2/f exclusive)
	[ "$got" = busy ] || break
	sleep 1
done
is "got" "$got"
kill $holder
umount /mnt2 && umount /mnt1 || fail "umount"
cat /tmp/log
kill $server
wait $server || fail "the server ended badly"
echo PASS
