package nfsserver

import (
	"path"
	"strings"
	"syscall"

	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
)

// mnt answers MNT (RFC 1813 appendix I §5.2.1).
func mnt(r *request) {
	var args nfs3.MntArgs
	var res nfs3.MntResult
	err := args.Decode(&r.dec)
	if err != nil {
		err = r.undecodable(err)
	} else {
		res.Handle, err = r.mountPoint(string(args.Path))
	}
	if err == nil {
		res.NFlavors = copy(res.Flavors[:], []uint32{uint32(sunrpc.AuthSys)})
		r.srv.mounts.add(r.conn.peer.Addr(), path.Clean(string(args.Path)))
	}
	res.Status = nfs3.MountStatusOf(err)
	res.Encode(&r.enc)
}

// mountPoint returns the handle of the directory called name: an export or a
// directory in one, reached without following symbolic links.
func (r *request) mountPoint(name string) (nfs3.FileHandle, error) {
	if !strings.HasPrefix(name, "/") || strings.ContainsRune(name, 0) {
		return nfs3.FileHandle{}, syscall.ENOENT
	}
	x, rest, ok := r.srv.exports.Load().find(name)
	if !ok {
		return nfs3.FileHandle{}, syscall.ENOENT
	}
	if err := r.enter(x); err != nil {
		return nfs3.FileHandle{}, err
	}
	if x.Mount != nil {
		if err := x.Mount(r.conn.nc, name); err != nil {
			return nfs3.FileHandle{}, err
		}
		rest = ""
	}
	node, err := r.walk(rest)
	if err != nil {
		return nfs3.FileHandle{}, err
	}
	return r.fileHandle(node)
}

// walk looks up a path below the root of the export, with the rights of the
// caller. The node, a directory, is referenced until the request ends.
func (r *request) walk(rest string) (vfs.NodeID, error) {
	node := vfs.RootID
	for name := range strings.SplitSeq(rest, "/") {
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			return 0, syscall.EACCES
		}
		ent, err := r.exp.FS.Lookup(&r.op, node, name)
		if err != nil {
			return 0, err
		}
		r.forget()
		r.hold(ent.Node)
		if ent.Attr.Type != vfs.TypeDirectory {
			return 0, syscall.ENOTDIR
		}
		node = ent.Node
	}
	return node, nil
}

// umnt answers UMNT (RFC 1813 appendix I §5.2.3).
func umnt(r *request) {
	var args nfs3.UmntArgs
	if err := args.Decode(&r.dec); err != nil {
		r.accept = sunrpc.GarbageArgs // there is no status to tell it by
		return
	}
	r.srv.mounts.remove(r.conn.peer.Addr(), path.Clean(string(args.Path)))
}

// umntall answers UMNTALL (RFC 1813 appendix I §5.2.4).
func umntall(r *request) { r.srv.mounts.removeAll(r.conn.peer.Addr()) }

// dump answers DUMP (RFC 1813 appendix I §5.2.2) with what fits in dirMin bytes.
func dump(r *request) {
	if !r.startList() {
		return
	}
	for _, m := range r.srv.mounts.all() {
		e := nfs3.MountEntry{Host: []byte(m.host.String()), Dir: []byte(m.dir)}
		if !r.pages.reserve(recordMax) {
			break
		}
		e.Encode(&r.pages.enc)
	}
	r.finishList()
}

// listExports answers EXPORT (RFC 1813 appendix I §5.2.5) with what fits in
// dirMin bytes. The networks of one entry are cut where its page ends: they are
// for people to read and decide nothing.
func listExports(r *request) {
	if !r.startList() {
		return
	}
	for _, x := range r.srv.exports.Load().list {
		if !r.pages.reserve(recordMax) {
			break
		}
		e := nfs3.Export{Dir: []byte(x.Name)}
		room := recordMax - 3*4 - 4 - len(x.Name) - 4
		for _, p := range x.Allow {
			g := []byte(p.String())
			if room -= 12 + len(g); room < 0 {
				break
			}
			e.Groups = append(e.Groups, g)
		}
		e.Encode(&r.pages.enc)
	}
	r.finishList()
}

// startList takes pages for a list; without them the call fails.
func (r *request) startList() bool {
	if r.allocPages(gfp.Kernel, dirMin, &r.pages) != nil {
		r.accept = sunrpc.SystemErr
		return false
	}
	return true
}

func (r *request) finishList() {
	if !r.pages.reserve(4) {
		r.accept = sunrpc.SystemErr
		return
	}
	nfs3.EndList(&r.pages.enc)
	r.pages.moveTo(&r.data)
}
