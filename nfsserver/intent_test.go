package nfsserver

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"loopnfs/fusefs"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// dying is a store whose server dies in the middle of a change of names: once it is armed,
// the next one does not return.
type dying struct {
	*fusefs.Store
	late    bool // after the change, not before
	armed   atomic.Bool
	at, end chan struct{}
}

// lastWords is the server's witness, after whose Before the server dies.
type lastWords struct {
	vfs.Witness
	d *dying
}

func (w lastWords) Before(was []byte, whole bool) error {
	if err := w.Witness.Before(was, whole); err != nil {
		return err
	}
	return w.d.die()
}

func (d *dying) die() error {
	close(d.at)
	<-d.end
	return syscall.EIO
}

func (d *dying) before(op *vfs.Op) {
	if d.armed.Load() && !d.late {
		op.Witness = lastWords{op.Witness, d}
	}
}

func (d *dying) after() {
	if d.armed.Load() && d.late {
		_ = d.die()
	}
}

func (d *dying) Create(op *vfs.Op, dir vfs.NodeID, name string, how vfs.CreateMode, set *vfs.SetAttr, verf vfs.Verifier) (vfs.Entry, vfs.WCC, error) {
	d.before(op)
	defer d.after()
	return d.Store.Create(op, dir, name, how, set, verf)
}

func (d *dying) Mkdir(op *vfs.Op, dir vfs.NodeID, name string, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	d.before(op)
	defer d.after()
	return d.Store.Mkdir(op, dir, name, set)
}

func (d *dying) Symlink(op *vfs.Op, dir vfs.NodeID, name, target string, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	d.before(op)
	defer d.after()
	return d.Store.Symlink(op, dir, name, target, set)
}

func (d *dying) Mknod(op *vfs.Op, dir vfs.NodeID, name string, typ vfs.FileType, major, minor uint32, set *vfs.SetAttr) (vfs.Entry, vfs.WCC, error) {
	d.before(op)
	defer d.after()
	return d.Store.Mknod(op, dir, name, typ, major, minor, set)
}

func (d *dying) Remove(op *vfs.Op, dir vfs.NodeID, name string) (vfs.WCC, error) {
	d.before(op)
	defer d.after()
	return d.Store.Remove(op, dir, name)
}

func (d *dying) Rmdir(op *vfs.Op, dir vfs.NodeID, name string) (vfs.WCC, error) {
	d.before(op)
	defer d.after()
	return d.Store.Rmdir(op, dir, name)
}

func (d *dying) Rename(op *vfs.Op, dir vfs.NodeID, name string, newDir vfs.NodeID, newName string) (from, to vfs.WCC, err error) {
	d.before(op)
	defer d.after()
	return d.Store.Rename(op, dir, name, newDir, newName)
}

func (d *dying) Link(op *vfs.Op, node, dir vfs.NodeID, name string) (vfs.Attr, vfs.WCC, error) {
	d.before(op)
	defer d.after()
	return d.Store.Link(op, node, dir, name)
}

// change is a call that changes names.
type change struct {
	name string
	call func(xid uint32, root, file nfs3.FileHandle) []byte
	// undo is what another client may do after it.
	undo func(dir string) error
}

func in(root nfs3.FileHandle, name string) nfs3.DirOpArgs {
	return nfs3.DirOpArgs{Dir: root, Name: []byte(name)}
}

