package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// Subjects of findings that are not about one mount or server.
const (
	SubjectKernel  = "kernel"
	SubjectMemory  = "memory"
	SubjectSwap    = "swap"
	SubjectSuspend = "suspend"
)

// Judge applies the rules. What it says depends on f alone.
func Judge(f *Facts) *Report {
	r := &Report{Facts: *f, Findings: []Finding{}}
	r.judgeKernel()
	for i := range r.Mounts {
		if r.Mounts[i].Loopback {
			r.judgeMount(&r.Mounts[i])
		}
	}
	for i := range r.Servers {
		r.judgeServer(&r.Servers[i])
	}
	r.judgeMemory()
	r.judgeSwap()
	r.judgeSuspend()
	for i := range r.Findings {
		r.Verdict = max(r.Verdict, r.Findings[i].Severity)
	}
	return r
}

func (r *Report) add(f Finding) { r.Findings = append(r.Findings, f) }

// looped returns bad if there is a loop-back mount, else the lesser other.
func (r *Report) looped(bad, other Severity) Severity {
	if r.Loopbacks() > 0 {
		return bad
	}
	return other
}

// newKernel is the remedy for a kernel that waits.
var newKernel = "# boot a kernel with the fix: " + releaseFix.versions()

const noNFS = "# or do without NFS on the machine that has the files: mount --bind DIRECTORY MOUNTPOINT"

func (r *Report) judgeKernel() {
	k := &r.Kernel
	f := Finding{ID: "release-policy", Subject: SubjectKernel}
	switch k.Policy {
	case NeverWaits:
		f.What = "nfs_release_folio never waits: " + k.Evidence
		f.Why = "Whoever looks for a free page is not sent to wait for an NFS server."
	case Unknown:
		f.Severity = r.looped(Warning, Note)
		f.What = "whether nfs_release_folio waits for COMMIT cannot be told: " + k.Evidence
		f.Why = "If it waits, the server can end up waiting for its own answer when memory runs out."
		f.Remedy = []string{"modprobe nfs && grep -w nfs_wb_folio_reclaim /proc/kallsyms   # a line: it never waits"}
	case Waits:
		f.Severity, f.Why = r.waiting()
		f.What = "nfs_release_folio waits for COMMIT: " + k.Evidence
		f.Remedy = []string{newKernel, noNFS}
	}
	r.add(f)
	if k.KcompactdWaits {
		r.judgeCompaction()
	}
	if k.Policy == Waits {
		r.judgeForcedCompaction()
	}
}

// waiting judges a kernel that waits by the servers that it would wait for.
func (r *Report) waiting() (Severity, string) {
	switch {
	case r.Loopbacks() == 0:
		return Warning, "With a loop-back mount, a server that looks for a free page would wait for its own answer, for good."
	case !r.onlyLoopnfs():
	case r.serverUnseen():
		return Warning, "A server that looks for a free page waits for its own answer, for good, unless it is loopnfs; who serves the mount could not be seen."
	default:
		return Note, "A server that looks for a free page may wait for its own answer; loopnfs never does, and leaves nothing to wait for when memory is short."
	}
	return Danger, "When memory runs out, the server looks for a free page, waits there for its own answer, and everything on the mount stands still for good."
}

// onlyLoopnfs reports whether all servers of loop-back mounts that were seen are
// loopnfs, with every thread guarded: it replies FILE_SYNC while memory is short,
// so that no page waits for a COMMIT. Others stall on such a kernel even if guarded.
func (r *Report) onlyLoopnfs() bool {
	return !slices.ContainsFunc(r.Servers, func(s Server) bool {
		return s.Loopback && (s.Name != "loopnfs" || !s.Guarded())
	})
}

// serverUnseen reports whether there is a loop-back mount of an unknown server.
func (r *Report) serverUnseen() bool {
	return slices.ContainsFunc(r.Mounts, func(m Mount) bool { return m.Loopback && len(m.Servers) == 0 })
}

func (r *Report) judgeCompaction() {
	m := &r.Memory
	if m.CompactionProactiveness <= 0 && m.TransparentHugepages != "always" {
		return
	}
	r.add(Finding{
		ID: "compaction", Severity: r.looped(Warning, Note), Subject: SubjectKernel,
		What: fmt.Sprintf("kcompactd waits in nfs_release_folio as well (CVE-2025-21908), vm.compaction_proactiveness is %d, transparent huge pages: %s",
			m.CompactionProactiveness, orUnknown(m.TransparentHugepages)),
		Why: "Compaction in the background then waits for the server, which waits for a free page: that has hung hosts without any lack of memory.",
		Remedy: []string{
			"sysctl -w vm.compaction_proactiveness=0", "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
			"# or boot a kernel with that fix: " + kcompactdFix.versions(),
		},
	})
}

