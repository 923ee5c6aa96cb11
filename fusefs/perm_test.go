package fusefs

import (
	"cmp"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/vfs"
)

var defaultPolicy = alloc.DefaultPolicy()

func lockThreadForGood() { runtime.LockOSThread() }

func (f *fixture) as(uid, gid uint32, groups ...uint32) *vfs.Op {
	return &vfs.Op{Scope: gfp.For(nil), Cred: vfs.Cred{UID: uid, GID: gid, Groups: groups}}
}

const all = vfs.AccessRead | vfs.AccessLookup | vfs.AccessModify | vfs.AccessExtend | vfs.AccessDelete | vfs.AccessExecute

// chown gives a file to somebody, by root.
func (f *fixture) chown(n vfs.NodeID, uid, gid, mode uint32) {
	f.t.Helper()
	_, err := f.SetAttr(f.op, n, &vfs.SetAttr{SetUID: true, UID: uid, SetGID: true, GID: gid, SetMode: true, Mode: mode})
	f.ok(err)
}

func TestReadWriteAccess(t *testing.T) {
	f := newFixture(t, options{})
	node := f.create(vfs.RootID, "f", 0)
	f.write(node, 0, []byte("content"), vfs.Unstable)
	for _, c := range []struct {
		mode        uint32
		op          *vfs.Op
		read, write bool
		access      uint32
	}{
		{0o640, f.as(1000, 1000), true, true, vfs.AccessRead | vfs.AccessModify | vfs.AccessExtend},
		{0o640, f.as(1001, 1000), true, false, vfs.AccessRead},
		{0o640, f.as(1001, 7, 5, 1000, 9), true, false, vfs.AccessRead},
		{0o640, f.as(1001, 1001), false, false, 0},
		{0o000, f.as(1000, 1000), true, true, 0}, // the owner's I/O, not ACCESS
		{0o000, f.as(0, 0), true, true, vfs.AccessRead | vfs.AccessModify | vfs.AccessExtend},
		{0o010, f.as(1001, 1000), true, false, vfs.AccessExecute}, // to run it is to read it
		{0o606, f.as(1001, 1000), false, false, 0},                // the group is worse off than others
		{0o602, f.as(1001, 1001), false, true, vfs.AccessModify | vfs.AccessExtend},
		{0o755, f.as(0, 0), true, true, vfs.AccessRead | vfs.AccessModify | vfs.AccessExtend | vfs.AccessExecute},
	} {
		f.chown(node, 1000, 1000, c.mode)
		_, _, err := readAs(f.Store, c.op, node, 0, 10)
		if (err == nil) != c.read {
			t.Errorf("%o, %+v: read: %v", c.mode, c.op.Cred, err)
		}
		_, err = writeAs(f.Store, c.op, node, 0, []byte("abc"), vfs.Unstable)
		if (err == nil) != c.write {
			t.Errorf("%o, %+v: write: %v", c.mode, c.op.Cred, err)
		}
		_, err = f.SetAttr(c.op, node, &vfs.SetAttr{SetSize: true, Size: 7})
		if (err == nil) != c.write {
			t.Errorf("%o, %+v: truncate: %v", c.mode, c.op.Cred, err)
		}
		if have, err := f.Access(c.op, node, all); err != nil || have != c.access {
			t.Errorf("%o, %+v: access %#x, want %#x (%v)", c.mode, c.op.Cred, have, c.access, err)
		}
	}
}