var changes = []change{
	{"CREATE", func(xid uint32, root, _ nfs3.FileHandle) []byte {
		return sameCall(xid, nfs3.ProcCreate, &nfs3.CreateArgs{Where: in(root, "new"), How: vfs.Guarded}, nil)
	}, func(dir string) error { return os.Remove(dir + "/new") }},
	{"CREATE exclusive", func(xid uint32, root, _ nfs3.FileHandle) []byte {
		return sameCall(xid, nfs3.ProcCreate, &nfs3.CreateArgs{Where: in(root, "new"), How: vfs.Exclusive, Verf: vfs.Verifier{1}}, nil)
	}, func(dir string) error { return os.Remove(dir + "/new") }},
	{"MKDIR", func(xid uint32, root, _ nfs3.FileHandle) []byte {
		return sameCall(xid, nfs3.ProcMkdir, &nfs3.MkdirArgs{Where: in(root, "new")}, nil)
	}, func(dir string) error { return os.Remove(dir + "/new") }},
	{"SYMLINK", func(xid uint32, root, _ nfs3.FileHandle) []byte {
		return sameCall(xid, nfs3.ProcSymlink, &nfs3.SymlinkArgs{Where: in(root, "new"), Target: []byte("a")}, nil)
	}, func(dir string) error { return os.Remove(dir + "/new") }},
	{"MKNOD", func(xid uint32, root, _ nfs3.FileHandle) []byte {
		return sameCall(xid, nfs3.ProcMknod, &nfs3.MknodArgs{Where: in(root, "new"), Type: vfs.TypeFIFO}, nil)
	}, func(dir string) error { return os.Remove(dir + "/new") }},
	{"LINK", func(xid uint32, root, file nfs3.FileHandle) []byte {
		return sameCall(xid, nfs3.ProcLink, &nfs3.LinkArgs{Handle: file, To: in(root, "new")}, nil)
	}, func(dir string) error { return os.Remove(dir + "/new") }},
	{"REMOVE", func(xid uint32, root, _ nfs3.FileHandle) []byte {
		return sameCall(xid, nfs3.ProcRemove, removeArgs(root, "a"), nil)
	}, func(dir string) error { return os.WriteFile(dir+"/a", []byte("other"), 0o600) }},
	{"RMDIR", func(xid uint32, root, _ nfs3.FileHandle) []byte {
		return sameCall(xid, nfs3.ProcRmdir, removeArgs(root, "d"), nil)
	}, func(dir string) error { return os.Mkdir(dir+"/d", 0o700) }},
	{"CREATE of the longest name", func(xid uint32, root, _ nfs3.FileHandle) []byte {
		return sameCall(xid, nfs3.ProcCreate, &nfs3.CreateArgs{Where: in(root, strings.Repeat("n", nfs3.MaxName)), How: vfs.Guarded}, nil)
	}, func(dir string) error { return os.Remove(dir + "/" + strings.Repeat("n", nfs3.MaxName)) }},
	{"RENAME", func(xid uint32, root, _ nfs3.FileHandle) []byte {
		return sameCall(xid, nfs3.ProcRename, &nfs3.RenameArgs{From: in(root, "a"), To: in(root, "b")}, nil)
	}, func(dir string) error { return os.WriteFile(dir+"/a", []byte("other"), 0o600) }},
}

// A server that dies right before a change of names, or right after it, has it carried out
// once: by itself, or by the next one. What others do before the call is sent again stays.
func TestServerDiesInAChange(t *testing.T) {
	for _, c := range changes {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, late %v", c.name, late), func(t *testing.T) { diesIn(t, &c, late) })
		}
	}
}

