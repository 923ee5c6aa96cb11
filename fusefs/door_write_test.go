package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"

	"loopnfs/alloc"
)

// Whatever its size and place, what is written is what is read, and what others have
// overwritten since does not come back.
func TestDoorWritesOfAllSizes(t *testing.T) {
	m := mountTest(t, nil)
	inChild(t, "write-at-random", m.path("file"), "4")
}

// childWriteAtRandom has a number of files written to at the same time.
func childWriteAtRandom(args []string) error {
	n, err := strconv.Atoi(args[1])
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() { errs[i] = writeAtRandom(fmt.Sprint(args[0], i), uint64(i)) })
	}
	all.Wait()
	return errors.Join(append(errs, err)...)
}

// writeAtRandom writes to a file and compares it, now and then from the disk, with what it
// should be.
func writeAtRandom(name string, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 0))
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	want := make([]byte, 3<<20)
	if err := f.Truncate(int64(len(want))); err != nil {
		return err
	}
	sizes := []int{1, 4096, 8192, 8193, 12288, 65536, 1<<20 - 1, 1 << 20, 1<<20 + 5}
	for round := range 120 {
		n := sizes[rng.IntN(len(sizes))]
		off := rng.IntN(len(want) - n)
		if rng.IntN(2) == 0 {
			off &^= alloc.PageSize - 1
		}
		b := pattern(n, byte(rng.Uint32()))
		copy(want[off:], b)
		if _, err := f.WriteAt(b, int64(off)); err != nil {
			return err
		}
		if round%10 == 9 {
			if err := f.Sync(); err != nil {
				return err
			}
		}
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, 0); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("round %d: after %d bytes at %d the file is not what was written", round, n, off)
		}
	}
	return nil
}
