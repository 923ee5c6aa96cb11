package work

import (
	"bufio"
	"fmt"
	"os"
	"sync"
)

// record is one line of the log: what is about to be done, or was acknowledged.
type record struct {
	acked   bool
	kind    byte // 'b' block, 'c' create, 'r' remove
	job     int
	num     int // block or file number
	version uint32
}

// journal is the log of a worker. Each record is one write(2) before the
// change, and one after it was acknowledged.
type journal struct {
	mu  sync.Mutex
	f   *os.File
	buf []byte
}

func openJournal(path string) (*journal, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &journal{f: f}, nil
}

func (j *journal) add(rs ...record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.buf = j.buf[:0]
	for _, r := range rs {
		what := byte('i')
		if r.acked {
			what = 'a'
		}
		j.buf = fmt.Appendf(j.buf, "%c %c %d %d %d\n", what, r.kind, r.job, r.num, r.version)
	}
	_, err := j.f.Write(j.buf)
	return err
}

func (j *journal) close() error { return j.f.Close() }

// readJournal calls visit for each record. A last line cut short by a crash is
// left out.
func readJournal(path string, visit func(record)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	for in.Scan() {
		var what, kind byte
		var r record
		if _, err := fmt.Sscanf(in.Text(), "%c %c %d %d %d", &what, &kind, &r.job, &r.num, &r.version); err != nil {
			break
		}
		r.acked, r.kind = what == 'a', kind
		visit(r)
	}
	return in.Err()
}
