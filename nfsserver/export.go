package nfsserver

import (
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// Squash says whose identity is taken away (root_squash and its kin).
type Squash uint8

// The values of Squash.
const (
	SquashRoot Squash = iota // uid 0 and gid 0 become anonymous
	SquashAll                // everybody does
	SquashNone               // nobody does
)

var squashNames = [...]string{"root", "all", "none"}

// ParseSquash returns the Squash called name: root, all or none.
func ParseSquash(name string) (Squash, error) {
	for i, n := range squashNames {
		if n == name {
			return Squash(i), nil
		}
	}
	return 0, fmt.Errorf("squash %q is not one of root, all, none", name)
}

// String returns the name that ParseSquash takes.
func (s Squash) String() string {
	if int(s) < len(squashNames) {
		return squashNames[s]
	}
	return fmt.Sprintf("Squash(%d)", s)
}

// DefaultAnon is the usual identity of nobody.
const DefaultAnon = 65534

// MaxExportID is the largest export ID: 24 bits of a file handle.
const MaxExportID = 1<<24 - 1

// Export is one file system and who may do what with it.
type Export struct {
	// Name is what clients mount, an absolute path: "/data".
	Name string
	FS   vfs.FS
	// Mount, if not nil, is asked at each MNT whether the client at the other end
	// of nc may have the export as dir, any path below Name; it then gets the
	// root. An error is the answer. It may be called concurrently, and before
	// anything else of the FS but Handle of its root.
	Mount func(nc net.Conn, dir string) error
	// ID stands for the export in file handles, so it must stay the same as
	// long as clients have some: 1 to MaxExportID; 0 derives it from Name.
	ID uint32
	// Squash says whose identity becomes AnonUID and AnonGID, which are
	// DefaultAnon if 0.
	Squash           Squash
	AnonUID, AnonGID uint32
	// Allow lists the clients; none means everybody.
	Allow []netip.Prefix
	// ReadOnly refuses all changes with NFS3ERR_ROFS.
	ReadOnly bool
	// Secure refuses clients that do not call from a port below 1024.
	Secure bool
}

func validateExports(exports []Export) error {
	if len(exports) == 0 || len(exports) > MaxExports {
		return fmt.Errorf("nfsserver: %d exports: want 1 to %d", len(exports), MaxExports)
	}
	names, ids := map[string]bool{}, map[uint32]string{}
	for i := range exports {
		x := &exports[i]
		if err := x.validate(); err != nil {
			return fmt.Errorf("nfsserver: export %q: %w", x.Name, err)
		}
		if names[x.Name] {
			return fmt.Errorf("nfsserver: export %q is there twice", x.Name)
		}
		if other, taken := ids[x.ID]; taken {
			return fmt.Errorf("nfsserver: exports %q and %q have the same ID %d in file handles: give one of them another ID", other, x.Name, x.ID)
		}
		names[x.Name], ids[x.ID] = true, x.Name
	}
	return nil
}

// validate fills in the defaults and reports the first thing wrong with x.
func (x *Export) validate() error {
	setDefault(&x.AnonUID, DefaultAnon)
	setDefault(&x.AnonGID, DefaultAnon)
	setDefault(&x.ID, ExportID(x.Name))
	switch {
	case !strings.HasPrefix(x.Name, "/") || path.Clean(x.Name) != x.Name || strings.ContainsRune(x.Name, 0):
		return errors.New("the name must be an absolute path without \"..\", double or trailing slashes")
	case len(x.Name) > nfs3.MaxMountPath:
		return fmt.Errorf("the name is longer than %d bytes", nfs3.MaxMountPath)
	case x.FS == nil:
		return errors.New("no file system")
	case x.ID > MaxExportID:
		return fmt.Errorf("ID %d is over the limit of %d", x.ID, MaxExportID)
	case int(x.Squash) >= len(squashNames):
		return fmt.Errorf("%v is not a way to squash", x.Squash)
	case len(x.Allow) > nfs3.MaxGroups:
		return fmt.Errorf("%d networks are allowed, over the limit of %d", len(x.Allow), nfs3.MaxGroups)
	}
	for _, p := range x.Allow {
		if !p.IsValid() {
			return errors.New("an allowed network is not valid")
		}
	}
	return nil
}

// ExportID derives the ID of an export from its name: 1 to MaxExportID.
func ExportID(name string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(name))
	v := h.Sum32()
	return max((v^v>>24)&MaxExportID, 1)
}

