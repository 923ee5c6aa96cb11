package doctor

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
)

func text(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }

func link(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s), Mode: fs.ModeSymlink} }

// tree is a root directory.
type tree fstest.MapFS

// healthy is a host on which a guarded loopnfs serves /mnt.
func healthy() tree {
	t := tree{
		"proc/self/mountinfo":                        text("20 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + nfsLine("0:45", "/mnt", "vers=3,proto=tcp,addr=127.0.0.1")),
		"proc/self/ns/net":                           link("net:[1]"),
		"proc/self/ns/mnt":                           link("mnt:[1]"),
		"proc/self/net/fib_trie":                     text(fib("192.0.2.7")),
		"proc/self/net/if_inet6":                     text("00000000000000000000000000000001 01 80 10 80       lo\n20010db8000000000000000000000007 02 40 00 80     eth0\n"),
		"proc/self/net/tcp":                          text(tcp("0100007F:0801 00000000:0000 0A", "77") + tcp("0100007F:0801 0100007F:03E8 01", "78")),
		"proc/sys/kernel/osrelease":                  text("6.12.117+deb12-amd64\n"),
		"proc/sys/kernel/version":                    text("#1 SMP PREEMPT_DYNAMIC Debian 6.12.117-1 (2026-11-14)\n"),
		"proc/meminfo":                               text("MemTotal:       16000000 kB\nSwapTotal:             0 kB\n"),
		"proc/vmstat":                                text("nr_free_pages 7\nnr_dirty_threshold 700000\nnr_dirty_background_threshold 350000\n"),
		"proc/swaps":                                 text("Filename Type Size Used Priority\n"),
		"sys/class/bdi/0:45/max_ratio":               text("10\n"),
		"sys/class/bdi/0:45/strict_limit":            text("1\n"),
		"sys/power/state":                            text("\n"),
		"sys/kernel/mm/transparent_hugepage/enabled": text("always [madvise] never\n"),
	}
	for name, value := range map[string]string{
		"dirty_bytes": "0", "dirty_ratio": "20", "dirty_background_bytes": "0", "dirty_background_ratio": "10",
		"min_free_kbytes": "67584", "watermark_scale_factor": "100", "compaction_proactiveness": "20",
		"compact_unevictable_allowed": "0",
	} {
		t["proc/sys/vm/"+name] = text(value + "\n")
	}
	t.process(100, "loopnfs", ioFlusher, 1, "socket:[77]")
	t.process(1, "init", 0, 1, "socket:[5]")
	return t
}

const ioFlusher = 0x00180000

func nfsLine(device, at, options string) string {
	return fmt.Sprintf("34 20 %s / %s rw,relatime - nfs 127.0.0.1:/data rw,%s\n", device, at, options)
}

func tcp(addrs, inode string) string {
	return "   0: " + addrs + " 00000000:00000000 00:00000000 00000000     0        0 " + inode + " 1 0000 100 0 0 10 0\n"
}

func fib(addr string) string {
	return "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\nLocal:\n" +
		"           |-- 127.0.0.0\n              /8 host LOCAL\n           |-- " + addr + "\n              /32 host LOCAL\n" +
		"           |-- 192.0.2.255\n              /32 link BROADCAST\n"
}

// process adds one in the namespaces number ns, with the flags on its two threads.
func (t tree) process(pid int, name string, flags, ns int, fds ...string) {
	dir := fmt.Sprintf("proc/%d/", pid)
	stat := fmt.Sprintf("%d (%s) S 1 1 1 0 -1 %d 0 0\n", pid, name, flags)
	t[dir+"stat"] = text(stat)
	t[dir+"task/1/stat"], t[dir+"task/2/stat"] = text(stat), text(stat)
	t[dir+"status"] = text("Name:\t" + name + "\nVmLck:\t 90000 kB\nVmRSS:\t 40000 kB\nVmSwap:\t 0 kB\n")
	t[dir+"oom_score_adj"] = text("-1000\n")
	t[dir+"cgroup"] = text(fmt.Sprintf("0::/system.slice/%s.service\n", name))
	t[dir+"ns/net"], t[dir+"ns/mnt"] = link(fmt.Sprintf("net:[%d]", ns)), link(fmt.Sprintf("mnt:[%d]", ns))
	for i, fd := range fds {
		t[fmt.Sprintf("%sfd/%d", dir, i)] = link(fd)
	}
}

// kernelThread adds one.
func (t tree) kernelThread(pid int, name string) {
	t[fmt.Sprintf("proc/%d/stat", pid)] = text(fmt.Sprintf("%d (%s) S 2 0 0 0 -1 %d 0 0\n", pid, name, flagKThread))
}

func (t tree) host() *Host {
	return &Host{Root: fstest.MapFS(t), Write: func(path, value string) error {
		t[strings.TrimPrefix(path, "/")] = text(value + "\n")
		return nil
	}}
}

func examine(t *testing.T, h *Host) *Report {
	t.Helper()
	r, err := Examine(h)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// bad returns the findings that are not OK: severity, rule and subject of each.
func bad(r *Report) []string {
	var list []string
	for _, f := range r.Findings {
		if f.Severity != OK {
			list = append(list, fmt.Sprintf("%s %s: %s", f.Severity, f.ID, f.Subject))
		}
		if f.What == "" || f.Why == "" || f.Severity >= Warning && len(f.Remedy) == 0 {
			list = append(list, "incomplete: "+f.ID)
		}
	}
	return list
}

const testGroup = "/sys/fs/cgroup/system.slice/loopnfs.service"

// limited gives the server's group a limit.
func limited(tr tree) {
	tr["proc/self/mountinfo"] = text(string(tr["proc/self/mountinfo"].Data) + "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
	tr[testGroup[1:]+"/memory.max"] = text("117440512\n")
}

// apart adds a thread without the flags.
func apart(name string) func(tree) {
	return func(tr tree) { tr["proc/100/task/3/stat"] = text("3 (" + name + ") S 1 1 1 0 -1 0 0 0\n") }
}

func TestHealthyHost(t *testing.T) {
	r := examine(t, healthy().host())
	if got := bad(r); len(got) > 0 || r.Verdict != OK || len(r.Unseen) > 0 {
		t.Errorf("%q, unseen %q", got, r.Unseen)
	}
	want := Server{PID: 100, Name: "loopnfs", Unit: "loopnfs.service", Loopback: true, Threads: 2, NoIO: 2, LocalThrottle: 2,
		LockedBytes: 90000 << 10, ResidentBytes: 40000 << 10, OOMScoreAdj: -1000}
	if len(r.Servers) != 1 || r.Servers[0] != want {
		t.Errorf("%+v", r.Servers)
	}
	if m := r.Mounts[0]; !m.Loopback || !slices.Equal(m.Servers, []string{"server 100"}) || !slices.Equal(m.Paths, []string{"/mnt"}) {
		t.Errorf("%+v", m)
	}
	if len(r.Findings) < 7 {
		t.Errorf("only %d findings: %+v", len(r.Findings), r.Findings)
	}
}

// Each row breaks one thing of the healthy host.
func TestFindings(t *testing.T) {
	const waiting = "6.12.43-amd64"
	on := func(release string) func(tree) {
		return func(tr tree) {
			tr["proc/sys/kernel/osrelease"], tr["proc/sys/kernel/version"] = text(release), text("#1 SMP")
		}
	}
	set := func(name, value string) func(tree) {
		return func(tr tree) { tr[name] = text(value + "\n") }
	}
	options := func(opts string) func(tree) {
		return set("proc/self/mountinfo", strings.TrimSpace(nfsLine("0:45", "/mnt", opts)))
	}
	unguarded := func(tr tree) { tr["proc/100/task/2/stat"] = text("2 (x) S 1 1 1 0 -1 64 0\n") }
	rename := func(tr tree) { tr.process(100, "gonfs", ioFlusher, 1, "socket:[77]") }
	toKnfsd := func(tr tree) {
		delete(tr, "proc/100/fd/0")
		tr.kernelThread(60, "nfsd")
		tr.kernelThread(61, "nfsd")
	}
	for _, c := range []struct {
		name string
		do   []func(tree)
		want []string
	}{
		{"loopnfs on a kernel that waits", []func(tree){on(waiting)}, []string{"note release-policy: kernel"}},
		{"another guarded server there", []func(tree){on(waiting), rename}, []string{"danger release-policy: kernel"}},
		{"loopnfs there, not guarded", []func(tree){on(waiting), unguarded},
			[]string{"danger release-policy: kernel", "danger thread-flags: server 100"}},
		{"no mount there", []func(tree){on(waiting), options("addr=192.0.2.99")}, []string{"warning release-policy: kernel"}},
		{"a kernel whose compaction waits", []func(tree){on("6.12.18-amd64"), rename},
			[]string{"danger release-policy: kernel", "warning compaction: kernel"}},
		{"compaction that moves locked memory, there", []func(tree){on(waiting), set("proc/sys/vm/compact_unevictable_allowed", "1")},
			[]string{"note release-policy: kernel", "warning forced-compaction: kernel"}},
		{"processes that compact memory, there", []func(tree){on(waiting), set("sys/kernel/mm/transparent_hugepage/defrag", "[always] defer madvise never")},
			[]string{"note release-policy: kernel", "warning forced-compaction: kernel"}},
		{"the same where nobody waits", []func(tree){set("proc/sys/vm/compact_unevictable_allowed", "1")}, nil},
		{"an unknown kernel", []func(tree){on("5.14.0-570.el9.x86_64")}, []string{"warning release-policy: kernel"}},
		{"one thread without the flags", []func(tree){unguarded}, []string{"danger thread-flags: server 100"}},
		{"the same, remote mount only", []func(tree){unguarded, options("addr=192.0.2.99")}, []string{"note thread-flags: server 100"}},
		{"nothing locked", []func(tree){set("proc/100/status", "Name:\tx\nVmRSS:\t 9 kB")}, []string{"warning locked-memory: server 100"}},
		{"swapped out", []func(tree){set("proc/100/status", "VmLck: 9 kB\nVmRSS: 9 kB\nVmSwap: 4 kB")}, []string{"warning locked-memory: server 100"}},
		{"may be killed", []func(tree){set("proc/100/oom_score_adj", "0")}, []string{"warning oom-score: server 100"}},
		{"a limit of memory", []func(tree){limited}, []string{"warning group-limit: server 100"}},
		{"a limit of memory that it sees to", []func(tree){limited, func(tr tree) { tr["proc/100/fd/77"] = link(testGroup + "/memory.reclaim") }}, nil},
		{"a limit above", []func(tree){limited, set(testGroup[1:]+"/memory.max", "max"), set("sys/fs/cgroup/system.slice/memory.max", "7")},
			[]string{"warning group-limit: server 100"}},
		{"no limit", []func(tree){limited, set(testGroup[1:]+"/memory.max", "max")}, nil},
		{"a thread that stands apart", []func(tree){apart("loopnfs-reclaim")}, nil},
		{"a thread that is forgotten", []func(tree){apart("loopnfs")}, []string{"danger thread-flags: server 100"}},
		{"no cap", []func(tree){set("sys/class/bdi/0:45/max_ratio", "100")}, []string{"warning bdi-caps: mount 0:45"}},
		{"what loopnfs mount sets on a small host", []func(tree){set("sys/class/bdi/0:45/max_ratio", "25"), set("proc/vmstat", "nr_dirty_threshold 3000")}, nil},
		{"the same on a large one", []func(tree){set("sys/class/bdi/0:45/max_ratio", "25")}, []string{"warning bdi-caps: mount 0:45"}},
		{"not a strict one", []func(tree){set("sys/class/bdi/0:45/strict_limit", "0")}, []string{"warning bdi-caps: mount 0:45"}},
		{"a kernel without strict_limit", []func(tree){func(tr tree) { delete(tr, "sys/class/bdi/0:45/strict_limit") }}, nil},
		{"no /sys", []func(tree){func(tr tree) { delete(tr, "sys/class/bdi/0:45/max_ratio") }}, []string{"note bdi-caps: mount 0:45"}},
		{"dirty_ratio", []func(tree){set("proc/sys/vm/dirty_ratio", "60")}, []string{"warning dirty-limit: memory"}},
		{"dirty_bytes", []func(tree){set("proc/sys/vm/dirty_bytes", "4194304")}, []string{"warning dirty-limit: memory"}},
		{"dirty_background", []func(tree){set("proc/sys/vm/dirty_background_ratio", "20")}, []string{"warning dirty-limit: memory"}},
		{"min_free", []func(tree){set("proc/sys/vm/min_free_kbytes", "1500")}, []string{"warning min-free: memory"}},
		{"watermarks", []func(tree){set("proc/sys/vm/watermark_scale_factor", "10")}, []string{"note watermark-scale: memory"}},
		{"server down", []func(tree){set("proc/self/net/tcp", "")}, []string{"warning server-unseen: mount 0:45"}},
		{"knfsd", []func(tree){toKnfsd}, nil},
		{"knfsd on a kernel that waits", []func(tree){toKnfsd, on(waiting)}, []string{"danger release-policy: kernel", "warning knfsd: server knfsd"}},
		{"swap on the mount", []func(tree){set("proc/swaps", `/mnt/swap\040file file 9 0 -2`)}, []string{"danger swap-on-nfs: swap"}},
		{"swap on the mount, high watermarks", []func(tree){set("proc/swaps", "/mnt/swap file 9 0 -2"), set("proc/sys/vm/min_free_kbytes", "262144"),
			set("proc/sys/vm/watermark_scale_factor", "1000")}, []string{"warning swap-on-nfs: swap"}},
		{"swap on another host", []func(tree){set("proc/swaps", `/mnt/swap file 9 0 -2`), options("addr=192.0.2.99")}, []string{"warning swap-on-nfs: swap"}},
		{"swap on another host, high watermarks", []func(tree){set("proc/swaps", `/mnt/swap file 9 0 -2`), options("addr=192.0.2.99"),
			set("proc/sys/vm/min_free_kbytes", "262144"), set("proc/sys/vm/watermark_scale_factor", "1000")}, []string{"note swap-on-nfs: swap"}},
		{"swap on a loop device", []func(tree){set("proc/swaps", "/dev/loop3 partition 9 0 -2"), set("sys/block/loop3/loop/backing_file", "/mnt/image")},
			[]string{"danger swap-on-nfs: swap"}},
		{"swap on a disk", []func(tree){set("proc/swaps", "/dev/sda2 partition 9 0 -2\n/swap file 9 0 -3")}, nil},
		{"suspend", []func(tree){set("sys/power/state", "freeze mem")}, []string{"warning suspend-freeze: suspend"}},
		{"suspend, masked", []func(tree){set("sys/power/state", "freeze mem"), func(tr tree) { tr["etc/systemd/system/sleep.target"] = link("/dev/null") }}, nil},
		{"suspend, unmounted before", []func(tree){set("sys/power/state", "mem"),
			set("etc/systemd/system-sleep/nfs", "umount /mnt\nsystemctl stop nfs-ganesha")}, nil},
		{"suspend, the wrong way round", []func(tree){set("sys/power/state", "mem"),
			set("etc/systemd/system-sleep/nfs", "# umount /mnt\nsystemctl stop nfs-ganesha\numount /mnt")},
			[]string{"warning suspend-order: suspend", "warning suspend-freeze: suspend"}},
	} {
		tr := healthy()
		for _, do := range c.do {
			do(tr)
		}
		r := examine(t, tr.host())
		if got := bad(r); !slices.Equal(got, c.want) {
			t.Errorf("%s:\n got %q\nwant %q", c.name, got, c.want)
		}
	}
}

// What is a loop-back mount, by the address in its options.
func TestLoopback(t *testing.T) {
	for opts, want := range map[string]bool{
		"addr=127.0.0.1":                     true,
		"addr=127.9.9.9":                     true,
		"addr=192.0.2.7":                     true,
		"addr=::1,proto=tcp6":                true,
		"addr=2001:db8::7,proto=tcp6":        true,
		"addr=::ffff:192.0.2.7,proto=tcp6":   true,
		"addr=192.0.2.255":                   false,
		"addr=192.0.2.8,mountaddr=127.0.0.1": false,
		"addr=2001:db8::8,proto=tcp6":        false,
		"addr=fe80::1%eth0":                  false,
		"addr=localhost":                     false,
		"addr=":                              false,
		"vers=3":                             false,
	} {
		tr := healthy()
		tr["proc/self/mountinfo"] = text(nfsLine("0:45", "/mnt", opts))
		if r := examine(t, tr.host()); r.Mounts[0].Loopback != want {
			t.Errorf("%s: %+v", opts, r.Mounts[0])
		}
	}
}

// Which sockets a mount reaches.
func TestServerOfMount(t *testing.T) {
	for _, c := range []struct {
		opts, file, sockets string
		want                bool
	}{
		{"addr=127.0.0.1,port=20490", "tcp", tcp("0100007F:500A 00000000:0000 0A", "77"), true},
		{"addr=127.0.0.1,port=0", "tcp", tcp("00000000:0801 00000000:0000 0A", "77"), true},
		{"addr=127.0.0.1,port=99999999", "tcp", tcp("00000000:0801 00000000:0000 0A", "77"), true},
		{"addr=127.0.0.1,port=20490", "tcp", tcp("0200007F:500A 00000000:0000 0A", "77"), false},
		{"addr=127.0.0.1", "tcp6", tcp("00000000000000000000000000000000:0801 00000000000000000000000000000000:0000 0A", "77"), true},
		{"addr=::1,proto=tcp6", "tcp6", tcp("00000000000000000000000001000000:0801 0:0 0A", "77"), true},
		{"addr=::1,proto=tcp6", "tcp", tcp("00000000:0801 00000000:0000 0A", "77"), false},
		{"addr=127.0.0.1,proto=udp", "udp", tcp("00000000:0801 00000000:0000 07", "77"), true},
		{"addr=127.0.0.1,proto=udp", "tcp", tcp("00000000:0801 00000000:0000 0A", "77"), false},
		{"addr=127.0.0.1", "tcp", "garbage\n" + tcp("zz:0801 00000000:0000 0A", "77") + tcp("0100007F 00000000:0000 0A", "77"), false},
	} {
		tr := healthy()
		delete(tr, "proc/self/net/tcp")
		tr["proc/self/mountinfo"] = text(nfsLine("0:45", "/mnt", c.opts))
		tr["proc/self/net/"+c.file] = text(c.sockets)
		r := examine(t, tr.host())
		if got := len(r.Mounts[0].Servers) == 1; got != c.want {
			t.Errorf("%+v: %+v", c, r.Mounts[0])
		}
	}
}

// A container mounts from itself, and another from the host's address.
func TestNamespaces(t *testing.T) {
	tr := healthy()
	tr.process(200, "gonfs", 0, 2, "socket:[90]")
	tr["proc/200/mountinfo"] = text(nfsLine("0:50", "/in", "addr=127.0.0.1,port=3000") + nfsLine("0:45", "/elsewhere", "addr=127.0.0.1"))
	tr["proc/200/net/fib_trie"] = text(fib("10.0.0.2"))
	tr["proc/200/net/tcp"] = text(tcp("00000000:0BB8 00000000:0000 0A", "90"))
	tr.process(300, "sh", 0, 3)
	tr["proc/300/mountinfo"] = text(nfsLine("0:51", "/out", "addr=10.0.0.2,port=3000") + nfsLine("0:52", "/none", "addr=127.0.0.1,port=3000"))
	r := examine(t, tr.host())
	var got []string
	for _, m := range r.Mounts {
		got = append(got, fmt.Sprintf("%s %s %d %t %s", m.Device, m.Paths, m.Process, m.Loopback, m.Servers))
	}
	want := []string{
		"0:45 [/mnt] 0 true [server 100]",
		"0:50 [/in] 200 true [server 200]",
		"0:51 [/out] 300 true [server 200]",
		"0:52 [/none] 300 true []",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// failing is a root directory where some names cannot be opened.
type failing struct {
	files fstest.MapFS
	fails func(name string) error
}

func (f failing) Open(name string) (fs.File, error) {
	if err := f.fails(name); err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return f.files.Open(name)
}

func (f failing) ReadLink(name string) (string, error)   { return f.files.ReadLink(name) }
func (f failing) Lstat(name string) (fs.FileInfo, error) { return f.files.Lstat(name) }

func TestWithoutRoot(t *testing.T) {
	tr := healthy()
	tr.kernelThread(60, "nfsd")
	h := tr.host()
	h.Root = failing{fstest.MapFS(tr), func(name string) error {
		if name == "proc/100/fd" {
			return fs.ErrPermission
		}
		return nil
	}}
	r := examine(t, h)
	if got := bad(r); !slices.Equal(got, []string{"warning server-unseen: mount 0:45"}) || len(r.Unseen) != 1 {
		t.Errorf("%q, unseen %q", got, r.Unseen)
	}
	tr["proc/fs/nfsd/portlist"] = text("rdma 20049\ntcp 2049\n")
	if r := examine(t, h); !slices.Equal(r.Mounts[0].Servers, []string{knfsd}) {
		t.Errorf("the kernel says that the socket is its own: %+v", r.Mounts[0])
	}
}

func TestFix(t *testing.T) {
	tr := healthy()
	tr["proc/100/oom_score_adj"] = text("0\n")
	tr["sys/class/bdi/0:45/max_ratio"], tr["sys/class/bdi/0:45/strict_limit"] = text("100\n"), text("0\n")
	tr["proc/sys/vm/min_free_kbytes"], tr["proc/sys/vm/dirty_bytes"] = text("1500\n"), text("4194304\n")
	tr["proc/sys/vm/watermark_scale_factor"] = text("10\n") // a note, which is left alone
	h := tr.host()
	after, err := Fix(h, examine(t, h))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range after.Fixed {
		got = append(got, fmt.Sprintf("%s %s %s %s", f.Path, f.Old, f.New, f.Error))
		if f.Permanent == "" {
			t.Errorf("%s: not said how to make it permanent", f.Path)
		}
	}
	want := []string{
		"/sys/class/bdi/0:45/max_ratio 100 10 ",
		"/sys/class/bdi/0:45/strict_limit 0 1 ",
		"/proc/100/oom_score_adj 0 -1000 ",
		"/proc/sys/vm/dirty_bytes 4194304 33554432 ",
		"/proc/sys/vm/dirty_background_bytes 0 16777216 ",
		"/proc/sys/vm/min_free_kbytes 1500 65536 ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := bad(after); !slices.Equal(got, []string{"note watermark-scale: memory"}) {
		t.Errorf("after that: %q", got)
	}
}

// The cap is never less than what keeps a server busy, which on a small host is more
// than a tenth of the dirty limit.
func TestFixCap(t *testing.T) {
	for threshold, want := range map[string]string{"0": "10", "2000": "25", "5000": "20", "9000": "11", "700000": "10"} {
		tr := healthy()
		tr["proc/vmstat"] = text("nr_dirty_threshold " + threshold + "\n")
		tr["sys/class/bdi/0:45/max_ratio"] = text("100\n")
		h := tr.host()
		after, err := Fix(h, examine(t, h))
		if err != nil || len(after.Fixed) != 1 || after.Fixed[0].New != want || after.Verdict != OK {
			t.Errorf("%s pages: %+v, want %s, %v", threshold, after.Fixed, want, err)
		}
	}
}

// A service manager has the socket of a server, too, if it starts the server when
// somebody connects. What is set for it, all services inherit.
func TestSocketOfServiceManager(t *testing.T) {
	tr := healthy()
	tr.process(1, "systemd", 0, 1, "socket:[77]")
	tr["proc/1/oom_score_adj"] = text("0\n")
	h := tr.host()
	after, err := Fix(h, examine(t, h))
	if err != nil || len(after.Fixed) != 0 || len(after.Servers) != 1 || after.Servers[0].Name != "loopnfs" || after.Verdict != OK {
		t.Errorf("fixed %+v, servers %+v, %q, %v", after.Fixed, after.Servers, bad(after), err)
	}
}

func TestFixWithoutTheRight(t *testing.T) {
	tr := healthy()
	tr["proc/100/oom_score_adj"] = text("0\n")
	h := tr.host()
	h.Write = func(string, string) error { return fs.ErrPermission }
	after, err := Fix(h, examine(t, h))
	if err != nil || len(after.Fixed) != 1 || after.Fixed[0].Error == "" || after.Fixed[0].Old != "0" || after.Verdict != Warning {
		t.Errorf("%+v, %v", after.Fixed, err)
	}
}

// Nothing that others write makes it fail, and nothing reaches a terminal or a
// shell as it is.
func TestHostileInput(t *testing.T) {
	tr := healthy()
	tr["proc/self/mountinfo"] = text(nfsLine("0:45", `/mnt\040a\033[2J\134'$(x)`, "addr=127.0.0.1"))
	tr["proc/swaps"] = text("Filename\n/mnt\\040a\x1b[2J\\'$(x)/s file\n/\\\n/\\9\n")
	tr.process(100, "a) (\x1b]0;x\x07'", 0, 1, "socket:[77]")
	tr["proc/100/cgroup"] = text("0::/system.slice/x;reboot.service\n")
	tr["proc/7/stat"] = text("7 (x")
	tr["proc/8/stat"] = text("8 (x) S 1 1 1 0 -1 99999999999999 0")
	tr["proc/9/x"] = text("it has ended")
	tr["proc/99999999999999999999/stat"] = text("")
	tr["proc/meminfo"] = text("MemTotal:\nMemTotal: -9 kB\nMemTotal: 99999999999999999999 kB\n" + strings.Repeat("x", maxLine+1))
	tr["proc/sys/vm/dirty_ratio"] = text("\x1b[2J")
	tr["sys/class/bdi/0:45/max_ratio"] = text(strings.Repeat("9", maxFile+1))
	tr["sys/power/state"] = text("mem")
	r := examine(t, tr.host())
	if len(r.Servers) != 1 || r.Servers[0].Name != "a) (\x1b]0;x\x07'" || r.Servers[0].Unit != "" {
		t.Errorf("%+v", r.Servers)
	}
	if got := r.Mounts[0].Paths[0]; got != "/mnt a\x1b[2J\\'$(x)" {
		t.Errorf("%q", got)
	}
	seen := false
	for _, f := range r.Findings {
		for _, s := range append([]string{f.What, f.Why}, f.Remedy...) {
			if Printable(s) != s {
				t.Errorf("%s: %q", f.ID, s)
			}
			seen = seen || strings.Contains(s, `umount $'/mnt a\033[2J\134\047$(x)'`)
		}
	}
	if !seen || !slices.Contains(bad(r), "danger swap-on-nfs: swap") {
		t.Errorf("%q", bad(r))
	}
}

func TestProcessesThatEnd(t *testing.T) {
	for _, name := range []string{"100/fd", "100/status", "100/stat", "100/task", "100/oom_score_adj"} {
		h := healthy().host()
		h.Root = failing{fstest.MapFS(healthy()), func(opened string) error {
			if opened == "proc/"+name {
				return syscall.ESRCH
			}
			return nil
		}}
		if r := examine(t, h); len(r.Servers) != 0 || len(r.Unseen) != 0 {
			t.Errorf("%s: %+v %q", name, r.Servers, r.Unseen)
		}
	}
	if _, err := Examine(&Host{Root: fstest.MapFS{}}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no /proc: %v", err)
	}
}

func zipped(s string) *fstest.MapFile {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write([]byte(s))
	z.Close()
	return &fstest.MapFile{Data: b.Bytes()}
}

const (
	titleLine = "    - NFS: Fix a deadlock involving nfs_release_folio()\n"
	sameNFS   = "ffffffffc0a00000 t nfs_wb_all\t[nfs]\n"
)

func TestReleasePolicy(t *testing.T) {
	debian := func(v string) string { return "#1 SMP PREEMPT_DYNAMIC Debian " + v + " (2026-01-01)" }
	log := func(release, s string) tree {
		return tree{"usr/share/doc/linux-image-" + release + "/changelog.gz": zipped(s)}
	}
	for _, c := range []struct {
		release, version string
		more             tree
		want             Policy
	}{
		{"6.1.0-50-amd64", debian("6.1.192-2"), nil, NeverWaits},
		{"6.12.43+deb12-amd64", debian("6.12.43-1~bpo12+1"), nil, Waits},
		{"6.12.117+deb12-amd64", debian("6.12.117-1"), nil, NeverWaits},
		{"6.2.16", "#1", nil, NeverWaits},
		{"6.3.0", "#1", nil, Waits},
		{"6.6.129", "#1", nil, Waits},
		{"6.6.130", "#1", nil, NeverWaits},
		{"6.12.66", "#1", nil, Waits},
		{"6.12.67", "#1", nil, NeverWaits},
		{"6.17.13", "#1", nil, Waits},
		{"6.18.6-arch1-1", "#1", nil, Waits},
		{"6.18.7-arch1-1", "#1", nil, NeverWaits},
		{"6.19.0", "#1", nil, NeverWaits},
		{"7.0.0-rc1", "#1", nil, NeverWaits},
		{"4.19.300", "#1", nil, Unknown},
		{"custom", "#1", nil, Unknown},
		{"", "", nil, Unknown},
		{"5.14.0-570.el9.x86_64", "#1", nil, Unknown},
		{"5.14.0-570.el9.x86_64", "#1", tree{"proc/kallsyms": text(sameNFS + "0 t nfs_wb_folio_reclaim\t[nfs]\n")}, NeverWaits},
		{"6.12.0-55.el10.x86_64", "#1", nil, Unknown},
		{"6.12.0-55.el10.x86_64", "#1", tree{"proc/kallsyms": text(sameNFS)}, Waits},
		{"6.12.0-55.el10.x86_64", "#1", tree{"proc/kallsyms": text(sameNFS + "0 t __traceiter_nfs_writeback_folio_reclaim\t[nfs]\n")}, NeverWaits},
		{"6.8.0-45-generic", "#45-Ubuntu SMP", tree{"proc/version_signature": text("Ubuntu 6.8.0-45.45-generic 6.8.12\n")}, Unknown},
		// The package's changelog, as far as it is of the kernel that runs.
		{"6.12.43-amd64", debian("6.12.43-2"), log("6.12.43-amd64", "linux-signed (6.12.43+2) s; u=h\n\nlinux (6.12.43-2) s; u=h\n"+titleLine), NeverWaits},
		{"6.12.43-amd64", debian("6.12.43-1"), log("6.12.43-amd64", "linux (6.12.43-2) s; u=h\n"+titleLine+"linux (6.12.43-1) s; u=h\n"), Waits},
		{"6.12.43-amd64", debian("6.12.43-1"), log("6.12.43-amd64", "not a changelog"), Waits},
	} {
		tr := tree{
			"proc/sys/kernel/osrelease": text(c.release), "proc/sys/kernel/version": text(c.version),
		}
		maps.Copy(tr, c.more)
		k := tr.host().Kernel()
		if k.Policy != c.want || k.Evidence == "" {
			t.Errorf("%s %s: %s (%s), want %s", c.release, c.version, k.Policy, k.Evidence, c.want)
		}
		if may := tr.host().KernelMayWait(); c.want == Waits && !may || c.more == nil && may != (c.want != NeverWaits) {
			t.Errorf("%s %s: by its version it may wait: %v", c.release, c.version, may)
		}
	}
}

func TestReadChangelog(t *testing.T) {
	const entry = "linux (6.8.0-45.45) noble; urgency=medium\n"
	for _, c := range []struct {
		text       string
		found, fix bool
	}{
		{entry, true, false},
		{entry + titleLine, true, true},
		{entry + "  * CVE-2026-23053\n", true, true},
		{titleLine + entry, true, false},
		{"linux-signed (6.8.0-45.45) noble; urgency=medium\n", false, false},
		{entry + "# Older entries have been removed from this changelog.\n", false, false},
		{"linux (6.8.0-46.46) noble; urgency=medium\n" + titleLine, false, false},
		{entry + strings.Repeat("x", maxLine+1), false, false},
		{"", false, false},
	} {
		found, fix := readChangelog(strings.NewReader(c.text), "6.8.0-45.45")
		if found != c.found || fix != c.fix {
			t.Errorf("%.80q: %t %t", c.text, found, fix)
		}
	}
}

// The real host: whatever it is, it can be examined.
func TestThisHost(t *testing.T) {
	r := examine(t, ThisHost())
	if r.Kernel.Release == "" || r.Memory.TotalBytes <= 0 || r.Memory.DirtyLimitBytes < 0 || len(r.Findings) == 0 {
		t.Errorf("%+v", r)
	}
	n := ThisHost().network("", "proc/self/net")
	if len(n.local) == 0 {
		t.Error("no local address was found")
	}
}
