package nfsserver

import (
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// write answers WRITE (RFC 1813 §3.3.7). How durable the data is by now is for
// the file system to say, and passed on as it is.
func write(r *request) {
	var args nfs3.WriteArgs
	node, err := r.nodeToChange(args.Decode(&r.dec), &args.Handle)
	r.wrote = vfs.WriteResult{}
	if err == nil {
		err = r.received()
	}
	if err == nil {
		trim(&r.data, int(r.exp.ioMax))
		err = checkRange(args.Offset, r.data.Len())
	}
	if err == nil {
		r.cleansMemory()
		how := r.srv.cfg.Stability(args.Stable, r.conn.isLocal())
		err = r.exp.FS.Write(&r.op, node, args.Offset, &r.data, how, &r.wrote)
		if err == nil && how > args.Stable {
			r.srv.count.stable.Add(1)
		}
	}
	r.complete(node, &r.wrote.WCC)
	res := nfs3.WriteResult{
		Status: statusOf(err), WCC: r.wrote.WCC,
		Count: r.wrote.Count, Committed: r.wrote.Stable, Verf: r.wrote.Verifier,
	}
	res.Encode(&r.enc)
}

// received reports what went wrong when the data was received.
func (r *request) received() error {
	if r.dataErr == nil || r.dataErr == vfs.ErrJukebox {
		return r.dataErr
	}
	return r.undecodable(r.dataErr)
}

// trim cuts v down to n bytes; the client sends the rest again.
func trim(v *vfs.Vec, n int) {
	for i, b := range v.Bufs {
		if n <= len(b) {
			v.Bufs[i], v.Bufs = b[:n], v.Bufs[:i+1]
			return
		}
		n -= len(b)
	}
}
