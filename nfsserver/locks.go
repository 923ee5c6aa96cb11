package nfsserver

import (
	"slices"
	"syscall"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/nlm"
	"loopnfs/internal/nlm4"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
)

// The arguments and results of locks fit where those of NFS do.
const (
	_ = uint(nfs3.MaxArgs - nlm4.MaxArgs)
	_ = uint(nfs3.MaxResult - nlm4.MaxResult)
)

func (r *request) lockPeer() nlm.Peer {
	return nlm.Peer{Addr: r.conn.peer.Addr(), Here: addrPort(r.conn.nc.LocalAddr()).Addr()}
}

// decoded reports whether the arguments could be decoded; NLM has no status for others.
func (r *request) decoded(err error) bool {
	if err != nil {
		r.accept = sunrpc.GarbageArgs
	}
	return err == nil
}

// mayLock checks that the caller may lock the file: reading it suffices for a shared
// lock, an exclusive one takes writing, and the owner may both, whose mode may have
// changed since the file was opened (NFSD_MAY_OWNER_OVERRIDE).
func (r *request) mayLock(handle []byte, exclusive bool) nlm4.Status {
	fh, ok := nfs3.MakeHandle(handle)
	if !ok {
		return nlm4.StaleHandle
	}
	node, err := r.node(nil, &fh)
	if err == nil && exclusive && r.exp.ReadOnly {
		err = syscall.EROFS
	}
	if err == nil {
		err = r.exp.FS.GetAttr(&r.op, node, &r.attr)
	}
	if err != nil || r.attr.UID == r.op.Cred.UID {
		return lockStatusOf(err)
	}
	want := uint32(vfs.AccessRead)
	if exclusive {
		want = vfs.AccessModify
	}
	got, err := r.exp.FS.Access(&r.op, node, want)
	if err == nil && got&want == 0 {
		err = syscall.EACCES
	}
	return lockStatusOf(err)
}

// mayUnlock checks no more than what the handle looks like: locks are the caller's own,
// and it can give them up when the file is gone, and when it may not use the export any more.
func mayUnlock(handle []byte) nlm4.Status {
	if len(handle) < handlePrefix || len(handle) > nfs3.MaxHandle || handle[0] != handleVersion {
		return nlm4.StaleHandle
	}
	return nlm4.Granted
}

// lockStatusOf returns the status that answers err. When memory is short the client is
// to come again, which NLM can say by the grace period only, and not to who reclaims.
func lockStatusOf(err error) nlm4.Status {
	if err == nil {
		return nlm4.Granted
	}
	switch statusOf(err) {
	case nfs3.StatusROFS:
		return nlm4.ReadOnly
	case nfs3.StatusStale, nfs3.StatusBadHandle:
		return nlm4.StaleHandle
	case nfs3.StatusJukebox:
		return nlm4.DeniedGracePeriod
	case nfs3.StatusAcces, nfs3.StatusPerm:
		return nlm4.Denied
	}
	return nlm4.Failed
}

// later is a _MSG procedure: nothing is replied, and what proc says the lock manager of
// the client is told by a call of res.
func later(res uint32, proc procedure) procedure {
	return func(r *request) {
		start := r.enc.Len()
		if proc(r); r.accept == sunrpc.Success {
			r.srv.cfg.Locks.Answer(r.lockPeer(), res, slices.Clone(r.enc.Buf[start:]))
		}
		r.enc.Buf = r.enc.Buf[:start]
	}
}

func (r *request) lockResult(cookie []byte, status nlm4.Status) {
	res := nlm4.Result{Cookie: cookie, Status: status}
	res.Encode(&r.enc)
}

// lockTest answers TEST.
func lockTest(r *request) {
	var a nlm4.TestArgs
	if !r.decoded(a.Decode(&r.dec)) {
		return
	}
	res := nlm4.TestResult{Cookie: a.Cookie, Status: r.mayLock(a.Lock.Handle, false)}
	switch res.Status {
	case nlm4.Granted:
		r.srv.cfg.Locks.Test(r.lockPeer(), &a, &res)
	case nlm4.Denied:
		res.Status = nlm4.Failed // there is no holder
	}
	res.Encode(&r.enc)
}

// lockLock answers LOCK.
func lockLock(r *request) { r.lock((*nlm.Manager).Lock) }

// lockUnmonitored answers NM_LOCK.
func lockUnmonitored(r *request) { r.lock((*nlm.Manager).LockUnmonitored) }

func (r *request) lock(do func(*nlm.Manager, nlm.Peer, *nlm4.LockArgs) nlm4.Status) {
	var a nlm4.LockArgs
	if !r.decoded(a.Decode(&r.dec)) {
		return
	}
	st := r.mayLock(a.Lock.Handle, a.Exclusive)
	if st == nlm4.DeniedGracePeriod && a.Reclaim {
		st = nlm4.Granted // the client would not come again, and had the right when it locked
	}
	if st == nlm4.Granted {
		st = do(r.srv.cfg.Locks, r.lockPeer(), &a)
	}
	r.lockResult(a.Cookie, st)
}

// lockCancel answers CANCEL.
func lockCancel(r *request) {
	var a nlm4.CancelArgs
	if !r.decoded(a.Decode(&r.dec)) {
		return
	}
	st := mayUnlock(a.Lock.Handle)
	if st == nlm4.Granted {
		st = r.srv.cfg.Locks.Cancel(r.lockPeer(), &a)
	}
	r.lockResult(a.Cookie, st)
}

// lockUnlock answers UNLOCK.
func lockUnlock(r *request) {
	var a nlm4.UnlockArgs
	if !r.decoded(a.Decode(&r.dec)) {
		return
	}
	st := mayUnlock(a.Lock.Handle)
	if st == nlm4.Granted {
		st = r.srv.cfg.Locks.Unlock(r.lockPeer(), &a)
	}
	r.lockResult(a.Cookie, st)
}

// lockShare answers SHARE.
func lockShare(r *request) {
	var a nlm4.ShareArgs
	if !r.decoded(a.Decode(&r.dec)) {
		return
	}
	st := r.mayLock(a.Handle, (a.Access|a.Deny)&nlm4.ShareWrite != 0)
	if st == nlm4.Granted {
		st = r.srv.cfg.Locks.Share(r.lockPeer(), &a)
	}
	res := nlm4.ShareResult{Cookie: a.Cookie, Status: st}
	res.Encode(&r.enc)
}

// lockUnshare answers UNSHARE.
func lockUnshare(r *request) {
	var a nlm4.ShareArgs
	if !r.decoded(a.Decode(&r.dec)) {
		return
	}
	st := mayUnlock(a.Handle)
	if st == nlm4.Granted {
		st = r.srv.cfg.Locks.Unshare(r.lockPeer(), &a)
	}
	res := nlm4.ShareResult{Cookie: a.Cookie, Status: st}
	res.Encode(&r.enc)
}

// lockFreeAll answers FREE_ALL.
func lockFreeAll(r *request) {
	var a nlm4.NotifyArgs
	if r.decoded(a.Decode(&r.dec)) {
		r.srv.cfg.Locks.FreeAll(r.lockPeer(), a.Name)
	}
}

// status answers the procedures of the status monitor.
func status(r *request) {
	r.accept = r.srv.cfg.Locks.Status(r.conn.peer.Addr(), r.call.Proc, &r.dec, &r.enc)
}