func diesIn(t *testing.T, c *change, late bool) {
	dir, state := diskDirs(t)
	check(t, os.WriteFile(dir+"/a", []byte("a"), 0o600))
	check(t, os.Mkdir(dir+"/d", 0o700))
	d := &dying{late: late, at: make(chan struct{}), end: make(chan struct{})}
	s := serveStore(t, dir, state, 16<<20, "127.0.0.1:0", func(cfg *Config) {
		d.Store = cfg.Exports[0].FS.(*fusefs.Store)
		cfg.Exports[0].FS, cfg.StateDir = d, state
	})
	t.Cleanup(func() { close(d.end); s.stop() })
	root, file := dial(t, s.addr).root(), dial(t, s.addr).file("a")
	d.armed.Store(true)
	call := c.call(7, root, file)
	f := &fixture{T: t, addr: s.addr}
	_, err := f.connect().Write(call)
	check(t, err)
	<-d.at
	// What is there now is what a server leaves that is killed now.
	left := filepath.Join(filepath.Dir(dir), "left")
	check(t, os.CopyFS(left, os.DirFS(state)))
	before := namesIn(t, dir)
	next := serveStore(t, dir, left, 16<<20, "127.0.0.1:0", func(cfg *Config) { cfg.StateDir = left })
	if late {
		check(t, c.undo(dir))
		before = namesIn(t, dir)
	}
	f.addr = next.addr
	if _, st := f.ask(f.connect(), call); st != nfs3.StatusOK {
		t.Errorf("the call was answered with %v", st)
	}
	if after := namesIn(t, dir); late && after != before {
		t.Errorf("it was carried out twice: there were\n%s, and now there are\n%s", before, after)
	} else if !late && after == before {
		t.Error("it was not carried out")
	}
	again := namesIn(t, dir)
	if _, st := f.ask(f.connect(), call); st != nfs3.StatusOK || namesIn(t, dir) != again {
		t.Errorf("and again: %v", st)
	}
}

// namesIn returns what names there are, and what they stand for.
func namesIn(t *testing.T, dir string) string {
	var b strings.Builder
	entries, err := os.ReadDir(dir)
	check(t, err)
	for _, e := range entries {
		fi, err := e.Info()
		check(t, err)
		fmt.Fprintln(&b, e.Name(), fi.Mode(), fi.Sys().(*syscall.Stat_t).Ino)
	}
	return b.String()
}

// A later call that has changed the same name tells that an earlier one was carried out:
// it had to wait for that. So does one of which nobody knows whether it was.
func TestLaterChangeTells(t *testing.T) {
	dir := t.TempDir()
	j, err := openJournal(dir, false, nil)
	check(t, err)
	names := func(of ...nameHash) (n [2]nameHash) { copy(n[:], of); return n }
	reply := pattern(100)
	for i, r := range []journaled{
		{kind: kindIntent, names: names(1)},
		{kind: kindReply, names: names(2, 1), reply: reply},
		{kind: kindIntent, names: names(3)},
		{kind: kindIntent, names: names(4, 3)},
		{kind: kindReply, reply: reply},
		{kind: kindIntent, names: names(5)},
		{kind: kindIntent, names: names(4)},
		{kind: kindIntent, names: names(6)},
		{kind: kindReply, reply: reply, undone: 1},
	} {
		r.seq, r.key.xid = uint64(i), uint32(i)
		check(t, j.add(&r))
	}
	check(t, j.close())
	want := map[uint32]bool{0: true, 2: true, 3: true, 5: false, 6: false}
	for round := range 2 {
		j, err := openJournal(dir, false, nil)
		check(t, err)
		p := &testPast{asked: map[uint32]bool{}, reply: reply}
		d, err := newDRC(8, j, p)
		check(t, err)
		if !maps.Equal(p.asked, want) {
			t.Errorf("later changes of %v, want %v", p.asked, want)
		}
		if p.stable != 1-round {
			t.Errorf("start %d puts what was done on stable storage %d times", round, p.stable)
		}
		for xid := range uint32(8) {
			if has := d.find(&dupKey{xid: xid}) != nil; has != (xid < 5) {
				t.Errorf("call %d is answered: %v", xid, has)
			}
		}
		check(t, j.close())
		want = map[uint32]bool{0: true, 2: true, 3: true} // it was decided
	}
}

// heldSync is a store whose first sync waits, and which looks at the journal in the second.
type heldSync struct {
	*fusefs.Store
	syncs      atomic.Int32
	held, free chan struct{}
	look       func()
}

func (h *heldSync) Sync(op *vfs.Op, node vfs.NodeID) error {
	switch h.syncs.Add(1) {
	case 1:
		close(h.held)
		<-h.free
	case 2:
		h.look()
	}
	return h.Store.Sync(op, node)
}

