package nfsclient

import (
	"syscall"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// accessEntry remembers what the server allowed somebody (nfs_access_entry).
type accessEntry struct {
	who    identity
	rights uint32
	at     int64 // ns; 0: empty
}

const allRights = vfs.AccessRead | vfs.AccessLookup | vfs.AccessModify |
	vfs.AccessExtend | vfs.AccessDelete | vfs.AccessExecute

// dropAccess forgets all rights. ino.mu is held.
func (ino *inode) dropAccess() {
	for i := range ino.access {
		ino.access[i].at = 0
	}
}

// Access returns which of the wanted rights the caller has.
func (c *Client) Access(op *vfs.Op, node vfs.NodeID, want uint32) (uint32, error) {
	ino, err := c.tab.get(node)
	if err != nil {
		return 0, err
	}
	rights, err := c.fetchAccess(op, ino)
	return rights & want, err
}

// fetchAccess asks the server for all rights of the caller; its answer brings
// the attributes, too.
func (c *Client) fetchAccess(op *vfs.Op, ino *inode) (uint32, error) {
	s, err := c.begin(op, nfs3.ProcAccess)
	if err != nil {
		return 0, err
	}
	start := c.seq.Add(1)
	args := nfs3.AccessArgs{Handle: ino.fh, Access: allRights}
	args.Encode(&s.enc)
	var res nfs3.AccessResult
	if _, err := c.call(op, s, ino.ino, func(d *xdr.Decoder) error { return res.Decode(d) }); err != nil {
		return 0, err
	}
	if err := nfs3.Errno(res.Status); err != nil {
		return 0, err
	}
	if res.Attr.Has {
		if res.Attr.Attr.Type != ino.typ {
			return 0, vfs.ErrStale
		}
		c.update(ino, &res.Attr.Attr, start)
	}
	ino.mu.Lock()
	ino.access[ino.nextAcc] = accessEntry{who: identify(&op.Cred), rights: res.Access, at: c.ticks()}
	ino.nextAcc = (ino.nextAcc + 1) % len(ino.access)
	ino.mu.Unlock()
	return res.Access, nil
}

// cachedAccess returns the rights of the caller if they are known. ino.mu is
// held.
func (c *Client) cachedAccess(op *vfs.Op, ino *inode) (rights uint32, ok bool) {
	who := identify(&op.Cred)
	for i := range ino.access {
		a := &ino.access[i]
		if a.at != 0 && a.who == who && c.ticks()-a.at < int64(c.cfg.AttrTimeout) {
			return a.rights, true
		}
	}
	return 0, false
}

// mayUse checks that the caller has one of the rights. The owner may always read and
// write: it was asked when the file was opened, and a server allows it too. So may who has made
// the file, which is another one's if the server squashes users.
func (c *Client) mayUse(op *vfs.Op, ino *inode, oneOf uint32) error {
	ino.mu.Lock()
	rights, ok := c.cachedAccess(op, ino)
	owns := op.Cred.UID == ino.attr.UID || ino.made && op.Cred.UID == ino.maker
	ino.mu.Unlock()
	if owns {
		return nil
	}
	if !ok {
		var err error
		if rights, err = c.fetchAccess(op, ino); err != nil {
			return err
		}
	}
	if rights&oneOf == 0 {
		return syscall.EACCES
	}
	return nil
}
