package nfsserver

import (
	"encoding/binary"
	"syscall"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// A file handle is one word, the version of this layout and the export ID, and
// then the handle of the file system:
//
//	 8 bits   24 bits     up to 60 bytes
//	version | export ID | handle of the file system
const (
	handleVersion = 1
	handlePrefix  = 4
)

// node finds the object that fh names and checks that the client may use its
// export, which becomes the export of the request. The node is referenced until
// the request ends. decodeErr is the error of decoding the arguments; there is
// no node then.
func (r *request) node(decodeErr error, fh *nfs3.FileHandle) (vfs.NodeID, error) {
	h, err := r.ownHandle(decodeErr, fh)
	if err != nil {
		return 0, err
	}
	node, err := r.exp.FS.ByHandle(&r.op, h)
	if err != nil {
		return 0, err
	}
	r.hold(node)
	return node, nil
}

// ownHandle enters the export of a handle, and returns what that knows the file by.
func (r *request) ownHandle(decodeErr error, fh *nfs3.FileHandle) ([]byte, error) {
	if decodeErr != nil {
		return nil, r.undecodable(decodeErr)
	}
	h := r.handle[:copy(r.handle[:], fh.Bytes())]
	if len(h) < handlePrefix {
		return nil, vfs.ErrBadHandle
	}
	word := binary.BigEndian.Uint32(h)
	if r.exp != nil && r.exp.word() == word { // as the request began, whatever SetExports does
		return h[handlePrefix:], nil
	}
	x, err := r.srv.exports.Load().ofHandle(word)
	if err != nil {
		return nil, err
	}
	return h[handlePrefix:], r.enter(x)
}

// nodeToChange is node for a procedure that changes something.
func (r *request) nodeToChange(decodeErr error, fh *nfs3.FileHandle) (vfs.NodeID, error) {
	node, err := r.node(decodeErr, fh)
	if err == nil && r.exp.ReadOnly {
		err = syscall.EROFS
	}
	return node, err
}

// enter makes x the export of the request, and the caller's identity in x that
// of its op.
func (r *request) enter(x *export) error {
	if r.exp != nil {
		return syscall.EXDEV
	}
	if !x.allows(r.conn.peer) {
		return syscall.EACCES
	}
	if r.op.NoWait && !x.heedsNoWait {
		r.op.MustWait()
		return vfs.ErrJukebox
	}
	r.exp = x
	r.op.Cred = squash(&x.Export, &r.call.Cred)
	return nil
}

// fileHandle returns the handle of a node of the request's export.
func (r *request) fileHandle(node vfs.NodeID) (nfs3.FileHandle, error) {
	h, err := r.exp.FS.Handle(node, r.handlePrefix())
	if err != nil {
		return nfs3.FileHandle{}, err
	}
	fh, ok := nfs3.MakeHandle(h)
	if !ok {
		return fh, syscall.EREMOTEIO // NFS3ERR_SERVERFAULT
	}
	return fh, nil
}

// handlePrefix begins a handle of the request's export.
func (r *request) handlePrefix() []byte {
	return binary.BigEndian.AppendUint32(r.handle[:0], r.exp.word())
}

// hold has a reference to node given back when the request ends.
func (r *request) hold(node vfs.NodeID) {
	r.refs[r.nrefs] = node
	r.nrefs++
}

// forget gives back the references of the request.
func (r *request) forget() {
	for _, node := range r.refs[:r.nrefs] {
		r.exp.FS.Forget(node, 1)
	}
	r.nrefs = 0
}
