package nfsclient

import (
	"math"
	"time"
)

// pumpBatch is how many calls a caller sends for others before it leaves the
// rest to the sender.
const pumpBatch = 8

// pump sends what is queued, unless somebody else is sending: that one sends it,
// for it looks at the queue once more after letting go of sendMu.
func (t *transport) pump() {
	for t.sendMu.TryLock() {
		more := t.drain(pumpBatch, (*transport).trySend)
		t.sendMu.Unlock()
		if more {
			t.kickSender()
			return
		}
		if !t.sendable() {
			return
		}
	}
}

func (t *transport) sendable() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.nqueue > 0 && t.conn != nil
}

// drain sends up to limit queued calls by send and reports whether there are
// more, or one that was sent in part. sendMu is held.
func (t *transport) drain(limit int, send func(*transport, *slot, *conn) bool) (more bool) {
	for ; limit > 0 && t.partial.slot == nil; limit-- {
		s, c := t.pop()
		if s == nil {
			return false
		}
		if !send(t, s, c) {
			return true
		}
	}
	return t.partial.slot != nil || t.sendable()
}

// partial is a call of which only a part was sent.
type partial struct {
	slot *slot
	conn *conn
	rest [][]byte // scratch: what was not sent
}

// trySend sends the call in s without waiting, and reports whether all of it was
// sent; the rest is for the sender, which may wait. sendMu is held.
func (t *transport) trySend(s *slot, c *conn) bool {
	n, err := c.stream.TryWriteVec(s.out)
	p := &t.partial
	p.rest = p.rest[:0]
	for _, b := range s.out {
		k := min(n, len(b))
		n -= k
		if k < len(b) {
			p.rest = append(p.rest, b[k:])
		}
	}
	if err == nil && len(p.rest) > 0 {
		p.slot, p.conn = s, c
		return false
	}
	t.sent(s, c, err)
	return true
}

// sendAll sends the call in s, and waits for the server to take it. sendMu is
// held.
func (t *transport) sendAll(s *slot, c *conn) bool {
	t.sent(s, c, c.stream.WriteVec(s.out))
	return true
}

// sendRest sends what trySend left. sendMu is held.
func (t *transport) sendRest() {
	if p := &t.partial; p.slot != nil {
		s := p.slot
		err := p.conn.stream.WriteVec(p.rest)
		p.slot = nil
		t.sent(s, p.conn, err)
	}
}

// pop returns the next call to send and the connection, or nil.
func (t *transport) pop() (*slot, *conn) {
	for {
		t.mu.Lock()
		if t.nqueue == 0 || t.conn == nil {
			t.mu.Unlock()
			return nil, nil
		}
		s := t.queue[t.head]
		t.head = (t.head + 1) % len(t.queue)
		t.nqueue--
		if !s.gone {
			s.state = sending
			s.sends++
			c := t.conn
			t.mu.Unlock()
			return s, c
		}
		t.mu.Unlock()
		t.finish(s)
	}
}

// sent ends the sending of s on c. If the reply came first, it is delivered now.
func (t *transport) sent(s *slot, c *conn, err error) {
	t.mu.Lock()
	s.state = waiting
	if err != nil {
		t.lost(c)
	}
	got := s.got
	t.mu.Unlock()
	if got {
		t.finish(s)
	}
}

// lost closes c, which is broken; the reader notices and reconnects. t.mu is
// held.
func (t *transport) lost(c *conn) {
	c.Close()
	if t.conn == c {
		t.conn = nil
	}
}

// runSender sends what nobody else does: what is due again, what callers left,
// and everything in flight after a reconnect.
func (t *transport) runSender() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-t.stop:
			return
		case c := <-t.next:
			t.adopt(c)
		case <-t.kick:
		case <-timer.C:
		}
		if wait := t.requeueDue(); wait > 0 {
			timer.Reset(wait)
		}
		t.sendMu.Lock()
		t.sendRest()
		for t.drain(len(t.all), (*transport).sendAll) {
		}
		t.sendMu.Unlock()
		t.pump() // for those who saw that somebody was sending
	}
}

// adopt makes c the connection and queues everything that has no reply. Holding
// sendMu says that nobody sends on the old connection any more.
func (t *transport) adopt(c *conn) {
	t.sendMu.Lock()
	defer t.sendMu.Unlock()
	t.dropPartial()
	t.mu.Lock()
	if t.down {
		c.Close()
	}
	t.conn, t.port = c, c.port
	var gone []*slot
	for _, s := range t.all {
		switch {
		case s.state == waiting && s.gone:
			gone = append(gone, s)
			s.state = queued
		case s.state == waiting && !s.got:
			t.sendAgain(s)
		case s.state == queued:
			t.rerecord(s)
		}
	}
	t.mu.Unlock()
	for _, s := range gone {
		t.finish(s)
	}
}

// resendAfter is when a call that was sent on two connections is sent again: a server that is
// at work on the first may have dropped the second, and replies to a connection that is gone
// (RC_DROPIT of nfsd_cache_lookup). A variable for tests.
var resendAfter = 60 * time.Second

// sendAgain queues a call that has had no reply, as it is. mu is held.
func (t *transport) sendAgain(s *slot) {
	t.push(s)
	t.resent.Add(1)
	t.rerecord(s)
	s.overdue = t.now().Add(resendAfter).UnixNano()
}

// dropPartial forgets a call that was sent in part on a connection that is gone:
// it will be sent again. sendMu is held.
func (t *transport) dropPartial() {
	if p := &t.partial; p.slot != nil {
		s := p.slot
		p.slot = nil
		t.sent(s, p.conn, nil)
	}
}

// requeueDue queues the delayed calls that are due, with new xids, and those that are overdue,
// and returns how long it is until the next one is; 0 if there is none.
func (t *transport) requeueDue() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, next := t.now().UnixNano(), int64(math.MaxInt64)
	for _, s := range t.all {
		switch {
		case s.state == delayed && (s.gone || s.due <= now):
			s.newXID()
			s.call.XID, s.overdue = s.xid, 0
			s.enc.PutUint32At(xidOffset, s.xid)
			t.push(s)
			t.rerecord(s)
		case s.state == delayed:
			next = min(next, s.due)
		case s.overdue == 0 || s.got || s.state == idle || s.state == done:
		default:
			if s.overdue <= now && s.state == waiting && !s.taking {
				t.sendAgain(s) // or ended by pop, if it was given up
			} else if s.overdue <= now { // it is on its way
				s.overdue = now + int64(resendAfter)
			}
			next = min(next, s.overdue)
		}
	}
	if next == math.MaxInt64 {
		return 0
	}
	return max(time.Duration(next-now), time.Millisecond)
}

// resubmit sends the slot again from its completion, with a new xid and the rest
// of its payload; the caller has encoded the record. It does not block.
func (t *transport) resubmit(s *slot) {
	t.mu.Lock()
	s.got, s.sends, s.overdue = false, 0, 0
	t.own(s, nil)
	t.push(s)
	t.mu.Unlock()
	t.kickSender()
}
