package hostguard

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Protect locks what the process has and will have, starts its threads, and asks
// to be spared when the kernel kills for memory. It is called before memory for
// data is made.
func (g *Guard) Protect(cfg Config) {
	if g == nil {
		return
	}
	startThreads(cfg.Threads)
	if err := lockAll(); err != nil {
		g.Miss(Missing{
			What:   "locked memory (mlockall)",
			Why:    err,
			Costs:  "the kernel may take away the program's own memory, and getting it back takes memory that is not there",
			Remedy: "run as root, give the process CAP_IPC_LOCK, or raise the limit (ulimit -l unlimited)",
		})
	} else if err := lockBinary(cfg.Cold, g.hot); err != nil {
		g.Miss(Missing{
			What:   "the program file in locked memory",
			Why:    err,
			Costs:  "code that runs for the first time when memory is short has to be read from the disk then",
			Remedy: "mount /proc, and have some memory free at the start",
		})
	}
	if err := keepInPlace(); err != nil {
		g.Miss(Missing{
			What:   "locked memory that stays where it is",
			Why:    err,
			Costs:  "compaction may move it, and whoever has it moved may wait for a page of this process's clients meanwhile",
			Remedy: "sysctl -w vm.compact_unevictable_allowed=0",
		})
	}
	if err := deferHugepages(cfg.KernelWaits); err != nil {
		g.Miss(Missing{
			What:   "huge pages for which only kcompactd compacts memory",
			Why:    err,
			Costs:  "whoever wants one may wait for a page of this process's clients, and hold others meanwhile that this process needs",
			Remedy: "echo defer > " + hugepageDir + "defrag; echo 0 > " + hugepageDir + "khugepaged/defrag",
		})
	}
	if got, err := spare(); got != oomNever {
		g.Miss(Missing{
			What:   fmt.Sprintf("oom_score_adj of %d", oomNever),
			Why:    fmt.Errorf("%d is the lowest allowed: %w", got, err),
			Costs:  "the kernel may kill this process to get memory; its mounts hang until it is started again",
			Remedy: "give the process CAP_SYS_RESOURCE, or have its supervisor set it (OOMScoreAdjust=-1000 in systemd)",
		})
	}
	runtime.GC() // what a collection needs has been used once
}

// lockAll locks every page that is touched, now or later. What is never touched
// costs nothing: without MCL_ONFAULT all that is mapped would be filled, tens of
// MiB that the runtime and the program file merely reserve. It is not tried when
// there is a limit: mappings that come later would fail.
func lockAll() error {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &r); err != nil {
		return err
	}
	if r.Cur != unix.RLIM_INFINITY && !capable(unix.CAP_IPC_LOCK) {
		return fmt.Errorf("the limit is %d KiB", r.Cur>>10)
	}
	return unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
}

// capable reports whether the process has a capability.
func capable(c uint) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&hdr, &data[0]) == nil && data[c/32].Effective&(1<<(c%32)) != 0
}

// oomNever is the oom_score_adj of a process that the kernel does not kill
// (OOM_SCORE_ADJ_MIN).
const oomNever = -1000

// spare lowers oom_score_adj as far as allowed, and returns what it is, with the
// error of going all the way. It never raises what a supervisor has set.
func spare() (is int, first error) {
	const file = "/proc/self/oom_score_adj"
	b, err := os.ReadFile(file)
	if err == nil {
		is, err = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	if err != nil {
		return 0, err
	}
	for want := oomNever; want < is; want += 100 {
		err := os.WriteFile(file, []byte(strconv.Itoa(want)), 0)
		if err == nil {
			return want, first
		}
		if first == nil {
			first = err
		}
	}
	return is, first
}

// startThreads has the runtime start threads until it has n at least, and leaves
// them idle: it keeps them, and takes one of them when a system call blocks.
func startThreads(n int) {
	var ready, done sync.WaitGroup
	gate := make(chan struct{})
	ready.Add(n)
	for range n {
		done.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread() // a goroutine that ends locked ends its thread
			// The runtime preempts by this signal: its stack is touched.
			_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGURG)
			ready.Done()
			<-gate
		})
	}
	ready.Wait()
	close(gate)
	done.Wait()
}