// Who changes a name that another call has just changed has that on stable storage before
// its own record says that the other one has ended.
func TestNameThatOthersChange(t *testing.T) {
	dir, state := diskDirs(t)
	check(t, os.WriteFile(dir+"/a", []byte("a"), 0o600))
	h := &heldSync{held: make(chan struct{}), free: make(chan struct{})}
	looked := make(chan []uint32, 1)
	h.look = func() {
		var seen []uint32
		ring, err := os.ReadFile(filepath.Join(state, journalName))
		check(t, err)
		for rec := range slices.Chunk(ring, journalBlock) {
			if r, ok := decodeJournaled(rec); ok && r.key.xid != 0 {
				seen = append(seen, r.key.xid)
			}
		}
		looked <- seen
	}
	s := serveStore(t, dir, state, 16<<20, "127.0.0.1:0", func(cfg *Config) {
		h.Store = cfg.Exports[0].FS.(*fusefs.Store)
		cfg.Exports[0].FS, cfg.StateDir = h, state
	})
	root := dial(t, s.addr).root()
	f := &fixture{T: t, addr: s.addr}
	remove, create := sameCall(1, nfs3.ProcRemove, removeArgs(root, "a"), nil),
		sameCall(2, nfs3.ProcCreate, &nfs3.CreateArgs{Where: in(root, "a"), How: vfs.Guarded}, nil)
	first, second := f.connect(), f.connect()
	_, err := first.Write(remove)
	check(t, err)
	<-h.held
	if _, st := f.ask(second, create); st != nfs3.StatusOK {
		t.Error(st)
	}
	close(h.free)
	if _, st := f.hear(first); st != nfs3.StatusOK {
		t.Error(st)
	}
	if seen := <-looked; !slices.Equal(seen, []uint32{1}) {
		t.Errorf("the journal had records of %v when the directory was synced, want that of 1", seen)
	}
	s.srv.dups.mu.Lock()
	defer s.srv.dups.mu.Unlock()
	if n := &s.srv.dups.records; len(n.names) != 0 || n.ended != n.next {
		t.Errorf("names %v, ended %d of %d", n.names, n.ended, n.next)
	}
}

// staleSync is a store in which everything was removed before it is synced.
type staleSync struct {
	*fusefs.Store
	all atomic.Int32 // calls of SyncAll
	err error        // of these
}

func (*staleSync) Sync(*vfs.Op, vfs.NodeID) error { return vfs.ErrStale }

func (s *staleSync) SyncAll() error {
	s.all.Add(1)
	return s.err
}

// A change whose directory was removed before it could be synced is on stable storage, too:
// after a loss of power the directory may be there again.
func TestSyncOfWhatIsGone(t *testing.T) {
	for want, err := range map[nfs3.Status]error{nfs3.StatusOK: nil, nfs3.StatusIO: unix.EIO} {
		dir, state := diskDirs(t)
		check(t, os.WriteFile(dir+"/a", nil, 0o600))
		gone := &staleSync{err: err}
		s := serveStore(t, dir, state, 16<<20, "127.0.0.1:0", func(cfg *Config) {
			gone.Store = cfg.Exports[0].FS.(*fusefs.Store)
			cfg.Exports[0].FS, cfg.StateDir = gone, state
		})
		f := &fixture{T: t, addr: s.addr}
		remove := sameCall(1, nfs3.ProcRemove, removeArgs(dial(t, s.addr).root(), "a"), nil)
		if _, st := f.ask(f.connect(), remove); st != want || gone.all.Load() != 1 {
			t.Errorf("%v, want %v; everything was synced %d times", st, want, gone.all.Load())
		}
	}
}

