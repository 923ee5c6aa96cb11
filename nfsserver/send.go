package nfsserver

import (
	"sync"
	"time"

	"loopnfs/internal/xdr"
)

// inlineMax is how many replies a worker sends before it leaves the rest to the
// sender of the connection and takes the next call.
const inlineMax = 16

// sendQueue holds the replies that wait to be sent on a connection, in the
// order in which they were ready.
//
// One goroutine at a time sends. It is the worker that finds nobody sending; it
// never waits for the peer: as soon as the socket takes no more, it hands over
// to the sender, a goroutine that each connection has for this. So a peer that
// does not read holds up no worker.
type sendQueue struct {
	wake chan struct{} // starts the sender

	mu         sync.Mutex
	head, tail *request
	sending    bool
}

// push appends r and reports whether the caller has to send.
func (q *sendQueue) push(r *request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.tail == nil {
		q.head = r
	} else {
		q.tail.next = r
	}
	q.tail = r
	mine := !q.sending
	q.sending = true
	return mine
}

// first returns the next reply to send. If there is none, the caller sends no
// more.
func (q *sendQueue) first() *request {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sending = q.head != nil
	return q.head
}

// pop removes the first reply.
func (q *sendQueue) pop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	r := q.head
	q.head, r.next = r.next, nil
	if q.head == nil {
		q.tail = nil
	}
}

// send sends the reply of r and ends r, now or later. It does not wait.
func (c *conn) send(r *request) {
	if c.out.push(r) && !c.sendInline() {
		c.out.wake <- struct{}{}
	}
}

// next returns the next reply to send, or the one that is partly sent, in ranges;
// nil if there is none, and the caller sends no more.
func (c *conn) next() *request {
	r := c.out.first()
	if r != nil && r.unsent == nil {
		c.iov = append(append(c.iov[:0], r.enc.Buf), r.data.Bufs...)
		if pad := xdr.PadLen(r.data.Len()); pad > 0 {
			c.iov = append(c.iov, padding[:pad])
		}
		r.unsent = c.iov
		c.client.sending(vecLen(c.iov))
	}
	return r
}

func vecLen(bufs [][]byte) (n int) {
	for _, b := range bufs {
		n += len(b)
	}
	return n
}

var padding [3]byte

// sendInline sends as long as the socket takes data. It returns false if there
// is more to send; the caller hands that over.
func (c *conn) sendInline() bool {
	for n := 0; ; n++ {
		r := c.next()
		if r == nil {
			return true
		}
		if n == inlineMax {
			return false
		}
		n, err := c.stream.TryWriteVec(r.unsent)
		if err != nil {
			c.abort(err)
		} else if r.unsent = skip(r.unsent, n); len(r.unsent) > 0 {
			return false
		}
		c.sent(r)
	}
}

// sender sends what workers leave to it, until wake is closed.
func (c *conn) sender() {
	for range c.out.wake {
		for r := c.next(); r != nil; r = c.next() {
			if err := c.sendWaiting(r); err != nil {
				c.abort(err)
			}
			c.sent(r)
		}
	}
}

// sendWaiting waits until the peer has taken the reply, for a limited time.
func (c *conn) sendWaiting(r *request) error {
	if err := c.nc.SetWriteDeadline(time.Now().Add(c.srv.cfg.SendTimeout)); err != nil {
		return err
	}
	if err := c.stream.WriteVec(r.unsent); err != nil {
		return err
	}
	return c.nc.SetWriteDeadline(time.Time{})
}

// sent ends a request whose reply is out, or never will be.
func (c *conn) sent(r *request) {
	c.out.pop()
	clear(c.iov)
	r.end()
}

// skip removes n bytes from the front of bufs.
func skip(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs[0] = bufs[0][n:]
	}
	return bufs
}