// judgeForcedCompaction looks at compaction by a process: it waits for the server while
// it holds other pages, which the server may need.
func (r *Report) judgeForcedCompaction() {
	m := &r.Memory
	locked, direct := m.CompactUnevictable > 0, slices.Contains([]string{"always", "madvise", "defer+madvise"}, m.HugepageDefrag)
	if !locked && !direct {
		return
	}
	f := Finding{
		ID: "forced-compaction", Severity: r.looped(Warning, Note), Subject: SubjectKernel,
		What: fmt.Sprintf("a process that has memory compacted waits there too; vm.compact_unevictable_allowed %d, defrag for huge pages: %s",
			m.CompactUnevictable, orUnknown(m.HugepageDefrag)),
		Why: "It holds many pages at once and waits until one of the mount is written. Memory of the server, or metadata of ext4, can be among the others.",
	}
	if locked {
		f.sysctl("compact_unevictable_allowed", 0)
	}
	if direct {
		const name = "/sys/kernel/mm/transparent_hugepage/defrag"
		f.Remedy = append(f.Remedy, "echo defer > "+name)
		f.Changes = append(f.Changes, Change{Path: name, New: "defer", Permanent: "write it at boot, for example from a unit of systemd"})
	}
	r.add(f)
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// Caps of a backing device that kept all of the hosts alive that were tried, in
// percent of the dirty limit. Below leastDirty a server is not kept busy, but
// smallMaxRatio is not exceeded for that.
const (
	wantMaxRatio  = 10
	maxMaxRatio   = 20
	smallMaxRatio = 25
	leastDirty    = 4 << 20 // bytes
)

// wantRatio is the cap for a loop-back mount, like that of loopnfs mount.
func (r *Report) wantRatio() int64 {
	limit := r.Memory.DirtyLimitBytes
	if limit <= 0 {
		return wantMaxRatio
	}
	return min(max(wantMaxRatio, (leastDirty*100+limit/2)/limit), smallMaxRatio)
}

func (r *Report) judgeMount(m *Mount) {
	if len(m.Servers) == 0 {
		r.add(noServer(m))
	}
	r.add(r.bdiCaps(m))
}

func noServer(m *Mount) Finding {
	at := fmt.Sprintf("%s port %d", m.Transport, m.Port)
	f := Finding{ID: "server-unseen", Severity: Warning, Subject: m.Key()}
	if len(m.sockets) == 0 {
		f.What = "nobody listens at " + at + ": the server is down, or on a port that the mount does not tell"
		f.Why = "While the server is away, everybody who uses the mount waits."
		f.Remedy = []string{"ss -ltnp   # find the server, or start it again"}
		return f
	}
	f.What = "which process listens at " + at + " cannot be seen"
	f.Why = "Whether the mount is safe depends on that process."
	f.Remedy = []string{"sudo loopnfs doctor"}
	return f
}

func (r *Report) bdiCaps(m *Mount) Finding {
	f := Finding{ID: "bdi-caps", Subject: m.Key(), What: fmt.Sprintf("bdi %s: max_ratio %s, strict_limit %s", m.Device, value(m.MaxRatio), value(m.StrictLimit))}
	f.Why = "Bounds how much memory can be dirty pages that only the server can clean."
	if m.MaxRatio < 0 {
		f.Severity, f.Why = Note, "How much memory may be dirty pages that only the server can clean is not known."
		return f
	}
	dir := "/sys/class/bdi/" + m.Device
	if want := r.wantRatio(); m.MaxRatio > max(want, maxMaxRatio) {
		f.change(dir+"/max_ratio", want, bdiPermanent)
	}
	if m.StrictLimit == 0 {
		f.change(dir+"/strict_limit", 1, bdiPermanent)
	}
	if len(f.Changes) > 0 {
		f.Severity = Warning
		f.Why = "The mount may fill the whole dirty limit with pages that only the server can clean, and when memory runs out they are what cannot be had back."
	}
	return f
}

const bdiPermanent = `echo 'SUBSYSTEM=="bdi", ACTION=="add", KERNEL=="0:*", ATTR{max_ratio}="10", ATTR{strict_limit}="1"' > /etc/udev/rules.d/90-loopback-nfs.rules   # for FUSE and other NFS mounts, too`

// change adds a change, and what to type for it.
func (f *Finding) change(path string, value int64, permanent string) {
	c := Change{Path: path, New: fmt.Sprint(value), Permanent: permanent}
	f.Changes = append(f.Changes, c)
	f.Remedy = append(f.Remedy, "echo "+c.New+" > "+c.Path)
}

func value(n int64) string {
	if n < 0 {
		return "not there"
	}
	return fmt.Sprint(n)
}

// shownPaths is how many paths are named in one remedy.
const shownPaths = 8

// loopPaths returns the paths of the loop-back mounts in our own namespace, for a shell.
func (r *Report) loopPaths() string {
	var paths []string
	for i := range r.Mounts {
		if m := &r.Mounts[i]; m.Loopback && m.Process == 0 {
			for _, p := range m.Paths {
				paths = append(paths, quote(p))
			}
		}
	}
	if len(paths) == 0 || len(paths) > shownPaths {
		return "MOUNTPOINT..."
	}
	return strings.Join(paths, " ")
}