// What failed is known to have failed, also if its record is still there: a disk that loses
// power may lose what was written last.
func TestFailedCallIsNotAnswered(t *testing.T) {
	dir, state := diskDirs(t)
	check(t, os.MkdirAll(dir+"/d/e", 0o700))
	s := serveStore(t, dir, state, 16<<20, "127.0.0.1:0", func(cfg *Config) { cfg.StateDir = state })
	c := dial(t, s.addr)
	root := c.root()
	f := &fixture{T: t, addr: s.addr}
	next := func() uint64 {
		s.srv.dups.mu.Lock()
		defer s.srv.dups.mu.Unlock()
		return s.srv.dups.records.next
	}
	before := next()
	if _, st := f.ask(f.connect(), sameCall(1, nfs3.ProcRmdir, removeArgs(root, "d"), nil)); st != nfs3.StatusNotEmpty {
		t.Fatal(st)
	}
	if next() != before {
		t.Error("a call that changed nothing keeps its place in the journal")
	}
	n := &records{names: map[nameHash]int{}}
	names := [2]nameHash{7, 8}
	a, b := n.begin(&names), n.begin(&names)
	n.end(a, &names, true)
	if n.ended != 1 || len(n.names) != 2 {
		t.Errorf("ended %d, names %v", n.ended, n.names)
	}
	n.end(b, &names, false)
	if third := n.begin(&names); n.ended != 2 || n.before(third) != 2 {
		t.Errorf("ended %d, undone before %d: %b", n.ended, third, n.before(third))
	}
	for range 3 * keptReplies {
		n.number()
	}
	if n.end(2, &names, true); len(n.names) != 0 || n.before(n.next) != 0 || n.ended != n.next {
		t.Errorf("after it was overtaken: ended %d of %d, undone %b, names %v", n.ended, n.next, n.before(n.next), n.names)
	}
}

// Nothing is believed that was written by an older version, or, if it need not be on the
// disk, before another boot; nothing is written once the lease is over.
func TestRecordsThatDoNotCount(t *testing.T) {
	dir := t.TempDir()
	found := func(async bool, boot uint64) int {
		j, err := openJournal(dir, async, nil)
		check(t, err)
		defer j.f.Close()
		j.boot = boot
		all, err := j.load()
		check(t, err)
		return len(all)
	}
	put := func(change func(*replyJournal)) {
		check(t, os.RemoveAll(filepath.Join(dir, journalName)))
		j, err := openJournal(dir, true, nil)
		check(t, err)
		defer j.f.Close()
		j.boot = 5
		change(j)
		_ = j.put(&journaled{seq: 3, reply: pattern(100)}, 3)
	}
	put(func(*replyJournal) {})
	if n := found(true, 5); n != 1 {
		t.Errorf("of this boot: %d", n)
	}
	if n := found(false, 5); n != 1 {
		t.Errorf("of this boot, by a server that syncs: %d", n)
	}
	for _, async := range []bool{true, false} {
		put(func(*replyJournal) {})
		if n := found(async, 6); n != 0 {
			t.Errorf("of another boot: %d", n)
		}
		if n := found(true, 5); n != 0 {
			t.Errorf("of this boot, but another host has served since: %d", n)
		}
	}
	put(func(j *replyJournal) { j.boot = 0 })
	if n := found(true, 6); n != 1 {
		t.Errorf("of one that was on the disk: %d", n)
	}
	put(func(j *replyJournal) { j.holds = func() bool { return false } })
	if n := found(true, 5); n != 0 {
		t.Errorf("written after the lease was over: %d", n)
	}
	var rec [journalRec]byte
	(&journaled{seq: 3, reply: pattern(100)}).encode(rec[:])
	binary.BigEndian.PutUint32(rec[:], crc32.Update(journalVersion-1, castagnoli, rec[4:]))
	if _, ok := decodeJournaled(rec[:]); ok {
		t.Error("one of an older version")
	}
}

