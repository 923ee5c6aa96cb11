package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"loopnfs/harness/vm"
	"loopnfs/internal/doctor"
)

// swapping is a host that swaps to a mount of itself, whose server is down.
func swapping() *doctor.Host {
	text := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	files := fstest.MapFS{
		"proc/self/mountinfo":         text("34 20 0:45 / /mnt\\033[2J rw - nfs 127.0.0.1:/data rw,vers=3,proto=tcp,addr=127.0.0.1\n"),
		"proc/self/ns/net":            &fstest.MapFile{Data: []byte("net:[1]"), Mode: fs.ModeSymlink},
		"proc/sys/kernel/osrelease":   text("6.19.0\n"),
		"proc/swaps":                  text("Filename\n/mnt\x1b[2J/swap file 9 0 -2\n"),
		"proc/meminfo":                text("MemTotal: 200000 kB\n"),
		"proc/sys/vm/min_free_kbytes": text("1500\n"),
	}
	return &doctor.Host{Root: files, Write: func(string, string) error { return fs.ErrPermission }}
}

func TestDoctorText(t *testing.T) {
	var b strings.Builder
	err := runDoctor(swapping(), &doctorOptions{fix: true}, &b)
	if !errors.Is(err, errDanger) || exitCode(err) != 1 {
		t.Errorf("%v", err)
	}
	out := b.String()
	if strings.Contains(out, "after the next start") {
		t.Errorf("nothing was changed:\n%s", out)
	}
	for _, want := range []string{
		"  /proc/sys/vm/min_free_kbytes is 1500 still: permission denied\n",
		"\nkernel 6.19.0\n  ok       nfs_release_folio never waits: 6.19 has the fix since 6.19\n\n",
		"\nmount /mnt\\x1b[2J of 127.0.0.1:/data: NFSv3, tcp port 2049 of 127.0.0.1, loop-back\n  warning  ",
		"\n  danger   swap area /mnt\\x1b[2J/swap lies on a loop-back NFS mount\n           why:  To free",
		"\n           type: swapoff $'/mnt\\033[2J/swap'\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if !strings.HasSuffix(out, "\nverdict: not safe: 1 danger, 2 warnings; 1 loop-back mount\n") {
		t.Errorf("the last line of\n%s", out)
	}
	for line := range strings.Lines(out) {
		if len(line) > 97 && !strings.Contains(line, " type: ") && strings.HasPrefix(line, "  ") {
			t.Errorf("a long line: %q", line)
		}
	}
}

func TestDoctorJSON(t *testing.T) {
	var b strings.Builder
	if err := runDoctor(swapping(), &doctorOptions{json: true}, &b); !errors.Is(err, errDanger) {
		t.Error(err)
	}
	var r struct {
		Verdict  string
		Findings []struct {
			ID, Severity, Subject, What, Why string
			Remedy                           []string
		}
		Mounts []struct {
			Loopback bool
			Paths    []string
		}
		Servers, Swaps, Unseen []any
	}
	if err := json.Unmarshal([]byte(b.String()), &r); err != nil {
		t.Fatal(err)
	}
	if r.Verdict != "danger" || len(r.Findings) == 0 || r.Findings[0].ID != "release-policy" || r.Findings[0].Severity != "ok" {
		t.Errorf("%+v", r)
	}
	if len(r.Mounts) != 1 || !r.Mounts[0].Loopback || r.Mounts[0].Paths[0] != "/mnt\x1b[2J" || r.Servers == nil || r.Unseen == nil {
		t.Errorf("%+v", r)
	}
}

func TestDoctorFixFails(t *testing.T) {
	h := swapping()
	delete(h.Root.(fstest.MapFS), "proc/swaps")
	var b strings.Builder
	err := runDoctor(h, &doctorOptions{fix: true}, &b)
	if err == nil || errors.Is(err, errDanger) || !strings.Contains(err.Error(), "/proc/sys/vm/min_free_kbytes") {
		t.Errorf("%v\n%s", err, &b)
	}
}

