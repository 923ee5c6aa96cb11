package sunrpc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"loopnfs/internal/xdr"
)

// rpcbind sends a reply of more than 9000 bytes in several fragments.
func TestReplyInFragments(t *testing.T) {
	var e xdr.Encoder
	ReplySuccess(&e, 7)
	results := bytes.Repeat([]byte("abcd"), 100)
	e.Buf = append(e.Buf, results...)
	frags := func(size int) (b []byte) {
		for msg := range slices.Chunk(e.Buf, size) {
			b = binary.BigEndian.AppendUint32(b, uint32(len(msg)))
			b = append(b, msg...)
		}
		b = binary.BigEndian.AppendUint32(b, lastFrag)
		return b
	}
	for _, size := range []int{len(e.Buf), 100, 7} {
		d, err := readReply(bytes.NewReader(frags(size)), 7, make([]byte, len(e.Buf)))
		if err != nil || !bytes.Equal(d.Rest(), results) {
			t.Errorf("fragments of %d bytes: %v", size, err)
		}
	}
	for what, b := range map[string][]byte{
		"one byte too long":        frags(len(e.Buf)),
		"fragments that never end": bytes.Repeat([]byte{0, 0, 0, 0}, 1<<20),
	} {
		if _, err := readReply(bytes.NewReader(b), 7, make([]byte, len(e.Buf)-1)); !errors.Is(err, ErrReply) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
