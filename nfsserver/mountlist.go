package nfsserver

import (
	"net/netip"
	"slices"
	"sync"
)

// maxMounts bounds the mount list; when it is full the oldest entry goes.
const maxMounts = 1024

// mountEntry is a directory that a client said it mounted.
type mountEntry struct {
	host netip.Addr
	dir  string
}

// mountList is what DUMP shows. It is what clients said and decides nothing: one
// that went away without a word stays in it (RFC 1813 appendix I §5.2.2).
type mountList struct {
	mu   sync.Mutex
	list []mountEntry
}

func (l *mountList) add(host netip.Addr, dir string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := mountEntry{host, dir}
	if slices.Contains(l.list, e) {
		return
	}
	if len(l.list) == maxMounts {
		l.list = slices.Delete(l.list, 0, 1)
	}
	l.list = append(l.list, e)
}

func (l *mountList) remove(host netip.Addr, dir string) {
	l.removeIf(func(e mountEntry) bool { return e == mountEntry{host, dir} })
}

func (l *mountList) removeAll(host netip.Addr) {
	l.removeIf(func(e mountEntry) bool { return e.host == host })
}

func (l *mountList) removeIf(match func(mountEntry) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = slices.DeleteFunc(l.list, match)
}

func (l *mountList) all() []mountEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.list)
}
