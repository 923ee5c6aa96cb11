package main

import (
	"testing"

	"loopnfs/alloc"
)

func TestShareOut(t *testing.T) {
	for _, x := range []struct {
		memory int64
		door   bool
		files  int
		arena  int64
		inodes int
	}{
		{1 << 20, false, 1 << 20, 1 << 20, 85}, // too little, which the arena says
		{alloc.MinBytes, false, 1 << 20, alloc.MinBytes, 341},
		{48 << 20, false, 1 << 20, 42 << 20, 4096},
		{72 << 20, true, 1 << 20, 63 << 20, 4096},
		{48 << 20, false, 1024, 48<<20 - 1024*inodeBytes, 1024}, // not more than can be used
		{1 << 40, false, 1 << 20, 1<<40 - maxInodes*inodeBytes, maxInodes},
	} {
		if arena, inodes := shareOut(x.memory, x.door, x.files); arena != x.arena || inodes != x.inodes {
			t.Errorf("of %s the arena gets %d, and there are %d inodes; want %d and %d",
				formatSize(x.memory), arena, inodes, x.arena, x.inodes)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "4096": 4096, "512B": 512, "64MiB": 64 << 20, "1.5GiB": 3 << 29,
		"2G": 2 << 30, "10k": 10 << 10, "5MB": 5e6,
	} {
		got, err := parseSize(in)
		if err != nil || int64(got) != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", "MiB", "-1MiB", "64 MiB", "64mib", "1e9", "0x10", "NaN", "Inf", "99999999TiB", "1_000", "+5",
	} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", in, got)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0B", 1000: "1000B", 4096: "4KiB", 64 << 20: "64MiB", 3 << 29: "1.5GiB", 1 << 40: "1TiB",
	} {
		if got := formatSize(n); got != want {
			t.Errorf("formatSize(%d) = %q, want %q", n, got, want)
		}
	}
}
