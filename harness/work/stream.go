package work

import (
	"context"
	"errors"
	"os"
	"time"
)

// stream writes a file from its first block to its last in each round, and makes
// it stable at the end of the round only: in between, as much of it is dirty as
// the kernel allows.
func (w *worker) stream(ctx context.Context, job int) error {
	for round := 1; round <= w.cfg.Rounds && ctx.Err() == nil; round++ {
		if err := w.streamRound(ctx, job, uint32(round)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (w *worker) streamRound(ctx context.Context, job int, version uint32) error {
	records := make([]record, w.cfg.Blocks)
	for b := range records {
		records[b] = record{kind: 'b', job: job, num: b, version: version}
	}
	if err := w.journal.add(records...); err != nil {
		return err
	}
	if err := w.streamFile(ctx, job, version); err != nil {
		return err
	}
	for b := range records {
		records[b].acked = true
	}
	w.acked.Add(int64(len(records)))
	w.bytes.Add(int64(len(records)) * BlockBytes)
	return w.journal.add(records...)
}

func (w *worker) streamFile(ctx context.Context, job int, version uint32) (err error) {
	f, err := os.OpenFile(w.cfg.blocksFile(job), os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, BlockBytes)
	for b := 0; b < w.cfg.Blocks && ctx.Err() == nil; b++ {
		fillBlock(buf, w.cfg.Seed, job, b, version)
		start := time.Now()
		if _, err := f.WriteAt(buf, int64(b)*BlockBytes); err != nil {
			return err
		}
		w.written.Add(BlockBytes)
		w.late(start)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return f.Sync()
}
