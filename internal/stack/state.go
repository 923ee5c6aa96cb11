package stack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"loopnfs/fusefs"
)

// The epoch counts the starts with a state directory, whichever host they take place on.
// It is in a file of two slots, of which the older is written:
//
//	magic  epoch  CRC-32C  zeros
//	  8      8       4      492
const (
	epochName  = "epoch"
	epochMagic = "loopepo\x01"
	epochSlot  = 512
)

// openState makes the state directory, takes it for this server alone, and counts this
// start. A disk that cannot be written does not keep a server from starting: its clients'
// memory may depend on it.
func (s *Server) openState() error {
	if err := s.cfg.MakeState(); err != nil {
		return err
	}
	err := s.countStart()
	for _, disk := range []error{unix.EROFS, unix.ENOSPC, unix.EDQUOT, unix.EIO} {
		if errors.Is(err, disk) {
			s.cfg.Logger.Error("this start is not counted", "err", err,
				"costs", "the write verifier is drawn at random instead", "remedy", "make room on the disk with the state directory, or repair it")
			return nil
		}
	}
	return err
}

// MakeState makes the state directory, if the exports are there, and not around it.
func (c *ServerConfig) MakeState() error {
	if err := c.checkDirs(c.Exports); err != nil {
		return err
	}
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("cannot make the state directory: %w; name another one with --state", err)
	}
	return nil
}

// checkDirs reports what is wrong with directories to be served, and whether clients
// could reach by one what is not for them.
func (c *ServerConfig) checkDirs(list []ExportConfig) error {
	for _, x := range list {
		if err := checkDir(x.Dir); err != nil {
			return err
		}
		if err := fusefs.Outside(c.StateDir, x.Dir); err != nil {
			return fmt.Errorf("cannot serve %s: the state directory %w: its clients could read the key of the file handles; "+
				"put it elsewhere, next to the export for example (--state)", x.Dir, err)
		}
		for _, name := range c.Private {
			if err := fusefs.Outside(name, x.Dir); err != nil {
				return fmt.Errorf("cannot serve %s: %w: its clients could write to it; put it elsewhere, next to the export for example", x.Dir, err)
			}
		}
	}
	return nil
}

// countStart locks the file of the epoch and writes the next one, on stable storage.
func (s *Server) countStart() error {
	name := filepath.Join(s.cfg.StateDir, epochName)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_DSYNC, 0o600)
	if err != nil {
		return fmt.Errorf("cannot count this start: %w", err)
	}
	s.state = f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%s: another server uses it: give each its own directory for state (%w)", name, err)
	}
	var slots [2 * epochSlot]byte
	if _, err := f.ReadAt(slots[:], 0); err != nil && !isShort(f) {
		return fmt.Errorf("cannot count this start: %w", err)
	}
	next := max(decodeEpoch(slots[:epochSlot]), decodeEpoch(slots[epochSlot:])) + 1
	slot := encodeEpoch(next)
	if _, err := f.WriteAt(slot[:], int64(next%2)*epochSlot); err != nil {
		return fmt.Errorf("cannot count this start: %w", err)
	}
	s.epoch = uint32(next)
	return nil
}

// isShort reports whether f does not have both slots yet.
func isShort(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Size() < 2*epochSlot
}

func encodeEpoch(n uint64) (slot [epochSlot]byte) {
	copy(slot[:], epochMagic)
	binary.BigEndian.PutUint64(slot[8:], n)
	binary.BigEndian.PutUint32(slot[16:], crc32.Checksum(slot[:16], castagnoli))
	return slot
}

// decodeEpoch returns the epoch in a slot, 0 if there is none.
func decodeEpoch(slot []byte) uint64 {
	if string(slot[:8]) != epochMagic || binary.BigEndian.Uint32(slot[16:]) != crc32.Checksum(slot[:16], castagnoli) {
		return 0
	}
	return binary.BigEndian.Uint64(slot[8:])
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
