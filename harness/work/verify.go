package work

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// span is what is known of a block or file: the newest version acknowledged and
// the newest that was ever begun.
type span struct{ acked, issued uint32 }

type item struct{ job, num int }

// maxComplaints bounds how many differences Verify lists.
const maxComplaints = 10

// Verify compares what is in cfg.Dir with the log and returns how many
// acknowledged blocks or files it found to be right.
func Verify(cfg Config) (int, error) {
	if err := cfg.Validate(); err != nil {
		return 0, err
	}
	blocks, created, removed := map[item]span{}, map[item]span{}, map[item]span{}
	kinds := map[byte]map[item]span{'b': blocks, 'c': created, 'r': removed}
	err := readJournal(cfg.Log, func(r record) {
		if m := kinds[r.kind]; m != nil {
			k := item{r.job, r.num}
			m[k] = m[k].with(r)
		}
	})
	if err != nil {
		return 0, err
	}
	if cfg.Mode != Files {
		return cfg.verifyBlocks(blocks)
	}
	return cfg.verifyFiles(created, removed)
}

func (s span) with(r record) span {
	if r.acked {
		s.acked = max(s.acked, r.version)
	} else {
		s.issued = max(s.issued, r.version)
	}
	return s
}

// complaints collects differences, the first few of them in words.
type complaints struct {
	errs []error
	n    int
}

func (c *complaints) add(err error) {
	if c.n++; c.n <= maxComplaints {
		c.errs = append(c.errs, err)
	}
}

func (c *complaints) err() error {
	if c.n > maxComplaints {
		c.errs = append(c.errs, fmt.Errorf("and %d more", c.n-maxComplaints))
	}
	return errors.Join(c.errs...)
}

func (c *Config) verifyBlocks(blocks map[item]span) (good int, err error) {
	var bad complaints
	buf := make([]byte, BlockBytes)
	for job := range c.Jobs {
		f, err := os.Open(c.blocksFile(job))
		if errors.Is(err, fs.ErrNotExist) {
			f, err = nil, nil
		}
		if err != nil {
			return good, err
		}
		for b := range c.Blocks {
			s := blocks[item{job, b}]
			if s.acked == 0 {
				continue
			}
			if err := c.verifyBlock(f, buf, job, b, s); err != nil {
				bad.add(fmt.Errorf("job %d: %w", job, err))
				continue
			}
			good++
		}
		f.Close()
	}
	return good, bad.err()
}

func (c *Config) verifyBlock(f *os.File, buf []byte, job, block int, s span) error {
	if f == nil {
		return fmt.Errorf("block %d was acknowledged, but its file is not there", block)
	}
	if _, err := f.ReadAt(buf, int64(block)*BlockBytes); err != nil {
		return fmt.Errorf("block %d: %w", block, err)
	}
	return checkBlock(buf, c.Seed, job, block, s.acked, max(s.acked, s.issued))
}

func (c *Config) verifyFiles(created, removed map[item]span) (good int, err error) {
	var bad complaints
	want := make([]byte, fileBytes)
	for it, s := range created {
		got, err := os.ReadFile(filepath.Join(c.filesDir(it.num), c.fileName(it.job, it.num)))
		gone := errors.Is(err, fs.ErrNotExist)
		r := removed[it]
		fillPage(want, c.Seed, it.job, it.num, 1)
		switch {
		case err != nil && !gone:
			bad.add(err)
		case r.acked > 0 && !gone:
			bad.add(fmt.Errorf("job %d: file %d was removed, yet it is there", it.job, it.num))
		case r.issued > 0 || s.acked == 0:
		case gone:
			bad.add(fmt.Errorf("job %d: file %d was acknowledged, but is not there", it.job, it.num))
		case !bytes.Equal(got, want):
			bad.add(fmt.Errorf("job %d: file %d has other content than was acknowledged", it.job, it.num))
		default:
			good++
		}
	}
	return good, bad.err()
}
