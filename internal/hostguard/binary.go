package hostguard

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The program file is mapped, not loaded: code that runs for the first time is
// read then, which takes a page, and code that does not run for a while is
// dropped. So what may run is read in ahead and locked. That is much less than
// there is: a binary of many commands has code for reports and for a web server.

// mapping is a range of addresses.
type mapping struct{ start, end uintptr }

// lockBinary reads in and locks the constants of the program file, and its code
// but for that of the packages that begin with cold. It follows lockAll, which
// locks only what is touched. To find that code takes longer than the rest of a start: hot
// is what another process has found, or gets it; it may be nil.
func lockBinary(cold []string, hot *[]mapping) error {
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		m, exec, ok := fileConstant(lines.Text())
		switch {
		case !ok:
		case exec:
			err = lockCode(m, cold, hot)
		default:
			err = m.lock(unix.SYS_MLOCK)
		}
		if err != nil {
			return fmt.Errorf("mlock: %w", err)
		}
	}
	return nil
}

// fileConstant returns the addresses of a line of /proc/PID/maps if it is of a
// file, readable, and never written, and whether it is code.
func fileConstant(line string) (m mapping, exec, ok bool) {
	f := strings.Fields(line)
	if len(f) < 6 || len(f[1]) < 4 || f[1][:2] != "r-" || f[4] == "0" {
		return m, false, false
	}
	from, to, _ := strings.Cut(f[0], "-")
	start, err1 := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	m = mapping{uintptr(start), uintptr(end)}
	return m, f[1][2] == 'x', err1 == nil && err2 == nil && start < end
}

// lock makes the system call, mlock or munlock, for m.
func (m mapping) lock(call uintptr) error {
	if _, _, errno := unix.Syscall(call, m.start, m.end-m.start, 0); errno != 0 {
		return errno
	}
	return nil
}

// lockCode locks what of m may run. Code that is not Go's stays as it is.
func lockCode(m mapping, cold []string, known *[]mapping) error {
	hot := m.knownCode(known)
	if len(hot) == 0 {
		hot = hotCode(m, cold)
	}
	if len(hot) == 0 {
		return nil
	}
	if known != nil {
		*known = hot
	}
	if err := m.lock(unix.SYS_MUNLOCK); err != nil {
		return err
	}
	at := m.start
	for _, h := range hot {
		if err := h.lock(unix.SYS_MLOCK); err != nil {
			return err
		}
		mapping{at, h.start}.giveBack()
		at = h.end
	}
	mapping{at, m.end}.giveBack()
	return nil
}

// giveBack lets go of what was read in of m. It is read again if it is used again, and that
// it could not be let go of costs nothing but memory.
func (m mapping) giveBack() {
	if m.start < m.end {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
	}
}

// knownCode returns what is known of the code of m, if all of it lies there.
func (m mapping) knownCode(known *[]mapping) []mapping {
	if known == nil {
		return nil
	}
	for _, h := range *known {
		if h.start < m.start || h.end > m.end || h.start >= h.end {
			return nil
		}
	}
	return *known
}

// formatRanges writes ranges for another process of the same program.
func formatRanges(ranges []mapping) string {
	var b strings.Builder
	for _, m := range ranges {
		fmt.Fprintf(&b, "%x-%x ", m.start, m.end)
	}
	return b.String()
}

// parseRanges reads what formatRanges wrote; nil if it is something else.
func parseRanges(s string) (ranges []mapping) {
	for _, word := range strings.Fields(s) {
		var m mapping
		if n, err := fmt.Sscanf(word, "%x-%x", &m.start, &m.end); n != 2 || err != nil {
			return nil
		}
		ranges = append(ranges, m)
	}
	return ranges
}

// codeGap is what ranges of code are apart at least, to keep their number low.
const codeGap = 32 << 10

// codeStep returns how far apart the addresses are that are looked at, at most
// the alignment of functions: the wrapper of a method value is short, and lies
// among the code of the package that makes it, which may be cold.
func codeStep() uintptr {
	switch runtime.GOARCH {
	case "amd64":
		return 32
	case "riscv64":
		return 8
	}
	return 16
}

// hotCode returns the pages of m with functions of packages that are not cold,
// in few ranges.
func hotCode(m mapping, cold []string) (hot []mapping) {
	page, step := uintptr(os.Getpagesize()), codeStep()
	for pc := m.start; pc < m.end; {
		f := runtime.FuncForPC(pc)
		if f == nil {
			pc += step
			continue
		}
		if isCold(f.Entry(), cold) {
			pc = endOfFunc(f.Entry(), pc, m.end, step)
			continue
		}
		start := pc &^ (page - 1)
		if n := len(hot); n > 0 && start <= hot[n-1].end+codeGap {
			hot[n-1].end = start + page
		} else {
			hot = append(hot, mapping{start, start + page})
		}
		pc = start + page // the rest of the page is locked with it
	}
	return hot
}

// isCold reports whether the function at entry is of a cold package. The name there may be
// that of another, which was inlined and comes first in it: then the last frame tells.
func isCold(entry uintptr, cold []string) bool {
	if !hasPrefix(runtime.FuncForPC(entry).Name(), cold) {
		return false
	}
	frames := runtime.CallersFrames([]uintptr{entry + 1})
	f, more := frames.Next()
	for more {
		f, more = frames.Next()
	}
	return hasPrefix(f.Function, cold)
}

// endOfFunc returns the first of pc+step, pc+2*step, ... that is not in the function at entry
// any more, or end. To ask for a place within a function costs more the farther in it is.
func endOfFunc(entry, pc, end, step uintptr) uintptr {
	inside := func(pc uintptr) bool {
		f := runtime.FuncForPC(pc)
		return f != nil && f.Entry() == entry
	}
	in, out := uintptr(0), uintptr(1) // steps
	for pc+out*step < end && inside(pc+out*step) {
		in, out = out, 2*out
	}
	n := sort.Search(int(out-in-1), func(i int) bool {
		at := pc + (in+1+uintptr(i))*step
		return at >= end || !inside(at)
	})
	return min(pc+(in+1+uintptr(n))*step, end)
}

func hasPrefix(name string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}
