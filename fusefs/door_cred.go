package fusefs

import (
	"bytes"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// groupsValid is how long supplementary groups are believed.
	groupsValid = time.Second
	// maxGroupEntries bounds the cache.
	maxGroupEntries = 512
	// procStatusSize is how much of /proc/PID/status is read: the line of
	// groups begins within the first 300 bytes.
	procStatusSize = 4096
	// maxGroups bounds the groups of one caller; AUTH_SYS has room for 16.
	maxGroups = 256
)

// groupKey says whose groups these are. FUSE tells the thread; with user and
// group in the key, a thread that changes them is asked again at once.
type groupKey struct{ pid, uid, gid uint32 }

type groupEntry struct {
	groups []uint32 // never changed once made
	until  time.Time
}

// groupCache knows the supplementary groups of callers, which the protocol does
// not tell (FUSE_CREATE_SUPP_GROUP is for creations only).
type groupCache struct {
	mu      sync.Mutex
	entries map[groupKey]groupEntry
}

// known returns the groups of a caller if they were asked for lately.
func (c *groupCache) known(pid, uid, gid uint32) (groups []uint32, ok bool) {
	if pid == 0 {
		return nil, true
	}
	c.mu.Lock()
	e, ok := c.entries[groupKey{pid, uid, gid}]
	c.mu.Unlock()
	return e.groups, ok && time.Now().Before(e.until)
}

// ask looks up the groups of a caller: none if it cannot be seen from here or is gone.
func (c *groupCache) ask(pid, uid, gid uint32) []uint32 {
	key, e := groupKey{pid, uid, gid}, groupEntry{readGroups(pid), time.Now().Add(groupsValid)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) >= maxGroupEntries {
		clear(c.entries)
	}
	c.entries[key] = e
	return e.groups
}

func readGroups(pid uint32) []uint32 {
	var buf [procStatusSize]byte
	status, err := readProcStatus(pid, buf[:])
	if err != nil {
		return nil
	}
	line, _ := procField(status, "\nGroups:")
	var groups []uint32
	for _, word := range bytes.Fields(line) {
		g, err := strconv.ParseUint(string(word), 10, 32)
		if err != nil || len(groups) == maxGroups {
			break
		}
		groups = append(groups, uint32(g))
	}
	return groups
}

// readProcStatus reads /proc/PID/status into buf.
func readProcStatus(pid uint32, buf []byte) ([]byte, error) {
	fd, err := unix.Open("/proc/"+strconv.FormatUint(uint64(pid), 10)+"/status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}
