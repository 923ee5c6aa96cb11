package nfsserver

// A connection reads into a small buffer of its own. While small calls come faster than
// it takes them, it has one of a few large ones: then one system call receives dozens of
// calls. The data of large WRITEs would only be copied once more in there.
const (
	// streamBuf is the read buffer of a connection: the head of one record, a record
	// mark, and some of what follows.
	streamBuf = 8 << 10
	// burstBuf is a large one, in bytes; bursts is how many connections can have one.
	burstBuf, bursts = 128 << 10, 8
	// smallRecord is up to which size records are small.
	smallRecord = 16 << 10
)

// burstBuffers are those that nobody has.
type burstBuffers chan []byte

func newBurstBuffers() burstBuffers {
	b := make(burstBuffers, bursts)
	for range bursts {
		b <- touched[byte](burstBuf)
	}
	return b
}

// fitBuffer is called when the reader is about to wait for its peer.
func (c *conn) fitBuffer() {
	switch {
	case c.own == nil && c.stream.Full() && c.recordLen <= smallRecord:
		select {
		case big := <-c.srv.bursts:
			c.own = c.stream.SetBuffer(big)
		default:
		}
	case c.own != nil && c.stream.Buffered() <= len(c.own)/2:
		c.returnBuffer()
	}
}

// returnBuffer lets others have the large buffer. At most half of a small one is in use,
// or none of it will be.
func (c *conn) returnBuffer() {
	if c.own != nil {
		c.srv.bursts <- c.stream.SetBuffer(c.own)
		c.own = nil
	}
}