// threeServers are on one machine, each with a loop-back mount; two are told apart
// by their ports, and one is the kernel's.
const threeServers = `set -e
exec 3>&1 >/srv/log 2>&1
{ # the end of what runs here is the end of 3
mkdir -p /srv/a /srv/b /srv/c
mount -t tmpfs tmpfs /mnt; mkdir /mnt/knfsd /mnt/gonfs /mnt/loopnfs
mount -t nfsd nfsd /proc/fs/nfsd
echo '/srv/a *(rw,no_root_squash,no_subtree_check,fsid=1)' > /etc/exports
rpcbind -w; exportfs -ra; rpc.nfsd -N 4 2; rpc.mountd
./gonfs -listen :3000 /srv/b &
./loopnfs serve --export /srv/c --listen :4000 --memory 8MiB --state /srv/state &
until ss -ltn | grep -q ':3000 ' && ss -ltn | grep -q ':4000 '; do sleep 0.1; done
nfs() { mount -t nfs -o vers=3,nolock,proto=tcp,port=$1,$2 127.0.0.1:$3 $4; }
nfs 2049 hard /srv/a /mnt/knfsd
nfs 3000 mountport=3000 / /mnt/gonfs
nfs 4000 mountport=4000 /c /mnt/loopnfs
} 3>&-
./loopnfs doctor --fix --json >&3 || echo "exit $?"
umount /mnt/*; kill %1 %2`

// TestDoctorInGuest lets it look at the real thing: three servers, on a kernel
// that waits for COMMIT.
func TestDoctorInGuest(t *testing.T) {
	const kernel = "6.12.43"
	exe := os.Getenv("LOOPNFS")
	if exe == "" || !vm.Cached(kernel) {
		t.Skip("needs LOOPNFS=bin/loopnfs, built by make build, and a guest image, which make drill-vm builds")
	}
	cmd := exec.CommandContext(t.Context(), exe, "drill", "guest", "--kernel", kernel, "--memory", "256MiB", "--limit", "4m", "--", "bash", "-c", threeServers)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, &stderr)
	}
	var r doctor.Facts
	var found struct {
		Findings []struct{ ID, Severity, Subject string }
		Fixed    []doctor.Fixed
	}
	if err := errors.Join(json.Unmarshal(out, &r), json.Unmarshal(out, &found)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	byName := map[string]doctor.Server{}
	for _, s := range r.Servers {
		byName[s.Name] = s
	}
	for _, m := range r.Mounts {
		name := strings.TrimPrefix(m.Paths[0], "/mnt/")
		if s := byName[name]; !m.Loopback || !slices.Equal(m.Servers, []string{s.Key()}) || m.MaxRatio < 10 || m.MaxRatio > 25 || m.StrictLimit != 1 {
			t.Errorf("%s: %+v %+v", name, m, s)
		}
	}
	gonfs, loopnfs, knfsd := byName["gonfs"], byName["loopnfs"], byName["knfsd"]
	if len(r.Mounts) != 3 || gonfs.Guarded() || !loopnfs.Guarded() || knfsd.Threads != 2 || gonfs.OOMScoreAdj != -1000 {
		t.Errorf("%+v %+v", r.Mounts, r.Servers)
	}
	if r.Kernel.Policy != doctor.Waits || r.Kernel.Base != kernel || len(r.Unseen) > 0 {
		t.Errorf("%+v %q", r.Kernel, r.Unseen)
	}
	var dangers []string
	for _, f := range found.Findings {
		if f.Severity == "danger" {
			dangers = append(dangers, f.ID+" of "+f.Subject)
		}
	}
	if want := []string{"release-policy of kernel", "thread-flags of " + gonfs.Key()}; !slices.Equal(dangers, want) {
		t.Errorf("dangers %q, want %q", dangers, want)
	}
	for _, f := range found.Fixed {
		if f.Error != "" || f.Old == f.New {
			t.Errorf("%+v", f)
		}
	}
}
