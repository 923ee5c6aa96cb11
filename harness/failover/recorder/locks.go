package recorder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"loopnfs/harness/rawnfs"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/nlm4"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// Locker keeps a lock of its own, and tries to get those of others, over connections of
// its own: a program that talks NLM as a kernel does.
type Locker struct {
	Addr, Export string
	Host         string // names the host, to the server
	Log          *Log
	// State is odd, and larger each time that the host has started.
	State uint32
	// Others are the hosts whose locks it tries to get.
	Others []string

	c    *rawnfs.Client
	file nfs3.FileHandle
	held bool
	told bool // the server, that the host has started
}

const (
	lockFile = "locks"
	// tryEvery is how often it looks whether everything is as it should be.
	tryEvery = 100 * time.Millisecond
	// lockCall is how long a call may take: a server that has gone does not answer, and
	// the next one knows nothing of the connection.
	lockCall = 2 * time.Second
)

// ranges are the bytes that hosts lock, one each.
var ranges = map[string]uint64{"n1": 0, "n2": 1, "c1": 2}

// Run keeps and tries until ctx ends. Like the names, what it was told is for Check.
func (l *Locker) Run(ctx context.Context) error {
	defer l.disconnect()
	tick := time.NewTicker(tryEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := l.step()
		var lost *net.OpError
		if err != nil && !errors.As(err, &lost) && !errors.Is(err, errAgain) {
			return err
		}
		if err != nil {
			l.disconnect()
		}
	}
}

// errAgain is for what the next server will answer.
var errAgain = errors.New("no answer")

func (l *Locker) disconnect() {
	if l.c != nil {
		l.c.Close()
		l.c = nil
	}
}

// step connects if need be, makes sure of its own lock, and tries those of others.
func (l *Locker) step() error {
	if l.c == nil {
		if err := l.connect(); err != nil {
			return fmt.Errorf("%w: %w", errAgain, err)
		}
		if l.held { // by another server, perhaps
			if err := l.reclaim(); err != nil {
				return err
			}
		}
	}
	if !l.held {
		return l.take()
	}
	for _, other := range l.Others {
		if err := l.rob(other); err != nil {
			return err
		}
	}
	return nil
}

func (l *Locker) connect() (err error) {
	c, err := rawnfs.DialTimeout(l.Addr, lockCall)
	if err != nil {
		return err
	}
	l.c = c
	root, err := c.Mount(l.Export)
	if err != nil {
		return err
	}
	var made nfs3.CreateResult
	_, err = c.Call(nfs3.ProcCreate, &nfs3.CreateArgs{Where: nfs3.DirOpArgs{Dir: root, Name: []byte(lockFile)}, How: vfs.Unchecked}, nil, &made)
	if err == nil && (made.Status != nfs3.StatusOK || !made.Handle.Has) {
		err = fmt.Errorf("CREATE %s: %v", lockFile, made.Status)
	}
	l.file = made.Handle.Handle
	if err == nil && !l.told {
		err = l.notify()
		l.told = err == nil
	}
	return err
}

// notify tells the server that this host has started, so that what it had before is free
// (SM_NOTIFY).
func (l *Locker) notify() error {
	args := nlm4.NotifyArgs{Name: []byte(l.Host), State: l.State}
	_, err := l.c.CallTo(nlm4.StatusProgram, nlm4.StatusProcNotify, &args, nil, nothing{})
	return err
}

// nothing is the result of a procedure that has none.
type nothing struct{}

func (nothing) Decode(*xdr.Decoder) error { return nil }

// ask makes a call for the lock of a host.
func (l *Locker) ask(host string, reclaim bool) (nlm4.Status, error) {
	args := nlm4.LockArgs{Cookie: []byte("cook"), Exclusive: true, Reclaim: reclaim, State: l.State, Lock: l.lockOf(host)}
	var res nlm4.Result
	_, err := l.c.CallTo(nlm4.Program, nlm4.ProcLock, &args, nil, &res)
	if err != nil {
		err = fmt.Errorf("%w: %w", errAgain, err)
	}
	return res.Status, err
}

func (l *Locker) lockOf(host string) nlm4.Lock {
	return nlm4.Lock{
		Caller: []byte(l.Host), Handle: l.file.Bytes(), Owner: []byte(l.Log.client), SVID: 1,
		Range: nlm4.Range{Start: ranges[host], Len: 1},
	}
}

// take gets the own lock. In a grace period that has to wait.
func (l *Locker) take() error {
	e, err := l.Log.call(Lock, "lock-"+l.Host, "", l.Log.client)
	if err != nil {
		return err
	}
	status, err := l.ask(l.Host, false)
	if err != nil {
		return err // not known; it is asked for again, by the same owner
	}
	l.held = status == nlm4.Granted
	return l.Log.answer(e, !l.held, nil)
}

// reclaim tells the server that the lock was held. It must say yes.
func (l *Locker) reclaim() error {
	e, err := l.Log.call(Lock, "lock-"+l.Host, "", l.Log.client)
	if err != nil {
		return err
	}
	status, err := l.ask(l.Host, true)
	if err != nil {
		return err
	}
	if status != nlm4.Granted {
		l.held = false
		return l.Log.answer(e, true, fmt.Errorf("the lock was held, and is not given back: %v", status))
	}
	return l.Log.answer(e, false, nil)
}

// rob tries to get what another host has, and gives it back if that succeeds: it was free,
// or else Check will see that two had it.
func (l *Locker) rob(other string) error {
	name := "lock-" + other
	e, err := l.Log.call(Lock, name, "", l.Log.client)
	if err != nil {
		return err
	}
	status, err := l.ask(other, false)
	if err != nil {
		return err
	}
	if err := l.Log.answer(e, status != nlm4.Granted, nil); err != nil || status != nlm4.Granted {
		return err
	}
	if e, err = l.Log.call(Unlock, name, "", l.Log.client); err != nil {
		return err
	}
	var res nlm4.Result
	if _, err := l.c.CallTo(nlm4.Program, nlm4.ProcUnlock, &nlm4.UnlockArgs{Lock: l.lockOf(other)}, nil, &res); err != nil {
		return fmt.Errorf("%w: %w", errAgain, err)
	}
	return l.Log.answer(e, false, nil)
}
