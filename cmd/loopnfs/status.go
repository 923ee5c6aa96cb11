package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// A process that serves a mount can be asked, on a socket, how much is left to
// write. The socket is in the abstract name space: it needs no file, and is gone
// with the process.

// statusReport is one line of the answer.
type statusReport struct {
	Unwritten int64  // bytes
	Ended     bool   `json:",omitempty"` // the last report
	Lost      string `json:",omitempty"` // what is lost and why
}

// giveUpCommand is what umount --force says.
const giveUpCommand = "give up\n"

const (
	// statusEvery is how often the answer is brought up to date.
	statusEvery = 200 * time.Millisecond
	// answerTime is how long the first answer may take; a process that hangs
	// gives none.
	answerTime = 2 * time.Second
)

// statusName is the name of the socket for a mount point.
func statusName(mountpoint string) string {
	h := sha256.Sum256([]byte(mountpoint))
	return fmt.Sprintf("@loopnfs-mount-%x", h[:16])
}

// status is the side of the process that serves the mount.
type status struct {
	l      *net.UnixListener
	giveUp chan struct{} // closed when asked to

	once   sync.Once
	served chan struct{} // closed when serve returns
	ended  chan struct{}
	last   statusReport // valid after ended
	conns  sync.WaitGroup
}

func listenStatus(mountpoint string) (*status, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: statusName(mountpoint), Net: "unix"})
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, nameTaken(mountpoint)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make a socket for %s: %w", mountpoint, err)
	}
	return &status{l: l, giveUp: make(chan struct{}), served: make(chan struct{}), ended: make(chan struct{})}, nil
}

// nameTaken returns the error for a mount point whose socket another process has. Every user
// may take the name.
func nameTaken(mountpoint string) error {
	c, cred, err := dialPeer(mountpoint)
	if err == nil {
		c.Close()
	}
	if err == nil && !trusted(cred) {
		return fmt.Errorf("mount point %s: process %d of user %d has taken the name of its socket: end it", mountpoint, cred.Pid, cred.Uid)
	}
	return fmt.Errorf("mount point %s is in use: it is mounted, or an earlier mount is still writing to its server; see loopnfs umount %s", mountpoint, mountpoint)
}

// serve answers until finish. unwritten returns how many bytes are left.
func (s *status) serve(unwritten func() int64) {
	defer close(s.served)
	for {
		c, err := s.l.AcceptUnix()
		if err != nil {
			return
		}
		if !trustedPeer(c) {
			c.Close()
			continue
		}
		s.conns.Go(func() { s.answer(c, unwritten) })
	}
}

// trusted reports whether a peer is root or who we are.
func trusted(peer *unix.Ucred) bool { return peer.Uid == 0 || int(peer.Uid) == os.Geteuid() }

// trustedPeer reports whether that of c is.
func trustedPeer(c *net.UnixConn) bool {
	peer, err := peerCred(c)
	return err == nil && trusted(peer)
}

func peerCred(c *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	err2 := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred, errors.Join(err, err2)
}

// answer reports until the end, and listens for the command to give up.
func (s *status) answer(c *net.UnixConn, unwritten func() int64) {
	defer c.Close()
	go func() {
		if line, err := bufio.NewReaderSize(c, 64).ReadString('\n'); err == nil && line == giveUpCommand {
			s.once.Do(func() { close(s.giveUp) })
		}
	}()
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	enc := json.NewEncoder(c)
	for {
		c.SetWriteDeadline(time.Now().Add(time.Second))
		if enc.Encode(statusReport{Unwritten: unwritten()}) != nil {
			return
		}
		select {
		case <-tick.C:
		case <-s.ended:
			_ = enc.Encode(s.last) // who is gone needs no answer
			return
		}
	}
}

// finish gives everybody who asked the last answer. serve was called. The name is free by
// then: who hears that the mount has ended may mount again.
func (s *status) finish(lost error) {
	s.last.Ended = true
	if lost != nil {
		s.last.Lost = lost.Error()
	}
	s.close()
	<-s.served
	close(s.ended)
	s.conns.Wait()
}

func (s *status) close() { s.l.Close() }

// statusClient is the side of umount.
type statusClient struct {
	c    *net.UnixConn
	r    *bufio.Reader
	line []byte // what came of a line before the deadline
	pid  int
	uid  int
	left int64 // bytes that were not written when it said so last, or -1
	// first is the first report, until next returns it.
	first *statusReport
}

// dialStatus connects to the process that serves mountpoint, which is root's or that of a
// user with believe; nil if there is none.
func dialStatus(mountpoint string, believe func(uid int) bool) (*statusClient, error) {
	c, cred, err := dialPeer(mountpoint)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot ask the process that serves %s: %w", mountpoint, err)
	}
	if !trusted(cred) && !believe(int(cred.Uid)) {
		c.Close()
		return nil, nil
	}
	s := &statusClient{c: c, r: bufio.NewReader(c), pid: int(cred.Pid), uid: int(cred.Uid), left: -1}
	// Once it has answered, it does not end without the last report.
	rep, err := s.next(time.Now().Add(answerTime))
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET): // it ended as we came
		c.Close()
		return nil, nil
	case err == nil:
		s.left, s.first = rep.Unwritten, &rep
	}
	return s, nil
}

// dialPeer connects to who has the socket of mountpoint.
func dialPeer(mountpoint string) (c *net.UnixConn, peer *unix.Ucred, err error) {
	c, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: statusName(mountpoint), Net: "unix"})
	if err != nil {
		return nil, nil, err
	}
	if peer, err = peerCred(c); err != nil {
		c.Close()
		return nil, nil, err
	}
	return c, peer, nil
}

// kill ends the process, if it is still that of the same user: its number may be another's
// by now.
func (s *statusClient) kill() {
	p, err := os.FindProcess(s.pid) // which stays this one
	if err != nil {
		return
	}
	defer p.Release()
	if uid, err := userOf(s.pid); err == nil && uid == s.uid {
		_ = p.Kill() // it may have ended by now
	}
}

// userOf returns the effective user of a process.
func userOf(pid int) (int, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return 0, err
	}
	st, err := p.NewStatus()
	return int(st.UIDs[1]), err
}

func (s *statusClient) close() {
	if s != nil {
		s.c.Close()
	}
}

// next returns the next report, by a deadline.
func (s *statusClient) next(deadline time.Time) (rep statusReport, err error) {
	if s.first != nil {
		rep, s.first = *s.first, nil
		return rep, nil
	}
	s.c.SetReadDeadline(deadline)
	part, err := s.r.ReadBytes('\n')
	s.line = append(s.line, part...)
	if err != nil {
		return rep, err
	}
	err = json.Unmarshal(s.line, &rep)
	s.line = s.line[:0]
	return rep, err
}

// tellGiveUp asks the process to give up what it cannot write.
func (s *statusClient) tellGiveUp() error {
	_, err := s.c.Write([]byte(giveUpCommand))
	return err
}