func TestDirectoryRights(t *testing.T) {
	f := newFixture(t, options{})
	d := f.mkdir(vfs.RootID, "d", 0o750)
	f.create(d, "f", 0o644)
	f.chown(d, 1000, 2000, 0o750)
	owner, group, other := f.as(1000, 1), f.as(1, 1, 2000), f.as(1, 1)
	made, w, err := f.Create(owner, d, "mine", vfs.Guarded, mode(0o666), vfs.Verifier{})
	f.ok(err)
	if made.Attr.UID != 1000 || made.Attr.GID != 1 || made.Attr.Mode != 0o666 || !w.HasPost {
		t.Errorf("made by the owner: %+v", made.Attr)
	}
	for _, op := range []*vfs.Op{group, other} {
		_, _, err = f.Create(op, d, "x", vfs.Guarded, mode(0o666), vfs.Verifier{})
		f.wants(err, unix.EACCES)
		_, _, err = f.Mkdir(op, d, "x", mode(0o777))
		f.wants(err, unix.EACCES)
		_, err = f.Remove(op, d, "f")
		f.wants(err, unix.EACCES)
		_, _, err = f.Rename(op, d, "f", d, "g")
		f.wants(err, unix.EACCES)
		_, _, err = f.Symlink(op, d, "x", "y", mode(0))
		f.wants(err, unix.EACCES)
	}
	_, err = f.Lookup(group, d, "f")
	f.ok(err)
	_, err = f.Lookup(other, d, "f")
	f.wants(err, unix.EACCES)
	_, _, err = f.ReadDir(other, d, 0, vfs.Verifier{}, &names{})
	f.wants(err, unix.EACCES)
	_, _, err = f.ReadDir(group, d, 0, vfs.Verifier{}, &names{})
	f.ok(err)
	if have, _ := f.Access(group, d, all); have != vfs.AccessRead|vfs.AccessLookup {
		t.Errorf("access of the group: %#x", have)
	}
	if have, _ := f.Access(owner, d, all); have != all&^vfs.AccessExecute {
		t.Errorf("access of the owner: %#x", have)
	}
	// Devices are for root.
	f.chown(d, 1000, 2000, 0o777)
	_, _, err = f.Mknod(other, d, "dev", vfs.TypeChar, 1, 3, mode(0o666))
	f.wants(err, unix.EPERM)
	// Sticky.
	f.chown(d, 1000, 2000, 0o1777)
	_, err = f.Remove(other, d, "mine")
	f.wants(err, unix.EPERM)
}

// Who may look for names is what the kernel says, whether it was asked or not: with mode bits,
// with an ACL that they do not tell of, and when either changes behind our back.
func TestSearchRights(t *testing.T) {
	f := newFixture(t, options{})
	d := f.mkdir(vfs.RootID, "d", 0o755)
	f.create(d, "f", 0o644)
	dir := filepath.Join(f.dir, "d")
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	f.ok(err)
	defer unix.Close(fd)
	const none, xattr = 0xffffffff, "system.posix_acl_access"
	callers := []vfs.Cred{{}, {GID: 5}, {UID: 1000, GID: 1}, {UID: 1, GID: 2000}, {UID: 1, GID: 1, Groups: []uint32{7, 2000}},
		{UID: 1, GID: 1}, {UID: 1234, GID: 2000}}
	may := map[bool]int{}
	for _, withACL := range []bool{false, true} {
		for mode := uint32(0); mode < 0o1000; mode += 3 {
			f.chown(d, 1000, 2000, mode)
			acl := posixACL(1, mode>>6&7, none, 2, ^mode&7, 1234, 4, mode>>3&7, none, 0x10, 7, none, 0x20, mode&7, none)
			if withACL && unix.Setxattr(dir, xattr, acl, 0) != nil {
				t.Skip("no ACL on this file system")
			}
			for _, c := range callers {
				id, err := f.become(&c)
				f.ok(err)
				want := faccess(fd, vfs.MayExec)
				id.restore()
				may[want == nil]++
				op := f.as(c.UID, c.GID, c.Groups...)
				e, err := f.Lookup(op, d, "f")
				f.wants(err, want)
				if err == nil {
					f.Forget(e.Node, 1)
				}
				var a vfs.Attr
				_, err = f.StatEntry(op, d, "f", &a, nil)
				f.wants(err, want)
				_, err = f.Lookup(op, d, "nothing")
				f.wants(err, cmp.Or(want, error(unix.ENOENT)))
				op.NoWait = true
				e, err = f.Lookup(op, d, "f")
				if !op.Waits {
					f.wants(err, want)
				}
				if err == nil {
					f.Forget(e.Node, 1)
				}
			}
		}
	}
	if may[true] < 100 || may[false] < 100 {
		t.Errorf("these are no cases: %v", may)
	}
}

