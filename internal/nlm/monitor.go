package nlm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	stateFile  = "state"
	hostPrefix = "host-"
	tmpSuffix  = ".tmp"
	// maxEntry bounds what is read of a file, in bytes.
	maxEntry = 4 << 10
	maxState = 1<<31 - 1
)

// errFull is returned by add when the list is.
var errFull = errors.New("nlm: the list of clients with locks is full")

// entry is a client with locks: who has to be told when the server starts again, and
// which of its addresses the client knows the server by.
type entry struct {
	Client
	here netip.Addr
}

// monitor is the list of clients with locks, a directory: a small file for each, and
// one with the state of this server, which is odd and higher at each start. Without a
// directory it is in memory alone.
type monitor struct {
	dir     string
	limit   int
	state   uint32
	unsaved error // why the next start does not know state

	mu    sync.Mutex
	hosts map[Client]entry
}

// openMonitor reads the list, and makes the state that of a new start.
func openMonitor(dir string, limit int, now time.Time) (*monitor, error) {
	m := &monitor{dir: dir, limit: limit, hosts: map[Client]entry{}, state: uint32(now.Unix())&maxState | 1}
	if dir == "" {
		return m, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("nlm: cannot make the directory for clients with locks: %w", err)
	}
	if err := m.load(); err != nil {
		return nil, fmt.Errorf("nlm: list of clients with locks: %w", err)
	}
	err := m.write(stateFile, []byte(strconv.FormatUint(uint64(m.state), 10)+"\n"))
	for _, disk := range []error{unix.EROFS, unix.ENOSPC, unix.EDQUOT, unix.EIO} {
		if errors.Is(err, disk) { // the next start may have that number, too, so this one does not
			m.unsaved, m.state = err, rand.Uint32()&maxState|1
			return m, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("nlm: state of the lock manager: %w", err)
	}
	return m, nil
}

// load reads everything. A file that is damaged, or half written, is none: what it was
// written for had not been granted.
func (m *monitor) load() error {
	files, err := os.ReadDir(m.dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		name := f.Name()
		switch {
		case strings.HasSuffix(name, tmpSuffix):
			os.Remove(filepath.Join(m.dir, name))
		case name == stateFile:
			b, err := m.read(name)
			if err != nil {
				return err
			}
			if old, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 31); err == nil {
				m.state = uint32(old+1)&maxState | 1
			}
		case strings.HasPrefix(name, hostPrefix) && len(m.hosts) < m.limit:
			b, err := m.read(name)
			if err != nil {
				return err
			}
			if e, ok := parseEntry(b); ok && fileOf(e.Client) == name {
				m.hosts[e.Client] = e
			}
		}
	}
	return nil
}

func (m *monitor) read(name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(m.dir, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxEntry))
}

// fileOf is the name of the file of a client.
func fileOf(c Client) string {
	sum := sha256.Sum256([]byte(c.Addr.String() + "\x00" + c.Name))
	return hostPrefix + hex.EncodeToString(sum[:12])
}

// An entry is three lines: the address of the client, the one of the server that it
// calls, and the quoted name of the client.
func (e *entry) format() []byte {
	return fmt.Appendf(nil, "%s\n%s\n%q\n", e.Addr, e.here, e.Name)
}

func parseEntry(b []byte) (e entry, ok bool) {
	sc := bufio.NewScanner(bytes.NewReader(b))
	var lines []string
	for sc.Scan() {
		lines = append(lines, sc.Text())
	}
	if len(lines) != 3 {
		return e, false
	}
	var err1, err2, err3 error
	e.Addr, err1 = netip.ParseAddr(lines[0])
	e.here, err2 = netip.ParseAddr(lines[1])
	e.Name, err3 = strconv.Unquote(lines[2])
	return e, err1 == nil && err2 == nil && err3 == nil
}

// all returns who is on the list.
func (m *monitor) all() []entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []entry
	for _, e := range m.hosts {
		all = append(all, e)
	}
	return all
}

// add puts a client on the list, on stable storage, and calls added before anybody can
// take it off.
func (m *monitor) add(e entry, added func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, there := m.hosts[e.Client]
	if !there && len(m.hosts) >= m.limit {
		return errFull
	}
	if !there || old != e {
		if err := m.write(fileOf(e.Client), e.format()); err != nil {
			return err
		}
		m.hosts[e.Client] = e
	}
	added()
	return nil
}

// hasAddr reports whether a client at addr is on the list.
func (m *monitor) hasAddr(addr netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.hosts {
		if c.Addr == addr {
			return true
		}
	}
	return false
}

// prune takes off the list whoever is of no use, which idle decides.
func (m *monitor) prune(idle func(Client) bool) (gone []entry, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for c, e := range m.hosts {
		if !idle(c) {
			continue
		}
		delete(m.hosts, c)
		gone = append(gone, e)
		if m.dir == "" {
			continue
		}
		if err := os.Remove(filepath.Join(m.dir, fileOf(c))); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return gone, errors.Join(errs...)
}

// write replaces a file, on stable storage.
func (m *monitor) write(name string, b []byte) error {
	if m.dir == "" {
		return nil
	}
	path := filepath.Join(m.dir, name)
	f, err := os.OpenFile(path+tmpSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(path+tmpSuffix, path)
	}
	if err != nil {
		return err
	}
	return syncDir(m.dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
