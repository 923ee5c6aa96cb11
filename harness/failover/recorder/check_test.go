package recorder

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// story is a log in the making: calls of one client after another.
type story struct {
	calls []Call
	now   int64
}

func (s *story) add(client string, op Op, name, to, id string, answered bool) *Call {
	s.now += 10
	s.calls = append(s.calls, Call{Entry: Entry{At: s.now, Client: client, N: len(s.calls) + 1, Op: op, Name: name, To: to, ID: id}})
	c := &s.calls[len(s.calls)-1]
	if answered {
		s.now += 10
		c.Answered = s.now
	}
	return c
}

// What was promised and is not so is found, and what may be is not complained of.
func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name  string
		tell  func(s *story)
		there map[string]string
		want  string // "" for nothing wrong
	}{
		{"as promised", func(s *story) {
			s.add("a", Create, "x", "", "1", true)
			s.add("a", Rename, "x", "y", "1", true)
			s.add("a", Create, "x", "", "2", true)
			s.add("a", Remove, "x", "", "2", true)
		}, map[string]string{"y": "1"}, ""},
		{"creation lost", func(s *story) { s.add("a", Create, "x", "", "1", true) }, nil, "lost: create x was answered, but the file 1 is not there"},
		{"creation not answered", func(s *story) { s.add("a", Create, "x", "", "1", false) }, map[string]string{"x": ""}, ""},
		{"removal undone", func(s *story) {
			s.add("a", Create, "x", "", "1", true)
			s.add("a", Remove, "x", "", "1", true)
		}, map[string]string{"x": "1"}, "lost: remove x was answered, but the file 1 is there as x"},
		{"removal not answered", func(s *story) {
			s.add("a", Create, "x", "", "1", true)
			s.add("a", Remove, "x", "", "1", false)
		}, nil, ""},
		{"rename undone", func(s *story) {
			s.add("a", Create, "x", "", "1", true)
			s.add("a", Rename, "x", "y", "1", true)
		}, map[string]string{"x": "1"}, "lost: rename x y was answered, but the file 1 is there as x"},
		{"in two places", func(s *story) {
			s.add("a", Create, "x", "", "1", true)
			s.add("a", Rename, "x", "y", "1", false)
		}, map[string]string{"x": "1", "y": "1"}, "applied twice: the file 1 is there as x and as y"},
		{"removed by a call that came again", func(s *story) {
			s.add("a", Create, "x", "", "1", true)
			s.add("a", Remove, "x", "", "1", true)
			s.add("b", Create, "x", "", "2", true)
		}, nil, "lost: create x was answered, but the file 2 is not there"},
		{"removed by a call that was carried out twice", func(s *story) {
			s.add("a", Create, "x", "", "1", true)
			s.add("a", Remove, "x", "", "1", false)
			s.add("b", Create, "x", "", "2", true)
			s.calls[1].Answered = s.now + 5
		}, nil, "applied twice: create x was answered, but the file 2 is not there: remove x of a, under way then, was carried out again and took it, or that answer was of the file of somebody else"},
		{"removed by a call that was carried out twice, meanwhile", func(s *story) {
			s.add("a", Create, "x", "", "1", true)
			s.add("a", Remove, "x", "", "1", false)
			s.add("b", Create, "x", "", "2", true)
			s.calls[1].Answered, s.calls[2].Answered = s.now+5, s.now+10
		}, nil, "applied twice: create x was answered, but the file 2 is not there: remove x of a, under way then, was carried out again and took it, or that answer was of the file of somebody else"},
		{"two owners", func(s *story) {
			s.add("a", Create, "x", "", "1", true)
			s.add("b", Create, "x", "", "2", true)
			s.add("a", Remove, "x", "", "1", true)
		}, map[string]string{"x": "2"}, "applied twice: x was given to 1, and to 2 while it had it"},
		{"a lock given to two", func(s *story) {
			s.add("a", Lock, "l", "", "a", true)
			s.add("b", Lock, "l", "", "b", true)
			s.add("a", Lock, "l", "", "a", true)
		}, nil, "applied twice: l was given to a, and to b while it had it"},
		{"made twice", func(s *story) {
			s.add("a", Create, "x", "", "1", false)
			s.calls[0].Answered, s.calls[0].Taken = s.now+5, true
		}, nil, `applied twice: create x of a, which took 0.0 s, was answered with "it exists", and nobody else makes that`},
		{"an error", func(s *story) { s.add("a", Create, "x", "", "1", true).Err = "input/output error" }, nil, "an error: a: create x: input/output error"},
		{"nobody's file", func(s *story) { s.add("a", Create, "x", "", "1", true) }, map[string]string{"x": "1", "z": "9"}, `lost: z holds "9", which nobody has written there`},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, content := range c.there {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var s story
			c.tell(&s)
			v, err := Check(dir, s.calls)
			if err != nil {
				t.Fatal(err)
			}
			if err := v.Err(); (err == nil) != (c.want == "") || err != nil && err.Error() != c.want {
				t.Errorf("found %v, want %q", err, c.want)
			}
		})
	}
}

// What Names does on a file system that keeps its promises is found to be right; and a
// file that somebody else removes is missed.
func TestNames(t *testing.T) {
	dir, path := t.TempDir(), filepath.Join(t.TempDir(), "log")
	log, err := Open(path, "a.1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err = (&Names{Dir: dir, Log: log, Jobs: 3, Seed: 1}).Run(ctx)
	if err := errors.Join(err, log.Close()); err != nil {
		t.Fatal(err)
	}
	calls, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	v, err := Check(dir, calls)
	if err != nil || v.Err() != nil || v.Promises < 20 {
		t.Fatalf("%d promises of %d calls: %v %v", v.Promises, len(calls), err, v.Err())
	}
	own, err := filepath.Glob(filepath.Join(dir, "own-*"))
	if err != nil || len(own) == 0 {
		t.Fatalf("no files are there: %v", err)
	}
	if err := os.Remove(own[0]); err != nil {
		t.Fatal(err)
	}
	if v, err = Check(dir, calls); err != nil || len(v.Lost) != 1 || !strings.Contains(v.Err().Error(), "is not there") {
		t.Errorf("a file was removed, and Check says: %v %v", err, v.Err())
	}
}
