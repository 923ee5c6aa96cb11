package recorder

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Op is a kind of change.
type Op string

// The changes, and what is asked of locks.
const (
	Create Op = "create" // EXCLUSIVE, with content, which is on stable storage
	Rename Op = "rename"
	Remove Op = "remove"
	Lock   Op = "lock"
	Unlock Op = "unlock"
)

// Entry is a line of a log: a call or its answer.
type Entry struct {
	At     int64  `json:"at"` // nanoseconds of CLOCK_MONOTONIC
	Client string `json:"client"`
	N      int    `json:"n"` // of the call, within its client
	Op     Op     `json:"op"`
	Name   string `json:"name"`
	To     string `json:"to,omitempty"` // the new name
	ID     string `json:"id"`           // of the file, or the owner of a lock
	Done   bool   `json:"done,omitempty"`
	// Taken says that the answer was no: the name is there, or the lock is another's.
	Taken bool   `json:"taken,omitempty"`
	Err   string `json:"err,omitempty"`
}

// Now returns the time of entries. All hosts of one machine have the same.
func Now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail
	return ts.Nano()
}

// Log is the log of a client. Each line is one write(2), so that it is whole, and there
// when the client is killed.
type Log struct {
	client string

	mu sync.Mutex
	f  *os.File
	n  int
}

// Open makes the log of a client.
func Open(path, client string) (*Log, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	return &Log{client: client, f: f}, err
}

// Close closes the file.
func (l *Log) Close() error { return l.f.Close() }

func (l *Log) write(e Entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = l.f.Write(append(line, '\n'))
	return err
}

// call writes the line before a call.
func (l *Log) call(op Op, name, to, id string) (Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n++
	e := Entry{At: Now(), Client: l.client, N: l.n, Op: op, Name: name, To: to, ID: id}
	return e, l.write(e)
}

// answer writes the line after it. It returns an error if it cannot, or if err says that
// there is no process behind the mount any more.
func (l *Log) answer(e Entry, taken bool, err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.At, e.Done, e.Taken = Now(), true, taken
	if err != nil {
		e.Err = err.Error()
	}
	if errors.Is(err, unix.ENOTCONN) {
		return errors.Join(err, l.write(e))
	}
	return l.write(e)
}

// Call is a change with its answer, if there was one.
type Call struct {
	Entry
	Answered int64 // 0: never
}

// ok reports whether the change was promised.
func (c *Call) ok() bool { return c.Answered != 0 && !c.Taken && c.Err == "" }

// Read reads a log, in the order of the calls. A last line that was cut short is left out.
func Read(path string) ([]Call, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var calls []Call
	byNumber := map[int]int{}
	in := bufio.NewScanner(f)
	for in.Scan() {
		var e Entry
		if json.Unmarshal(in.Bytes(), &e) != nil {
			break
		}
		if !e.Done {
			byNumber[e.N] = len(calls)
			calls = append(calls, Call{Entry: e})
			continue
		}
		i, known := byNumber[e.N]
		if !known {
			return nil, fmt.Errorf("%s: call %d is answered, but was never made", path, e.N)
		}
		calls[i].Answered, calls[i].Taken, calls[i].Err = e.At, e.Taken, e.Err
	}
	return calls, in.Err()
}
