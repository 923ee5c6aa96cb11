package nfsclient

import (
	"fmt"
	"syscall"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
	"loopnfs/internal/xdr"
)

// beginRead starts a READ of ino in s; addRead adds folios, sendRead sends it.
func (c *Client) beginRead(s *slot, sc gfp.Scope, who *identity, ino *inode) {
	c.beginIO(s, nfs3.ProcRead, sc, who, ino, c.onRead)
	ino.mu.Lock()
	s.io.gen = ino.gen
	ino.mu.Unlock()
	s.own.Begin("READ")
	s.own.Hold(folioResource(ino))
}

// addRead adds f, which is Locked and follows the last one, and takes a
// reference.
func (s *slot) addRead(f *alloc.Folio) {
	if len(s.io.folios) == 0 {
		s.io.off = f.Index << alloc.PageShift
	}
	f.Get()
	s.io.folios = append(s.io.folios, f)
	s.io.count += alloc.PageSize
}

// sendRead sends the READ in s for what was added.
func (c *Client) sendRead(s *slot) {
	s.encodeRead()
	c.t.submit(s, nil, s.io.ino.ino)
}

// encodeRead encodes the arguments for what has not been read.
func (s *slot) encodeRead() {
	io := &s.io
	args := nfs3.ReadArgs{Handle: io.ino.fh, Offset: io.off + uint64(io.moved), Count: uint32(io.count - io.moved)}
	args.Encode(&s.enc)
	s.end(nil, 0)
}

// takeRead receives the results of READ, d being behind the reply header, and
// its data straight into the folios.
func (s *slot) takeRead(st *sunrpc.Stream, d *xdr.Decoder) error {
	r, io := &s.io.res, &s.io
	if err := r.Decode(d); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	if err := st.Discard(d.Offset()); err != nil {
		return err
	}
	if r.Status == nfs3.StatusOK {
		if int64(r.Count) > int64(io.count-io.moved) {
			return fmt.Errorf("%w: READ returned %d bytes of %d", errDamaged, r.Count, io.count-io.moved)
		}
		io.in = ranges(s.t.arena, io.in[:0], io.folios, io.moved, int(r.Count))
		if err := st.ReadVec(io.in); err == sunrpc.ErrRecordEnd {
			return fmt.Errorf("%w: READ without its data", errDamaged)
		} else if err != nil {
			return err
		}
	}
	r.ok = true
	return nil
}

// ranges appends to dst the memory of count bytes from offset off of folios.
func ranges(a *alloc.Arena, dst [][]byte, folios []*alloc.Folio, off, count int) [][]byte {
	for count > 0 {
		b := a.Bytes(folios[off>>alloc.PageShift])[off&(alloc.PageSize-1):]
		b = b[:min(len(b), count)]
		dst = append(dst, b)
		off += len(b)
		count -= len(b)
	}
	return dst
}

// readDone completes a READ. It runs in the reader and never blocks.
func (c *Client) readDone(s *slot) bool {
	io, r := &s.io, &s.io.res
	err := errno(s.err)
	if err == nil && r.ok {
		err = nfs3.Errno(r.Status)
		if r.Attr.Has {
			c.update(io.ino, &r.Attr.Attr, io.start)
		}
	} else if err == nil {
		err = syscall.EIO
	}
	if err == nil {
		io.moved += int(r.Count)
		switch {
		case io.moved == io.count, r.EOF:
		case r.Count == 0:
			err = syscall.EIO // not the end, and yet nothing
		default:
			s.again()
			r.ok = false
			s.encodeRead()
			c.t.resubmit(s)
			return false
		}
	}
	c.endRead(s, err)
	return true
}

// endRead unlocks the folios of a READ: valid unless it failed, or unless the
// cache was dropped after it had been sent.
func (c *Client) endRead(s *slot, err error) {
	io, ino := &s.io, s.io.ino
	if err == nil {
		for _, b := range ranges(c.arena, io.in[:0], io.folios, io.moved, io.count-io.moved) {
			clear(b)
		}
	}
	ino.mu.Lock()
	ino.rerr = err
	ok := err == nil && io.gen == ino.gen
	ino.m.Unlock(ok, io.folios...) // before invalidate, or not ok
	ino.mu.Unlock()
	c.arena.PutAll(io.folios)
	if io.ahead {
		c.aheadPages.Add(int64(-len(io.folios)))
	}
	c.arena.Reclaimable()
	c.endIO(ino)
}

// refill reads the one folio f again, which is in the mapping and was not
// filled. The caller waits for it as for any other.
func (c *Client) refill(op *vfs.Op, ino *inode, f *alloc.Folio) error {
	s, err := c.t.acquire(op.Scope, op.Cancel)
	if err != nil {
		return err
	}
	if !ino.m.Relock(f) {
		c.t.release(s)
		return nil // somebody else does
	}
	who := identify(&op.Cred)
	c.beginRead(s, op.Scope, &who, ino)
	s.addRead(f)
	c.sendRead(s)
	return nil
}

// waitFolio waits until f is valid. gone reports that it left the mapping, and
// that the caller must look the page up again.
func (c *Client) waitFolio(op *vfs.Op, ino *inode, f *alloc.Folio) (gone bool, err error) {
	for try := 0; ; try++ {
		if isValid(f) {
			return false, nil
		}
		task := op.Scope.Task()
		task.Wait("", "a page being read of inode", ino.ino, folioResource(ino))
		ok := ino.m.WaitUnlocked(f, op.Cancel)
		task.Done()
		switch {
		case ok:
			return false, nil
		case cancelled(op):
			return false, syscall.EINTR
		case c.cache.Owner(f) != ino.m:
			return true, nil
		case f.Has(alloc.Locked):
			continue
		case try > 0 && ino.readError() != nil:
			return false, ino.readError()
		}
		if err := c.refill(op, ino, f); err != nil {
			return false, err
		}
	}
}

// readError returns why the last READ failed, or nil.
func (ino *inode) readError() error {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	return ino.rerr
}

// folioResource stands for the pages of ino that are being read.
func folioResource(ino *inode) waitfor.Resource {
	return waitfor.Resource{Kind: waitfor.Folio, ID: ino.key}
}

func cancelled(op *vfs.Op) bool {
	select {
	case <-op.Cancel:
		return true
	default:
		return false
	}
}
