package nfsclient

import (
	"encoding/binary"
	"errors"
	"fmt"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/waitfor"
	"loopnfs/internal/xdr"
)

// errDamaged is returned for a reply that makes no sense; the connection is
// given up.
var errDamaged = errors.New("nfsclient: damaged reply")

// peekBytes is what must be seen of a reply to know what it is and where its
// data begins: its header, and the results of READ without the data.
const peekBytes = sunrpc.MaxReplyHeader + 4 + 4 + nfs3.AttrLen + 12

// receive takes in replies until the connection ends.
func (t *transport) receive(c *conn) error {
	for {
		if err := c.stream.BeginRecord(t.maxRecord); err != nil {
			return err
		}
		if err := t.receiveOne(c.stream); err != nil {
			return err
		}
		c.replies++
	}
}

// receiveOne takes in one reply. The error is one that ends the connection.
func (t *transport) receiveOne(st *sunrpc.Stream) error {
	head, err := st.Peek(peekBytes)
	if err != nil && err != sunrpc.ErrRecordEnd {
		return err
	}
	if len(head) < 8 {
		return fmt.Errorf("%w: %d bytes", errDamaged, len(head))
	}
	s := t.claim(binary.BigEndian.Uint32(head))
	if s == nil {
		t.discarded.Add(1)
		return nil // to a call that was given up, or a duplicate
	}
	if err := t.take(s, st, head); err != nil {
		t.mu.Lock()
		s.taking = false
		t.mu.Unlock()
		return t.damage(s, err)
	}
	t.deliver(s)
	return nil
}

// claim finds the call that xid belongs to.
func (t *transport) claim(xid uint32) *slot {
	i := int(xid & (1<<t.slotBits - 1))
	if i >= len(t.all) {
		return nil
	}
	s := t.all[i]
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.xid != xid || s.got || s.state != waiting && s.state != sending {
		return nil
	}
	s.taking = true
	return s
}

// take receives the results of the call in s.
func (t *transport) take(s *slot, st *sunrpc.Stream, head []byte) error {
	d := xdr.NewDecoder(head)
	_, err := sunrpc.DecodeReply(&d)
	s.err, s.reply = nil, nil
	if err != nil {
		if isRPCError(err) {
			s.err = err
			return nil
		}
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	if s.proc == nfs3.ProcRead && s.complete != nil {
		return s.takeRead(st, &d)
	}
	if err := st.Discard(d.Offset()); err != nil {
		return err
	}
	return s.takeSmall(st)
}

// takeSmall receives the rest of the record into the slot's buffer.
func (s *slot) takeSmall(st *sunrpc.Stream) error {
	n := 0
	for {
		k, exact := st.RecordRemaining()
		if k > len(s.dest)-n {
			return fmt.Errorf("%w: results of %s over %d bytes", errDamaged, nfs3.ProcName(s.proc), len(s.dest))
		}
		if err := st.ReadFull(s.dest[n : n+k]); err != nil {
			return err
		}
		n += k
		if exact {
			s.reply = s.dest[:n]
			return nil
		}
		// The next fragment counts as there once a byte of it is seen.
		if _, err := st.Peek(1); err != nil && err != sunrpc.ErrRecordEnd {
			return err
		}
	}
}

// isRPCError reports whether err is the server's answer and not garbage.
func isRPCError(err error) bool {
	switch err.(type) {
	case sunrpc.AcceptStat, sunrpc.AuthStat:
		return true
	}
	return err == sunrpc.ErrRPCMismatch
}

// damage counts a damaged reply to s. The call is made again after the
// reconnect, or fails if it happened too often.
func (t *transport) damage(s *slot, err error) error {
	if !errors.Is(err, errDamaged) {
		return err // the connection broke in the middle
	}
	t.mu.Lock()
	s.damaged++
	giveUp := s.damaged > maxDamaged
	t.mu.Unlock()
	if giveUp {
		s.err = err
		t.deliver(s)
	}
	return err
}

// deliver hands the reply to whoever made the call, unless it is still being
// sent: then whoever sends does it.
func (t *transport) deliver(s *slot) {
	t.mu.Lock()
	s.got, s.taking = true, false
	early := s.state == sending
	t.mu.Unlock()
	if !early {
		t.finish(s)
	}
}

// finish ends a call whose reply is there, which failed, or which was given up.
func (t *transport) finish(s *slot) {
	if t.postpone(s) {
		return
	}
	t.mu.Lock()
	t.unrecord(s)
	s.state = done
	gone := s.gone
	t.mu.Unlock()
	switch {
	case s.complete != nil:
		if s.complete(s) {
			t.release(s)
		}
	case gone:
		s.dropDest()
		t.release(s)
	default:
		s.wake <- struct{}{}
	}
}

// postpone puts off a call that the server cannot carry out now (JUKEBOX, SYSTEM_ERR) or did
// not understand (GARBAGE_ARGS), and reports whether it did (rpc_decode_header).
func (t *transport) postpone(s *slot) bool {
	garbage := (s.err == sunrpc.GarbageArgs || s.err == sunrpc.SystemErr) && s.garbage < maxGarbage
	jukebox := s.err == nil && s.call.Prog == nfs3.Program && (isJukebox(s.reply) || s.io.res.ok && s.io.res.Status == nfs3.StatusJukebox)
	if !garbage && !jukebox {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.gone || t.down {
		return false
	}
	if garbage {
		s.garbage++
	}
	s.due = t.now().Add(jukeboxDelay(s.tries)).UnixNano()
	s.tries++
	s.state, s.got = delayed, false
	s.io.res.ok = false
	s.reply = nil
	t.kickSender()
	return true
}

// broken is called by the owner of a synchronous call that cannot decode the
// results: the call is made again on a new connection. It returns false if that
// happened too often.
func (t *transport) broken(s *slot, task *waitfor.Task) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.damaged++
	if s.damaged > maxDamaged || t.down {
		return false
	}
	s.state, s.got = waiting, false
	t.own(s, task)
	if t.conn != nil {
		t.lost(t.conn)
	}
	return true
}