// A change is on record, on stable storage, before it is answered: with a flush of the
// journal, or without one where the order of writes does for it.
func TestFlushOfTheJournal(t *testing.T) {
	for _, apart := range []bool{false, true} {
		dir, state := diskDirs(t)
		if apart {
			state = t.TempDir()
			if err := unix.Mount("none", state, "tmpfs", 0, ""); err != nil {
				t.Skip("cannot mount a tmpfs:", err)
			}
			t.Cleanup(func() { _ = unix.Unmount(state, unix.MNT_DETACH) })
		}
		check(t, os.WriteFile(dir+"/a", []byte("a"), 0o600))
		s := serveStore(t, dir, state, 16<<20, "127.0.0.1:0", func(cfg *Config) { cfg.StateDir = state })
		root := dial(t, s.addr).root()
		j := s.srv.dups.journal
		if apart && j.direct {
			t.Errorf("%s is taken for a disk", state)
		}
		f := &fixture{T: t, addr: s.addr}
		if _, st := f.ask(f.connect(), sameCall(1, nfs3.ProcRemove, removeArgs(root, "a"), nil)); st != nfs3.StatusOK {
			t.Fatal(st)
		}
		want := uint64(1)
		if j.direct {
			want = 0
		}
		j.mu.Lock()
		if j.ended != want {
			t.Errorf("state in another file system: %v: %d flushes, want %d", apart, j.ended, want)
		}
		j.mu.Unlock()
	}
}

// testPast answers what has ended.
type testPast struct {
	asked  map[uint32]bool // by XID: whether the call has ended
	reply  []byte
	stable int
}

func (p *testPast) outcome(r *journaled, ended bool) []byte {
	p.asked[r.key.xid] = ended
	if ended {
		return p.reply
	}
	return nil
}

func (p *testPast) makeStable() { p.stable++ }

// An intent is what was written, and nothing else is one.
func TestIntentCodec(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		part := func(what string, n int) []byte { return rapid.SliceOfN(rapid.Byte(), 0, n).Draw(t, what) }
		i := intent{dir: part("dir", nfs3.MaxHandle), name: part("name", nfs3.MaxName), was: part("was", nfs3.MaxHandle), whole: rapid.Bool().Draw(t, "whole")}
		b := i.append(nil)
		if got, ok := decodeIntent(b); !ok || fmt.Sprint(got) != fmt.Sprint(i) || len(b) > maxIntent {
			t.Fatalf("got %v, want %v", got, i)
		}
		if _, ok := decodeIntent(b[:len(b)-1]); ok {
			t.Fatal("one that is cut short")
		}
		if _, ok := decodeIntent(append(b, 0)); ok {
			t.Fatal("one with something behind it")
		}
	})
	largest := intent{make([]byte, nfs3.MaxHandle), make([]byte, nfs3.MaxName), make([]byte, nfs3.MaxHandle), true}
	if got, ok := decodeIntent(largest.append(nil)); !ok || len(got.name) != nfs3.MaxName || len(got.was) != nfs3.MaxHandle {
		t.Errorf("the largest: %v, %v", got, ok)
	}
	if journalHead+maxIntent > journalRec {
		t.Errorf("%d bytes do not fit", maxIntent)
	}
}

// countedSyncs is a store that remembers what it was to sync.
type countedSyncs struct {
	*fusefs.Store
	mu     sync.Mutex
	synced map[uint64]bool // by inode number
	all    int
	fail   error // of Sync
}

func (s *countedSyncs) Sync(op *vfs.Op, node vfs.NodeID) error {
	var a vfs.Attr
	if err := s.GetAttr(op, node, &a); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced[a.Ino] = true
	if s.fail != nil {
		return s.fail
	}
	return s.Store.Sync(op, node)
}

func (s *countedSyncs) SyncAll() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all++
	return s.Store.SyncAll()
}

func (s *countedSyncs) has(ino uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.synced[ino]
}

