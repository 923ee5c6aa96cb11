package main

import (
	"bytes"
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

// packets are counters of /proc/net/netstat that tell of packets lost on the
// way from the mount to its server, for lack of memory.
type packets struct {
	reserve  int64 // PFMemallocDrop: from the reserve, for a socket without right to it
	received int64 // TCPRcvQDrop, TCPBacklogDrop and TCPOFODrop: no room at the receiver
	unsent   int64 // TCPWqueueTooBig and TCPRetransFail
	timeouts int64 // TCPTimeouts: sent again after a time
}

func readPackets() packets {
	raw, _ := os.ReadFile("/proc/net/netstat")
	tcp := func(name string) int64 { return netstat(string(raw), "TcpExt:", name) }
	return packets{
		tcp("PFMemallocDrop"), tcp("TCPRcvQDrop") + tcp("TCPBacklogDrop") + tcp("TCPOFODrop"),
		tcp("TCPWqueueTooBig") + tcp("TCPRetransFail"), tcp("TCPTimeouts"),
	}
}

// notePackets notes what was lost since the load began, if anything.
func (r *run) notePackets() {
	p := readPackets()
	d := packets{p.reserve - r.net.reserve, p.received - r.net.received, p.unsent - r.net.unsent, p.timeouts - r.net.timeouts}
	if d != (packets{}) {
		r.note("packets lost: %d from the reserve at a socket without right to it, %d for lack of room at the receiver, "+
			"%d not sent; %d time-outs", d.reserve, d.received, d.unsent, d.timeouts)
	}
}

// netstat finds a counter in /proc/net/netstat, which has a line of names and
// then one of values for each group.
func netstat(text, group, name string) int64 {
	var names []string
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != group {
			continue
		}
		if names == nil {
			names = words
			continue
		}
		if i := slices.Index(names, name); i > 0 && i < len(words) {
			n, _ := strconv.ParseInt(words[i], 10, 64)
			return n
		}
	}
	return 0
}
