package work

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// perSync is how many blocks are written between two calls of fsync.
const perSync = 8

func (c *Config) blocksFile(job int) string {
	return filepath.Join(c.Dir, fmt.Sprintf("blocks-%d", job))
}

// blocks writes every block of a file once in each round, first in order, then
// at random, and reads one acknowledged block back after each fsync.
func (w *worker) blocks(ctx context.Context, job int) error {
	f, err := os.OpenFile(w.cfg.blocksFile(job), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(uint64(w.cfg.Seed), uint64(job)))
	order := make([]int, w.cfg.Blocks)
	for i := range order {
		order[i] = i
	}
	versions := make([]uint32, w.cfg.Blocks)
	for round := 1; round <= w.cfg.Rounds && err == nil; round++ {
		err = w.blocksRound(ctx, f, job, uint32(round), order, versions, rng)
		rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	}
	return errors.Join(err, f.Close())
}

func (w *worker) blocksRound(ctx context.Context, f *os.File, job int, version uint32, order []int, versions []uint32, rng *rand.Rand) error {
	for len(order) > 0 && ctx.Err() == nil {
		n := min(perSync, len(order))
		if err := w.writeBlocks(f, job, version, order[:n]); err != nil {
			return err
		}
		for _, b := range order[:n] {
			versions[b] = version
		}
		order = order[n:]
		if b := rng.IntN(w.cfg.Blocks); versions[b] != 0 {
			if err := w.readBack(f.Name(), job, b, versions[b]); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// writeBlocks writes some blocks and makes them stable.
func (w *worker) writeBlocks(f *os.File, job int, version uint32, blocks []int) error {
	start := time.Now()
	var records [perSync]record
	for i, b := range blocks {
		records[i] = record{kind: 'b', job: job, num: b, version: version}
	}
	rs := records[:len(blocks)]
	if err := w.journal.add(rs...); err != nil {
		return err
	}
	buf := make([]byte, BlockBytes)
	for _, b := range blocks {
		fillBlock(buf, w.cfg.Seed, job, b, version)
		if _, err := f.WriteAt(buf, int64(b)*BlockBytes); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	for i := range rs {
		rs[i].acked = true
	}
	if err := w.journal.add(rs...); err != nil {
		return err
	}
	w.ack(start, len(blocks), len(blocks)*BlockBytes)
	return nil
}

// readBack reads a block that only this job writes, past the kernel's cache.
func (w *worker) readBack(path string, job, block int, version uint32) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := alignedBlock()
	if _, err := f.ReadAt(buf, int64(block)*BlockBytes); err != nil {
		return fmt.Errorf("read back block %d: %w", block, err)
	}
	return checkBlock(buf, w.cfg.Seed, job, block, version, version)
}

// alignedBlock returns a buffer that O_DIRECT accepts.
func alignedBlock() []byte {
	b := make([]byte, BlockBytes+PageBytes)
	off := -int(uintptr(unsafe.Pointer(&b[0]))) & (PageBytes - 1)
	return b[off : off+BlockBytes]
}

// checkBlock reports a page that holds none of the versions from lo to hi.
func checkBlock(buf []byte, seed int64, job, block int, lo, hi uint32) error {
	want := make([]byte, PageBytes)
	for i := 0; i < len(buf); i += PageBytes {
		page := buf[i : i+PageBytes]
		v := pageVersion(page)
		if v < lo || v > hi {
			return fmt.Errorf("block %d, page %d: holds version %d, acknowledged was %d (last written: %d)", block, i/PageBytes, v, lo, hi)
		}
		fillPage(want, seed, job, (block*BlockBytes+i)/PageBytes, v)
		if string(want) != string(page) {
			return fmt.Errorf("block %d, page %d: content of version %d is damaged", block, i/PageBytes, v)
		}
	}
	return nil
}
