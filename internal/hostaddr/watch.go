package hostaddr

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Watcher knows the addresses of this host, and hears from the kernel when one comes or
// goes (rtnetlink(7)). It may be used from several goroutines.
type Watcher struct {
	addrs   atomic.Pointer[map[netip.Addr]struct{}]
	gen     atomic.Uint64
	sock    *os.File
	changed func()
	reading sync.WaitGroup
}

const (
	// messages are as large as that at most (NLMSG_GOODSIZE); what is in them does not
	// matter, as all addresses are asked for anew.
	messageLen = 8 << 10
	// askAgain is when the kernel is asked again that could not tell.
	askAgain = 100 * time.Millisecond
)

// Watch returns a Watcher. It calls changed, which may be nil, in a goroutine of its own
// after each change.
func Watch(changed func()) (*Watcher, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket(AF_NETLINK)", err)
	}
	sock := os.NewFile(uintptr(fd), "rtnetlink")
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR})
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("bind(AF_NETLINK)", err), sock.Close())
	}
	w := &Watcher{sock: sock, changed: changed}
	addrs, err := listed() // after the bind: what comes meanwhile is heard of
	if err != nil {
		return nil, errors.Join(err, sock.Close())
	}
	w.addrs.Store(&addrs)
	w.reading.Go(w.read)
	return w, nil
}

// Close ends the watching. What was last known stays.
func (w *Watcher) Close() error {
	err := w.sock.Close()
	w.reading.Wait()
	return err
}

// IsLocal is that of Addresses.
func (w *Watcher) IsLocal(peer, here netip.Addr) bool {
	if peer.IsLoopback() || peer == here {
		return true
	}
	_, ok := (*w.addrs.Load())[peer]
	return ok
}

// Generation counts changes: as long as it is the same, so are the answers of IsLocal.
func (w *Watcher) Generation() uint64 { return w.gen.Load() }

// read hears what the kernel says until Close. If it has said more than there was room
// for (ENOBUFS), the addresses are asked for all the same.
func (w *Watcher) read() {
	buf := make([]byte, messageLen)
	for {
		_, err := w.sock.Read(buf)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil && !errors.Is(err, unix.ENOBUFS):
			time.Sleep(askAgain)
		}
		for !w.refresh() {
			time.Sleep(askAgain)
		}
	}
}

// refresh asks for all addresses; false if the kernel could not tell.
func (w *Watcher) refresh() bool {
	now, err := listed()
	if err != nil {
		return false
	}
	if maps.Equal(now, *w.addrs.Load()) {
		return true
	}
	w.addrs.Store(&now)
	w.gen.Add(1) // who sees it sees the addresses, too
	if w.changed != nil {
		w.changed()
	}
	return true
}
