package nfsclient

import (
	"time"

	"loopnfs/alloc"
	"loopnfs/alloc/gfp"
	"loopnfs/internal/pagecache"
	"loopnfs/internal/waitfor"
)

// ReleasePolicy is what ReleaseFolio does about a folio that is not clean: one
// of Release2014, Release2023 and Release2026. Only the last never waits; it is
// the mechanism "nonblocking-release".
type ReleasePolicy interface {
	// release is asked for f of ino, referenced by the caller; mask has FS.
	release(c *Client, ino *inode, f *alloc.Folio, sc gfp.Scope, mask gfp.Flags) pagecache.Verdict
}

// releaseSide is what reclaim calls (pagecache.Ops).
type releaseSide struct{ *Client }

// ReleaseFolio asks the policy.
func (r releaseSide) ReleaseFolio(m *pagecache.Mapping, f *alloc.Folio, sc gfp.Scope, mask gfp.Flags) pagecache.Verdict {
	ino := m.Host.(*inode)
	return r.cfg.Release.release(r.Client, ino, f, sc, mask)
}

// Release2026 starts what the folio waits for, and never waits itself: it wakes
// workers and answers. It sends nothing and allocates nothing.
type Release2026 struct{}

func (Release2026) release(c *Client, ino *inode, f *alloc.Folio, _ gfp.Scope, _ gfp.Flags) pagecache.Verdict {
	switch ino.m.State(f) {
	case pagecache.Clean:
		return pagecache.Freed
	case pagecache.Dirty:
		c.bdi.WakeFlusher()
		return pagecache.Started
	case pagecache.Unstable:
		c.requestCommit(ino)
		return pagecache.Started
	}
	return pagecache.Busy
}

// Release2023 blocks until the folio is clean, unless the allocation may not do
// everything or comes from kswapd (nfs_release_folio and nfs_wb_folio of Linux
// 6.3 to 6.12). If what it waits for needs the memory, nobody moves any more.
type Release2023 struct{}

func (Release2023) release(c *Client, ino *inode, f *alloc.Folio, sc gfp.Scope, mask gfp.Flags) pagecache.Verdict {
	if mask&gfp.Kernel != gfp.Kernel || sc.IsKswapd() {
		return pagecache.Busy
	}
	for {
		if c.cache.Owner(f) != ino.m {
			return pagecache.Busy
		}
		var err error
		switch ino.m.State(f) {
		case pagecache.Clean:
			return pagecache.Freed
		case pagecache.Writeback:
			c.waitWritten(sc, ino, f)
		case pagecache.Dirty:
			err = c.writeFolio(sc, ino, f)
		case pagecache.Unstable:
			err = c.commitWait(sc, whoReclaims, ino, nil)
		}
		if err != nil {
			return pagecache.Busy
		}
	}
}

// Release2014 asks for a COMMIT and waits for it, but at most a second, and not
// at all if the server was slower than that the last time (Linux 3.18 to 6.2).
type Release2014 struct{}

func (Release2014) release(c *Client, ino *inode, f *alloc.Folio, sc gfp.Scope, mask gfp.Flags) pagecache.Verdict {
	v := Release2026{}.release(c, ino, f, sc, mask)
	if v == pagecache.Freed || mask&gfp.DirectReclaim == 0 || sc.IsKswapd() || c.congested.Load() {
		return v
	}
	if c.waitClean(sc, ino, f, releaseWait) {
		return pagecache.Freed
	}
	c.congested.Store(true)
	return pagecache.Busy
}

const (
	whoReclaims = "direct reclaim"
	releaseWait = time.Second
)

// waitClean waits until f is clean, at most d, and reports whether it is.
func (c *Client) waitClean(sc gfp.Scope, ino *inode, f *alloc.Folio, d time.Duration) bool {
	w := ino.commits.Prepare()
	defer ino.commits.Finish(w)
	end := c.cfg.Now().Add(d)
	for ino.m.State(f) != pagecache.Clean {
		left := end.Sub(c.cfg.Now())
		if left <= 0 || c.cache.Owner(f) != ino.m {
			return false
		}
		ino.mu.Lock()
		reply := ino.commitReply
		ino.mu.Unlock()
		task := sc.Task()
		task.Wait(whoReclaims, "COMMIT of inode", ino.ino, reply)
		w.WaitFor(left)
		task.Done()
	}
	return true
}

// waitWritten waits until f is not under write-back.
func (c *Client) waitWritten(sc gfp.Scope, ino *inode, f *alloc.Folio) {
	task := sc.Task()
	task.Wait(whoReclaims, "WRITE of inode", ino.ino, c.t.carrier(ino, f.Index))
	ino.m.WaitFolio(f, nil)
	task.Done()
}

// writeFolio sends f, if it is dirty, in a WRITE of its own.
func (c *Client) writeFolio(sc gfp.Scope, ino *inode, f *alloc.Folio) error {
	s, err := c.t.acquire(sc, nil)
	if err != nil {
		return err
	}
	c.beginWrite(s, sc, ino)
	if !ino.m.BeginFolio(f) {
		c.dropWrite(s)
		return nil
	}
	s.io.folios = append(s.io.folios, f)
	c.sendWrite(s)
	return nil
}

// carrier returns what the WRITE that carries a page is waited for by.
func (t *transport) carrier(ino *inode, index uint64) waitfor.Resource {
	for _, s := range t.all {
		if s.carries.Load() == ino && index-s.first.Load() < s.pages.Load() {
			return t.replyOf(s)
		}
	}
	return ino.m.WritebackResource()
}