func serveCounted(t *testing.T) (*countedSyncs, *rpcClient, nfs3.FileHandle) {
	dir, state := diskDirs(t)
	fs := &countedSyncs{synced: map[uint64]bool{}}
	s := serveStore(t, dir, state, 16<<20, "127.0.0.1:0", func(cfg *Config) {
		fs.Store = cfg.Exports[0].FS.(*fusefs.Store)
		cfg.Exports[0].FS = fs
	})
	c := dial(t, s.addr)
	return fs, c, c.root()
}

// What is given to a new object when it has its name already may be logged later than that.
func TestSyncOfWhatIsMadeInSteps(t *testing.T) {
	fs, c, root := serveCounted(t)
	both := func(name string, set vfs.SetAttr) uint64 {
		var node, link nfs3.CreateResult
		c.call(nfs3.ProcMknod, &nfs3.MknodArgs{Where: in(root, name), Type: vfs.TypeFIFO, Set: set}, &node)
		c.call(nfs3.ProcSymlink, &nfs3.SymlinkArgs{Where: in(root, name+"-link"), Target: []byte("x"), Set: set}, &link)
		if node.Status != nfs3.StatusOK || link.Status != nfs3.StatusOK {
			t.Fatal(node.Status, link.Status)
		}
		if fs.has(node.Attr.Attr.Ino) != fs.has(link.Attr.Attr.Ino) {
			t.Errorf("%s: one of the two is synced", name)
		}
		return node.Attr.Attr.Ino
	}
	if ino := both("plain", vfs.SetAttr{SetMode: true, Mode: 0o600}); fs.has(ino) {
		t.Error("what was made in one step is synced, besides its directory")
	}
	if ino := both("dressed", vfs.SetAttr{SetMode: true, Mode: 0o600, SetUID: true, UID: 7}); !fs.has(ino) {
		t.Error("only the directory is synced")
	}
}

// A call that has changed something is not to be tried again because something is missing for
// the sync.
func TestSyncWithoutDescriptor(t *testing.T) {
	fs, c, root := serveCounted(t)
	fs.mu.Lock()
	fs.fail = vfs.ErrJukebox
	fs.mu.Unlock()
	var res nfs3.CreateResult
	c.call(nfs3.ProcMkdir, &nfs3.MkdirArgs{Where: in(root, "d"), Set: vfs.SetAttr{SetMode: true, Mode: 0o755}}, &res)
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if res.Status != nfs3.StatusOK || fs.all == 0 {
		t.Errorf("%v, and everything was synced %d times", res.Status, fs.all)
	}
}

// Without --async-metadata the next server knows the replies of the last one, and has what they
// tell of on stable storage.
func TestAsyncIsTurnedOff(t *testing.T) {
	dir := t.TempDir()
	f := serve(t, func(c *Config) { c.StateDir, c.AsyncMetadata = dir, true })
	root := dial(t, f.addr).root()
	f.fs.put(t, rootNode, "a", nil)
	rec := sameCall(7, nfs3.ProcRemove, removeArgs(root, "a"), nil)
	first, st := f.ask(f.connect(), rec)
	if st != nfs3.StatusOK {
		t.Fatal(st)
	}
	cfg := f.srv.cfg
	check(t, f.srv.Close())
	cfg.AsyncMetadata = false
	f.srv, f.addr = start(t, cfg)
	f.fs.put(t, rootNode, "a", nil) // somebody else's
	if again, st := f.ask(f.connect(), rec); !bytes.Equal(again, first) {
		t.Errorf("the call that is sent again is carried out again: %v", st)
	}

	j, err := openJournal(t.TempDir(), true, nil)
	check(t, err)
	check(t, j.add(&journaled{reply: pattern(100)}))
	for i, async := range []bool{true, false} {
		j.async = async
		p := &testPast{}
		_, err := newDRC(8, j, p)
		check(t, err)
		if p.stable != i {
			t.Errorf("async %v: what the last server did was put on stable storage %d times", async, p.stable)
		}
	}
	check(t, j.close())
}
