package nfsclient

import (
	"syscall"

	"loopnfs/internal/vfs"
)

// Open checks that the caller may use node, keeps it alive, and makes sure that
// what is cached is not older than the file on the server (close-to-open).
func (c *Client) Open(op *vfs.Op, node vfs.NodeID, write bool) error {
	ino, err := c.tab.get(node)
	if err != nil {
		return err
	}
	if err := c.checkOpen(op, ino, write); err != nil {
		return err
	}
	if ino.isFile() {
		ino.mu.Lock()
		stale := ino.outdated()
		ino.mu.Unlock()
		if stale {
			if err := ino.lockFor(op); err != nil {
				return err
			}
			c.invalidate(ino)
			ino.unlock(op.Scope)
		}
	}
	ino.mu.Lock()
	ino.fresh, ino.made = false, ino.made || ino.fresh && ino.maker == op.Cred.UID
	ino.mu.Unlock()
	c.tab.mu.Lock()
	ino.opens++
	c.tab.open++
	c.tab.mu.Unlock()
	ino.wbErr.Open(op.File)
	return nil
}

// checkOpen asks the server for rights and attributes, in one call if it answers
// ACCESS with both. Who has just created the file knows them.
func (c *Client) checkOpen(op *vfs.Op, ino *inode, write bool) error {
	ino.mu.Lock()
	mine := ino.fresh && ino.maker == op.Cred.UID
	if mine && c.isFresh(ino) {
		ino.mu.Unlock()
		return nil
	}
	ino.fetched = 0
	ino.mu.Unlock()
	rights, err := c.fetchAccess(op, ino)
	if err != nil {
		return err
	}
	want := uint32(vfs.AccessRead | vfs.AccessExecute)
	if write {
		want = vfs.AccessModify | vfs.AccessExtend
	}
	if rights&want == 0 && !mine {
		return syscall.EACCES
	}
	ino.mu.Lock()
	ok := ino.fetched != 0
	ino.mu.Unlock()
	if ok {
		return nil
	}
	return c.fetchAttr(op, ino)
}

// Close undoes one Open. With the last one, a file that was removed meanwhile is
// removed from the server.
func (c *Client) Close(node vfs.NodeID) {
	t := c.tab
	t.mu.Lock()
	ino := t.byID[node]
	if ino == nil || ino.opens == 0 {
		t.mu.Unlock()
		return
	}
	ino.opens--
	t.open--
	var silly *sillyName
	if ino.opens == 0 {
		silly, ino.silly = ino.silly, nil
		ino.mu.Lock()
		ino.made = false
		ino.mu.Unlock()
	}
	t.mu.Unlock()
	if silly != nil {
		c.unhide(silly, c.t.stop)
	}
	c.evict(ino)
}