func TestAttributeRights(t *testing.T) {
	f := newFixture(t, options{})
	node := f.create(vfs.RootID, "f", 0)
	f.chown(node, 1000, 1000, 0o646)
	owner, other := f.as(1000, 1000, 3000), f.as(1, 1)
	_, err := f.SetAttr(other, node, mode(0o777))
	f.wants(err, unix.EPERM)
	_, err = f.SetAttr(owner, node, &vfs.SetAttr{SetUID: true, UID: 2})
	f.wants(err, unix.EPERM)
	_, err = f.SetAttr(owner, node, &vfs.SetAttr{SetGID: true, GID: 4000})
	f.wants(err, unix.EPERM)
	_, err = f.SetAttr(owner, node, &vfs.SetAttr{SetGID: true, GID: 3000})
	f.ok(err)
	_, err = f.SetAttr(other, node, &vfs.SetAttr{SetMtime: vfs.SetToClientTime, Mtime: vfs.Time{Sec: 5}})
	f.wants(err, unix.EPERM)
	_, err = f.SetAttr(other, node, &vfs.SetAttr{SetMtime: vfs.SetToServerTime, SetAtime: vfs.SetToServerTime})
	f.ok(err)
	if a := f.getattr(node); a.GID != 3000 || a.UID != 1000 || a.Mode != 0o646 {
		t.Errorf("%+v", a)
	}
}

func TestSetUIDGoesWithAWrite(t *testing.T) {
	f := newFixture(t, options{})
	node := f.create(vfs.RootID, "f", 0)
	for _, c := range []struct {
		mode, after uint32
		op          *vfs.Op
	}{
		{0o6777, 0o777, f.as(1, 1)}, {0o6767, 0o2767, f.as(1, 1)}, {0o6777, 0o6777, f.as(0, 0)}, {0o4755, 0o755, f.as(1000, 1000)},
	} {
		f.chown(node, 1000, 1000, c.mode)
		res, err := writeAs(f.Store, c.op, node, 0, []byte("abc"), vfs.Unstable)
		f.ok(err)
		if a := f.getattr(node); a.Mode != c.after || res.WCC.Post.Mode != c.after {
			t.Errorf("%o written by %d: %o, in the reply %o", c.mode, c.op.Cred.UID, a.Mode, res.WCC.Post.Mode)
		}
	}
}

func TestLinkAsUser(t *testing.T) {
	f := newFixture(t, options{})
	d := f.mkdir(vfs.RootID, "d", 0o777)
	node := f.create(d, "f", 0o644)
	f.chown(node, 1000, 1000, 0o600)
	_, _, err := f.Link(f.as(1000, 1000), node, d, "g")
	f.ok(err)
	f.chown(d, 0, 0, 0o755)
	_, _, err = f.Link(f.as(1000, 1000), node, d, "h")
	f.wants(err, unix.EACCES)
	sym, _, err := f.Symlink(f.op, d, "s", "x", mode(0))
	f.ok(err)
	_, _, err = f.Link(f.op, sym.Node, d, "s2")
	f.ok(err)
	if e := f.lookup(d, "s2"); e.Node != sym.Node {
		t.Error("a link to a symbolic link is something else")
	}
}

// posixACL is an ACL in the form of the extended attribute: the owner may rw,
// user 1234 rw, the group and others nothing.
func posixACL(tag ...uint32) []byte {
	acl := []byte{2, 0, 0, 0}
	for i := 0; i < len(tag); i += 3 {
		acl = append(acl, byte(tag[i]), 0, byte(tag[i+1]), 0, byte(tag[i+2]), byte(tag[i+2]>>8), byte(tag[i+2]>>16), byte(tag[i+2]>>24))
	}
	return acl
}

func TestACL(t *testing.T) {
	f := newFixture(t, options{})
	node := f.create(vfs.RootID, "f", 0o600)
	const none = 0xffffffff
	acl := posixACL(1, 6, none, 2, 6, 1234, 4, 0, none, 0x10, 6, none, 0x20, 0, none)
	_, _, err := readAs(f.Store, f.as(1234, 1), node, 0, 1)
	f.wants(err, unix.EACCES)
	if err := unix.Setxattr(filepath.Join(f.dir, "f"), "system.posix_acl_access", acl, 0); err != nil {
		t.Skipf("no ACL on this file system: %v", err)
	}
	_, err = writeAs(f.Store, f.as(1234, 1), node, 0, []byte("abc"), vfs.Unstable)
	f.ok(err)
	_, err = writeAs(f.Store, f.as(1235, 1), node, 0, []byte("abc"), vfs.Unstable)
	f.wants(err, unix.EACCES)
	if have, _ := f.Access(f.as(1234, 1), node, all); have != vfs.AccessRead|vfs.AccessModify|vfs.AccessExtend {
		t.Errorf("access %#x", have)
	}
	// Its group bits are the mask, not what the group may.
	_, _, err = readAs(f.Store, f.as(1, 0), node, 0, 1)
	f.wants(err, unix.EACCES)
	f.ok(unix.Removexattr(filepath.Join(f.dir, "f"), "system.posix_acl_access"))
	_, _, err = readAs(f.Store, f.as(1234, 1), node, 0, 1)
	f.wants(err, unix.EACCES)
}

