package main

import "testing"

// Whatever a directory is called, a terminal is told nothing by it.
func TestPictureIsPlain(t *testing.T) {
	p := &picture{width: 24}
	p.line("export", "%s", "/a\x1b[2J\nb: much more than there is room for")
	if want := "export    /a?[2J?b: much"; p.lines[0] != want {
		t.Errorf("got %q, want %q", p.lines[0], want)
	}
}
