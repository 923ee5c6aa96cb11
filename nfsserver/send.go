package nfsserver

import (
	"sync"
	"time"

	"loopnfs/internal/xdr"
)

const (
	// inlineMax is how many batches a worker sends before it leaves the rest to the
	// sender of the connection and takes the next call.
	inlineMax = 16
	// batchBytes is how much is sent by one system call, unless one reply is longer:
	// what lies in the socket's buffer for long is in no cache when it is read.
	batchBytes = 256 << 10
)

// sendQueue holds the replies that wait to be sent on a connection, in the
// order in which they were ready.
//
// One goroutine at a time sends, all that is there with one system call. It is the
// one that finds nobody sending; it never waits for the peer: as soon as the socket
// takes no more, it hands over to the sender, a goroutine that each connection has
// for this. So a peer that does not read holds up no worker.
type sendQueue struct {
	wake chan struct{} // starts the sender

	mu         sync.Mutex
	head, tail *request
	sending    bool
}

// push appends r.
func (q *sendQueue) push(r *request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.tail == nil {
		q.head = r
	} else {
		q.tail.next = r
	}
	q.tail = r
}

// claim reports whether there is something to send and nobody sends: then the caller
// has to.
func (q *sendQueue) claim() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.sending || q.head == nil {
		return false
	}
	q.sending = true
	return true
}

// gather appends the replies at the front of the queue to iov, as many as fit. If there
// is none, the caller sends no more.
func (q *sendQueue) gather(iov [][]byte) ([][]byte, int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sending = q.head != nil
	total := 0
	for r := q.head; r != nil; r = r.next {
		n := r.unsent()
		if total > 0 && (total+n > batchBytes || len(iov)+r.ranges() > cap(iov)) {
			break
		}
		if !r.begun {
			r.begun = true
			r.conn.client.sending(n)
		}
		iov = r.appendUnsent(iov)
		total += n
	}
	return iov, total
}

// pop removes the first reply.
func (q *sendQueue) pop() *request {
	q.mu.Lock()
	defer q.mu.Unlock()
	r := q.head
	q.head, r.next = r.next, nil
	if q.head == nil {
		q.tail = nil
	}
	return r
}

// first returns the first reply.
func (q *sendQueue) first() *request {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.head
}

// size is the length of the reply in bytes, with its record mark.
func (r *request) size() int {
	n := r.data.Len()
	return len(r.enc.Buf) + n + xdr.PadLen(n)
}

func (r *request) unsent() int { return r.size() - r.off }

// ranges is how many ranges the reply has at most.
func (r *request) ranges() int { return len(r.data.Bufs) + 2 }

var padding [3]byte

// appendUnsent appends what is not sent of the reply to iov.
func (r *request) appendUnsent(iov [][]byte) [][]byte {
	at := len(iov)
	iov = append(append(iov, r.enc.Buf), r.data.Bufs...)
	if pad := xdr.PadLen(r.data.Len()); pad > 0 {
		iov = append(iov, padding[:pad])
	}
	for off := r.off; off > 0; {
		k := min(off, len(iov[at]))
		iov[at] = iov[at][k:]
		off -= k
		at++
	}
	return iov
}

// flush sends what is in the queue, now or later. It does not wait.
func (c *conn) flush() {
	if c.out.claim() && !c.sendInline() {
		c.out.wake <- struct{}{}
	}
}

// sendInline sends as long as the socket takes data. It returns false if there
// is more to send; the caller hands that over.
func (c *conn) sendInline() bool {
	room := c.srv.ranges.take()
	defer c.srv.ranges.put(room)
	for n := 0; ; n++ {
		iov, total := c.out.gather(room)
		if total == 0 {
			return true
		}
		if n == inlineMax {
			return false
		}
		sent, err := c.stream.TryWriteVec(iov)
		if err != nil {
			c.abort(err)
			sent = total
		}
		c.settle(iov, sent)
		if sent < total {
			return false
		}
	}
}

// sender sends what others leave to it, until wake is closed.
func (c *conn) sender() {
	for range c.out.wake {
		c.sendAll()
	}
}

// sendAll sends until nothing is left, and waits for the peer.
func (c *conn) sendAll() {
	room := c.srv.ranges.take()
	defer c.srv.ranges.put(room)
	for {
		iov, total := c.out.gather(room)
		if total == 0 {
			return
		}
		if err := c.sendWaiting(iov); err != nil {
			c.abort(err)
		}
		c.settle(iov, total)
	}
}

// sendWaiting waits until the peer has taken iov, for a limited time.
func (c *conn) sendWaiting(iov [][]byte) error {
	if err := c.nc.SetWriteDeadline(time.Now().Add(c.srv.cfg.SendTimeout)); err != nil {
		return err
	}
	if err := c.stream.WriteVec(iov); err != nil {
		return err
	}
	return c.nc.SetWriteDeadline(time.Time{})
}

// settle ends the requests whose replies are among the first n bytes of what was
// gathered: they are out, or never will be.
func (c *conn) settle(iov [][]byte, n int) {
	clear(iov)
	for n > 0 {
		r := c.out.first()
		k := min(n, r.unsent())
		r.off += k
		n -= k
		if r.unsent() == 0 {
			c.out.pop().end()
		}
	}
}