// What is made in a directory with a default ACL has that, however it is made.
func TestDefaultACL(t *testing.T) {
	f := newFixture(t, options{})
	d := f.mkdir(vfs.RootID, "d", 0o777)
	const none = 0xffffffff
	acl := posixACL(1, 7, none, 2, 6, 1234, 4, 0, none, 0x10, 7, none, 0x20, 0, none)
	if err := unix.Setxattr(filepath.Join(f.dir, "d"), "system.posix_acl_default", acl, 0); err != nil {
		t.Skipf("no ACL on this file system: %v", err)
	}
	for name, how := range map[string]vfs.CreateMode{"unchecked": vfs.Unchecked, "guarded": vfs.Guarded, "exclusive": vfs.Exclusive} {
		set := mode(0o666)
		if how == vfs.Exclusive {
			set = &vfs.SetAttr{}
		}
		e, _, err := f.Create(f.op, d, name, how, set, vfs.Verifier{1})
		f.ok(err)
		if how == vfs.Exclusive { // its mode comes with a SETATTR afterwards
			_, err := f.SetAttr(f.op, e.Node, mode(0o660))
			f.ok(err)
		}
		_, err = writeAs(f.Store, f.as(1234, 1), e.Node, 0, []byte("abc"), vfs.Unstable)
		f.ok(err)
		_, err = writeAs(f.Store, f.as(1235, 1), e.Node, 0, []byte("abc"), vfs.Unstable)
		f.wants(err, unix.EACCES)
	}
	sub := f.mkdir(d, "sub", 0o777)
	if have, _ := f.Access(f.as(1235, 1), sub, all); have != 0 {
		t.Errorf("others have access %#x to a directory made there", have)
	}
}

func TestThreadsGetTheirIdentityBack(t *testing.T) {
	f := newFixture(t, options{})
	d := f.mkdir(vfs.RootID, "d", 0o777)
	done := make(chan bool)
	for i := range 8 {
		go func() {
			op := f.as(uint32(1000+i), uint32(2000+i), uint32(3000+i))
			name := string(rune('a' + i))
			for range 200 {
				e, _, err := f.Create(op, d, name, vfs.Guarded, mode(0o600), vfs.Verifier{})
				if err != nil || e.Attr.UID != op.Cred.UID || e.Attr.GID != op.Cred.GID {
					t.Errorf("%v: %+v, %v", op.Cred, e.Attr, err)
				}
				f.Forget(e.Node, 1)
				if _, err := f.Remove(op, d, name); err != nil {
					t.Error(err)
				}
			}
			done <- true
		}()
	}
	for range 8 {
		<-done
	}
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	f.ok(err)
	for _, name := range tasks {
		p, err := os.ReadFile(name)
		if err != nil {
			continue // the thread is gone
		}
		if s := string(p); !contains(s, "Uid:\t0\t0\t0\t0\n") || !contains(s, "Gid:\t0\t0\t0\t0\n") {
			t.Errorf("%s: a thread has another identity:\n%s", name, s)
		}
	}
}

// Of a time in whole seconds nobody knows what came after it within that second, or the next.
func TestIsBefore(t *testing.T) {
	for _, c := range []struct {
		sec, nsec, then int64
		want            bool
	}{
		{10, 5, 10e9 + 6, true}, {10, 5, 10e9 + 5, false}, {10, 5, 9e9, false},
		{10, 0, 10e9 + 1, false}, {10, 0, 11e9 + 999, false}, {10, 0, 12e9, true},
	} {
		if got := isBefore(&unix.Timespec{Sec: c.sec, Nsec: c.nsec}, c.then); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
