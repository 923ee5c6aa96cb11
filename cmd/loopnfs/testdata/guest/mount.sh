# What mount --via kernel and umount promise, on a stock kernel, in a guest. Ends at the
# first thing that is not so.
set -u
PATH=$PATH:/job
export=/srv/export mnt=/mnt

now() { cut -d. -f1 /proc/uptime; }
fail() { echo "FAIL: $*"; [ -z "${server:-}" ] || kill -9 "$server"; exit 1; }

# expect CODE TEXT COMMAND...: it ends with CODE, within a minute, and says TEXT.
expect() {
	code=$1 text=$2
	shift 2
	echo "$*"
	timeout -s KILL 60 "$@" >/tmp/out 2>&1
	got=$?
	cat /tmp/out
	[ $got = "$code" ] || fail "code $got, want $code"
	[ -z "$text" ] || grep -q -- "$text" /tmp/out || fail "no '$text'"
}

# is TEXT FILE: FILE contains TEXT and nothing else.
is() { [ "$(cat "$2")" = "$1" ] || fail "$2 is $(cat "$2"), want $1"; }

serve() {
	loopnfs serve --export $export:/e --memory 16MiB --state /srv/state --squash none >/tmp/ready 2>>/tmp/log &
	server=$!
	until grep -q ready /tmp/ready; do
		kill -0 $server || fail "no server: $(cat /tmp/log)"
		sleep 0.1
	done
}

kill_server() {
	kill -9 $server
	wait $server 2>/dev/null
	server=
}

device() { awk -v m=$mnt '$5 == m {print $3}' /proc/self/mountinfo; }

# dirty SIZE NAME: leaves a process, $writer, that holds a file open with so many KiB that are
# not written.
dirty() {
	rm -f /tmp/go
	(
		exec 3>$mnt/$2
		until [ -e /tmp/go ]; do sleep 0.1; done
		head -c $1 /dev/zero >&3
		exec sleep 1000
	) &
	writer=$!
	until [ -e $mnt/$2 ]; do sleep 0.1; done
}

# map NAME: leaves a file dirty, nobody who has it open, and no server.
map() {
	rm -f /tmp/go /tmp/mapped
	./mapper $mnt/$1 &
	mapper=$!
	until [ -e /tmp/mapped ]; do sleep 0.1; done
	kill_server
	touch /tmp/go
	wait $mapper || fail "no dirty pages"
}

mkdir -p $export/sub /mnt2
uname -r
serve

echo "== a loop-back mount is capped, and what is written is there"
expect 0 "dirty pages are capped" loopnfs mount 127.0.0.1:/e $mnt
bdi=/sys/class/bdi/$(device)
case $(uname -r) in
6.1.*) grep "note: this kernel has no strict_limit" /tmp/out || fail "no note" ;;
*) is 1 $bdi/strict_limit ;;
esac
is 1 $bdi/min_ratio
max=$(cat $bdi/max_ratio)
[ "$max" -ge 1 ] && [ "$max" -le 25 ] || fail "max_ratio $max"
grep " $mnt " /proc/self/mountinfo | grep "vers=3.*hard,nolock,proto=tcp.*timeo=1800" || fail "other options"
[ -z "$(pgrep -f 'loopnfs mount')" ] || fail "a process stays"
dd if=/dev/urandom of=$mnt/f bs=64k count=100 conv=fsync 2>/dev/null || fail "dd"
cmp $mnt/f $export/f || fail "other data"

echo "== what is refused"
expect 1 "is in use: 127.0.0.1:/e (nfs)" loopnfs mount 127.0.0.1:/e $mnt
expect 1 "throws away" loopnfs mount 127.0.0.1:/e /mnt2 -o soft
expect 1 "/srv/export is the directory that the server exports" loopnfs mount 127.0.0.1:/e $export
expect 1 "/srv/export is the directory that the server exports" loopnfs mount 127.0.0.1:/e $export/sub
expect 1 "exports nothing by this name" loopnfs mount 127.0.0.1:/nothing /mnt2
expect 1 "connection refused" loopnfs mount 127.0.0.1:2050:/e /mnt2
expect 1 "does not take the option nconnect=999: .*: NFS: .*out of range" loopnfs mount 127.0.0.1:/e /mnt2 -o nconnect=999
expect 1 "sudo, or --via fuse" setpriv --reuid 65534 --clear-groups --inh-caps=-all loopnfs mount 127.0.0.1:/e /mnt2 --via kernel
[ "$(grep -c /mnt2 /proc/self/mountinfo)" = 0 ] || fail "mounted all the same"

echo "== in use, then not"
sleep 1000 <$mnt/f &
expect 3 "in use by sleep" loopnfs umount $mnt
kill $!
wait $! 2>/dev/null
expect 0 "" loopnfs umount $mnt
expect 1 "nothing is mounted" loopnfs umount $mnt
expect 0 "" loopnfs mount localhost:/e $mnt --via kernel -o ro,noatime,wsize=256KiB
grep " $mnt ro,noatime .*wsize=262144" /proc/self/mountinfo || fail "other options"
expect 0 "" loopnfs umount $mnt

echo "== the server is gone, and comes back"
expect 0 "" loopnfs mount 127.0.0.1:/e $mnt
map g
expect 4 "unmounted, but .* not written to the server yet" loopnfs umount $mnt --timeout 3s
[ -z "$(device)" ] || fail "still mounted"
expect 4 "run this again" loopnfs umount $mnt --timeout 1s
serve
expect 0 "" loopnfs umount $mnt --timeout 50s
[ "$(tr -d x <$export/g | wc -c)" = 0 ] || fail "g is not what was written"

echo "== the server is gone for good, which is said later"
case $(uname -r) in
6.1.*) ;; # it cannot give up
*)
	expect 0 "" loopnfs mount 127.0.0.1:/e $mnt
	map lost
	expect 4 "not written to the server yet" loopnfs umount $mnt --timeout 1s
	expect 4 "data is lost: .* were not written" loopnfs umount $mnt --timeout 1s --force
	expect 1 "nothing is mounted" loopnfs umount $mnt
	serve
	;;
esac

echo "== by force: the server is there, so nothing is lost"
expect 0 "" loopnfs mount 127.0.0.1:/e $mnt
dirty 100000 h
touch /tmp/go
sleep 1
expect 0 "" loopnfs umount $mnt --force
[ $(stat -c %s $export/h) = 100000 ] || fail "h has $(stat -c %s $export/h) bytes"
kill -9 $writer

echo "== by force: what is mounted elsewhere, too, is left alone"
expect 0 "" loopnfs mount 127.0.0.1:/e $mnt
expect 0 "" loopnfs mount 127.0.0.1:/e /mnt2
expect 0 "" loopnfs umount $mnt --force
echo text >/mnt2/j || fail "the other mount is dead"
expect 0 "" loopnfs umount /mnt2
is text $export/j

echo "== by force: the server is gone"
expect 0 "" loopnfs mount 127.0.0.1:/e $mnt
dirty 100000 i
kill_server
touch /tmp/go
sleep 1
began=$(now)
expect 4 "unmounted" loopnfs umount $mnt --force --timeout 3s
[ $(($(now) - began)) -le 20 ] || fail "it took $(($(now) - began)) s"
[ -z "$(device)" ] || fail "still mounted"
kill -9 $writer

echo "== and again"
serve
expect 0 "" loopnfs mount 127.0.0.1:/e $mnt
cmp $mnt/f $export/f || fail "other data"
expect 0 "" loopnfs umount $mnt
kill $server
wait $server || fail "the server ended badly"
pkill -9 -x sleep
echo PASS
