package billyfs

import (
	"crypto/aes"
	"encoding/binary"

	"loopnfs/internal/vfs"
)

// A handle is one block of AES with a key of this process: a tag that only this
// process knows, and the node. Whoever makes one up hits the tag once in 2^64
// tries.
const handleLen = aes.BlockSize

// Handle implements vfs.FS. The handle is good as long as the process lives.
func (fs *fileSystem) Handle(id vfs.NodeID, buf []byte) ([]byte, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n := fs.byID[id]
	if n == nil {
		return buf, vfs.ErrStale
	}
	n.handed = true
	buf = binary.BigEndian.AppendUint64(buf, fs.handleTag)
	buf = binary.BigEndian.AppendUint64(buf, uint64(id))
	b := buf[len(buf)-handleLen:]
	fs.handleKey.Encrypt(b, b)
	return buf, nil
}

// ByHandle implements vfs.FS.
func (fs *fileSystem) ByHandle(_ *vfs.Op, h []byte) (vfs.NodeID, error) {
	if len(h) != handleLen {
		return 0, vfs.ErrBadHandle
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.handleKey.Decrypt(fs.plain[:], h)
	if binary.BigEndian.Uint64(fs.plain[:]) != fs.handleTag {
		return 0, vfs.ErrBadHandle
	}
	n, err := fs.node(vfs.NodeID(binary.BigEndian.Uint64(fs.plain[8:])))
	if err != nil {
		return 0, err
	}
	n.refs++
	return n.id, nil
}