// export is an Export in use.
type export struct {
	Export
	ioMax       uint32     // rtmax and wtmax, bytes
	handleLen   int        // of the root's handle, what to expect of others
	heedsNoWait bool       // the file system is a vfs.NoWaiter
	stater      vfs.Stater // the file system, if it is one
	sharesDisk  bool       // what it announces is in the same file system as the journal
}

// word begins the handles of x.
func (x *export) word() uint32 { return handleVersion<<24 | x.ID }

// allows reports whether a client may use x at all.
func (x *export) allows(peer netip.AddrPort) bool {
	return !(x.Secure && peer.Port() >= 1024) && x.allowsAddr(peer.Addr())
}

func (x *export) allowsAddr(a netip.Addr) bool {
	for _, p := range x.Allow {
		if p.Contains(a) {
			return true
		}
	}
	return len(x.Allow) == 0
}

// SetExports replaces the exports. Calls in progress end as they began. Handles of an
// export that is gone are stale, and good again when it comes back under the same ID.
// It is not called twice at once.
func (s *Server) SetExports(exports []Export) error {
	cfg := s.cfg
	cfg.Exports = slices.Clone(exports) // Validate fills in defaults
	if err := validateExports(cfg.Exports); err != nil {
		return err
	}
	t, err := newExportTable(&cfg)
	if err != nil {
		return err
	}
	for _, x := range t.list {
		x.ioMax = min(x.ioMax, uint32(s.ioMax))
	}
	old := s.exports.Load()
	t.gone = maps.Clone(old.gone)
	for id := range old.byID {
		t.gone[id] = true
	}
	s.exports.Store(t)
	return nil
}

// exportTable finds exports. It is never changed.
type exportTable struct {
	list []*export
	byID map[uint32]*export
	gone map[uint32]bool // IDs of exports that there were
	// ioMax is the largest of all exports.
	ioMax int
}

// newExportTable checks that every file system has a root that file handles can
// be made for.
func newExportTable(cfg *Config) (*exportTable, error) {
	t := &exportTable{byID: map[uint32]*export{}, gone: map[uint32]bool{}}
	for i := range cfg.Exports {
		x := &export{Export: cfg.Exports[i]}
		x.ioMax = cfg.ioMax(x.FS.MaxIO())
		if x.ioMax == 0 {
			return nil, fmt.Errorf("nfsserver: export %q: its file system can move no data", x.Name)
		}
		_, x.heedsNoWait = x.FS.(vfs.NoWaiter)
		x.stater, _ = x.FS.(vfs.Stater)
		if a, ok := x.FS.(vfs.Announcer); ok && cfg.StateDir != "" {
			x.sharesDisk = a.SharesDisk(cfg.StateDir)
		}
		h, err := x.FS.Handle(vfs.RootID, nil)
		if err != nil {
			return nil, fmt.Errorf("nfsserver: export %q: file handle of its root: %w", x.Name, err)
		}
		x.handleLen = handlePrefix + len(h)
		if x.handleLen > nfs3.MaxHandle {
			return nil, fmt.Errorf("nfsserver: export %q: its file handles of %d bytes are over the limit of %d", x.Name, len(h), nfs3.MaxHandle-handlePrefix)
		}
		t.list = append(t.list, x)
		t.byID[x.ID] = x
		t.ioMax = max(t.ioMax, int(x.ioMax))
	}
	return t, nil
}

// ofHandle returns the export that a handle with this first word belongs to.
func (t *exportTable) ofHandle(word uint32) (*export, error) {
	id := word & MaxExportID
	x := t.byID[id]
	switch {
	case word>>24 != handleVersion || x == nil && !t.gone[id]:
		return nil, vfs.ErrBadHandle
	case x == nil:
		return nil, vfs.ErrStale
	}
	return x, nil
}

// find returns the export that holds the directory called dir, the one with the
// longest name, and what is left of dir below it.
func (t *exportTable) find(dir string) (x *export, rest string, ok bool) {
	if dir == "/" && len(t.list) == 1 {
		return t.list[0], "", true
	}
	for _, y := range t.list {
		below, in := strings.CutPrefix(dir, y.Name)
		in = in && (y.Name == "/" || below == "" || below[0] == '/')
		if in && (x == nil || len(y.Name) > len(x.Name)) {
			x, rest = y, below
		}
	}
	return x, strings.Trim(rest, "/"), x != nil
}
