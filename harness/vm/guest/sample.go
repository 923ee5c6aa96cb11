package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// procFile is a file of /proc that stays open: to open one takes memory.
type procFile struct {
	f   *os.File
	buf []byte
}

func openProc(path string) *procFile {
	f, err := os.Open(path)
	must(err)
	return &procFile{f, make([]byte, 32<<10)}
}

func (p *procFile) read() []byte {
	n, _ := p.f.ReadAt(p.buf, 0) // short is the rule
	return p.buf[:n]
}

// field returns the number after name, which begins a line.
func field(text []byte, name string) int64 {
	i := bytes.Index(text, []byte("\n"+name))
	if i < 0 {
		if !bytes.HasPrefix(text, []byte(name)) {
			return 0
		}
	} else {
		text = text[i+1:]
	}
	text = bytes.TrimLeft(text[len(name):], ": ")
	end := 0
	for end < len(text) && text[end] >= '0' && text[end] <= '9' {
		end++
	}
	n, _ := strconv.ParseInt(string(text[:end]), 10, 64)
	return n
}

// memory is what /proc/meminfo says, in KiB.
type memory struct{ total, free, available, dirty, writeback int64 }

type meminfo struct{ p *procFile }

func newMeminfo() meminfo { return meminfo{openProc("/proc/meminfo")} }

func (m meminfo) read() memory {
	t := m.p.read()
	return memory{
		field(t, "MemTotal:"), field(t, "MemFree:"), field(t, "MemAvailable:"),
		field(t, "Dirty:"), field(t, "Writeback:") + field(t, "NFS_Unstable:"),
	}
}

// counters are those of /proc/vmstat that tell of trouble.
type counters struct{ scans, ooms, throttled int64 }

type vmstat struct{ p *procFile }

func newVmstat() vmstat { return vmstat{openProc("/proc/vmstat")} }

func (v vmstat) read() counters {
	t := v.p.read()
	return counters{field(t, "pgscan_direct "), field(t, "oom_kill "), field(t, "pgscan_direct_throttle ")}
}

func (c counters) since(o counters) counters {
	return counters{c.scans - o.scans, c.ooms - o.ooms, c.throttled - o.throttled}
}

// losses are the counters of TCP that tell of packets lost on the way between
// the mount and its server, and of waiting because of that, by name.
type losses map[string]int64

// lossy are parts of the names of such counters.
var lossy = []string{"Drop", "Fail", "Timeout", "Prune", "Pressure", "Retrans", "LostRetransmit", "ToZeroWindow"}

// tcpLosses reads /proc/net/netstat, which has a line of names and then one of
// values for each group.
func tcpLosses(netstat []byte) losses {
	found := losses{}
	var names []string
	for line := range strings.Lines(string(netstat)) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || words[0] != "TcpExt:":
		case names == nil:
			names = words
		default:
			for i, name := range names[:min(len(names), len(words))] {
				if n, err := strconv.ParseInt(words[i], 10, 64); err == nil && isLossy(name) {
					found[name] = n
				}
			}
		}
	}
	return found
}

func isLossy(name string) bool {
	return slices.ContainsFunc(lossy, func(part string) bool { return strings.Contains(name, part) })
}

// losses says in words what was lost since the load began; empty if nothing.
func (r *run) losses() string {
	var lines []string
	for name, n := range tcpLosses(r.net.read()) {
		if n -= r.lost[name]; n > 0 {
			lines = append(lines, fmt.Sprintf("%s %d", name, n))
		}
	}
	if len(lines) == 0 {
		return ""
	}
	slices.Sort(lines)
	return "TCP on the way to the server: " + strings.Join(lines, ", ")
}
