package doctor

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// safeOOMScore is the highest oom_score_adj that keeps a server from being
// killed as long as there is anybody else; wantOOMScore forbids it.
const (
	safeOOMScore = -900
	wantOOMScore = -1000
)

func (r *Report) judgeServer(s *Server) {
	if s.Kernel() {
		r.judgeKnfsd(s)
		return
	}
	r.add(threadFlags(s))
	r.add(lockedMemory(s, r.Memory.SwapTotalBytes))
	r.add(oomScore(s))
	if s.GroupLimit > 0 {
		r.add(groupLimit(s))
	}
}

// grade returns bad for a server of a loop-back mount, else a note.
func (s *Server) grade(bad Severity) Severity {
	if s.Loopback {
		return bad
	}
	return Note
}

func (r *Report) judgeKnfsd(s *Server) {
	f := Finding{
		ID: "knfsd", Subject: s.Key(),
		What: fmt.Sprintf("%d threads of the kernel: they mark themselves PF_LOCAL_THROTTLE for WRITEs of this host, and never PF_MEMALLOC_NOIO", s.Threads),
		Why:  "They are not throttled for the pages that they clean, cannot be killed or swapped out, and this kernel does not let them wait for themselves.",
	}
	if r.Kernel.Policy != NeverWaits {
		f.Severity = s.grade(Warning)
		f.Why = "They take memory for the files that they write, and so come to wait in nfs_release_folio for themselves where the kernel has that wait; no setting of the server changes it."
		f.Remedy = []string{newKernel, "# or serve the directory with a server that keeps out of it: loopnfs serve --export DIRECTORY"}
	}
	r.add(f)
}

func threadFlags(s *Server) Finding {
	f := Finding{
		ID: "thread-flags", Subject: s.Key(),
		What: fmt.Sprintf("%d threads: %d with PF_MEMALLOC_NOIO, %d with PF_LOCAL_THROTTLE", s.Threads, s.NoIO, s.LocalThrottle),
		Why:  "No thread looks for memory in file systems, and none is held up for the pages that it cleans.",
	}
	if s.Guarded() {
		return f
	}
	f.Severity = s.grade(Danger)
	f.Why = "When memory or the dirty limit runs out, threads without the flags wait for pages that only this server can clean, and the mount stands still."
	f.Remedy = flusherRemedy(s)
	return f
}

// flusherRemedy is how a server gets PR_SET_IO_FLUSHER (57): its parent sets it,
// for threads and programs inherit it.
func flusherRemedy(s *Server) []string {
	if s.Name == "loopnfs" {
		return []string{
			"# start it as root, or with CAP_SYS_RESOURCE; with --require-guard it says what it lacks:",
			"loopnfs serve --require-guard --export DIRECTORY",
		}
	}
	return []string{
		"# start the server through a program that sets PR_SET_IO_FLUSHER, as root:",
		fmt.Sprintf(`perl -e 'syscall(%d, 57, 1, 0, 0, 0) == 0 or die "prctl: $!\n"; exec @ARGV' %s ARGUMENT...`, unix.SYS_PRCTL, quote(s.Name)),
	}
}

func lockedMemory(s *Server, swap int64) Finding {
	f := Finding{
		ID: "locked-memory", Subject: s.Key(),
		What: fmt.Sprintf("%s locked (VmLck, touched or not), %s resident (VmRSS), %s in swap", sizeOf(s.LockedBytes), sizeOf(s.ResidentBytes), sizeOf(s.SwapBytes)),
		Why:  "The kernel does not take the server's own memory away.",
	}
	if s.LockedBytes >= s.ResidentBytes && s.SwapBytes == 0 {
		return f
	}
	f.Severity = s.grade(Warning)
	f.Why = "The kernel may drop the server's code, and to get it back the server needs a free page when there is none."
	if swap > 0 {
		f.What += fmt.Sprintf("; swap is on (%s)", sizeOf(swap))
		f.Why = "The kernel may swap the server out, and to come back it needs a free page when there is none."
	}
	f.Remedy = unlockedRemedy(s, swap)
	return f
}

func unlockedRemedy(s *Server, swap int64) []string {
	var lines []string
	switch {
	case swap > 0 && s.Unit != "":
		lines = append(lines, "systemctl set-property "+s.Unit+" MemorySwapMax=0   # keeps it out of the swap, with cgroup v2")
	case swap > 0:
		lines = append(lines, "swapoff -a   # if there is memory enough")
	}
	if s.Name == "loopnfs" {
		return append(lines, "# start it as root, or with CAP_IPC_LOCK: it locks itself then")
	}
	return append(lines, "# only the server can lock its memory (mlockall); loopnfs does")
}

func oomScore(s *Server) Finding {
	f := Finding{
		ID: "oom-score", Subject: s.Key(), What: fmt.Sprintf("oom_score_adj %d", s.OOMScoreAdj),
		Why: "The kernel kills others before the server when memory runs out.",
	}
	if s.OOMScoreAdj <= safeOOMScore {
		return f
	}
	f.Severity = s.grade(Warning)
	f.Why = "The kernel may kill the server when memory runs out; the mount then hangs, and what was not committed is lost."
	permanent := fmt.Sprintf("choom -n %d -- %s ARGUMENT...   # how the server is started", wantOOMScore, quote(s.Name))
	if s.Unit != "" {
		dir := "/etc/systemd/system/" + s.Unit + ".d"
		permanent = fmt.Sprintf(`mkdir -p %s && printf '[Service]\nOOMScoreAdjust=%d\n' > %s/loopback-nfs.conf && systemctl daemon-reload`, dir, wantOOMScore, dir)
	}
	f.change(fmt.Sprintf("/proc/%d/oom_score_adj", s.PID), wantOOMScore, permanent)
	return f
}

// groupLimit judges a limit of memory. What a server looks at in its file system is charged
// to it by allocations that may enter no file system, so at the limit it cannot be freed.
func groupLimit(s *Server) Finding {
	f := Finding{
		ID: "group-limit", Subject: s.Key(),
		What: fmt.Sprintf("its control group has a limit of %s, of which %s are resident memory of the server", sizeOf(s.GroupLimit), sizeOf(s.ResidentBytes)),
		Why:  "The server has the group reclaimed before it is full.",
	}
	if s.ReclaimsGroup {
		f.What += "; the server has it reclaimed"
		return f
	}
	f.Severity = s.grade(Warning)
	f.Why = "A client that lists many files fills the group with inodes, which the kernel cannot drop in the middle of a look-up: it kills the server, or look-ups fail."
	f.Remedy = groupRemedy(s)
	return f
}

func groupRemedy(s *Server) []string {
	var lines []string
	if s.Name == "loopnfs" {
		lines = append(lines, "# let it write to memory.reclaim (Linux 5.19), or memory.force_empty, of its group, and start it again: in a container, mount "+
			"/sys/fs/cgroup writable; loopnfs serve says what it lacks")
	}
	if s.Unit != "" {
		return append(lines, "systemctl set-property "+s.Unit+" MemoryMax=infinity MemoryHigh=infinity")
	}
	return append(lines, "# or start it in a control group without a limit: "+quote(s.Group)+" has one, or one above it")
}
