package main

import (
	"fmt"
	"path/filepath"
	"strconv"

	"loopnfs/internal/vfs"
)

// axis is something that grows, and the load that should not cost more for it.
type axis struct {
	name  string // of the load
	label string // of what grows
	unit  string
	// points are how much of it there is, and load is the load for that.
	points []int64
	load   func(n int64) row
}

// axes are what the picture of -scale has, a panel each.
var axes = []axis{
	{"READ of 4 KiB, random, cached, 32 outstanding", "file size in MiB", "1/s", []int64{1, 8, 64, 256, 1024},
		func(n int64) row {
			return row{size: n << 20, memory: 1280 << 20, prepare: bigFile, measure: randRead}
		}},
	{"WRITE of 4 KiB UNSTABLE, random, 32 outstanding", "file size in MiB", "1/s", []int64{1, 8, 64, 256, 1024},
		func(n int64) row {
			return row{size: n << 20, memory: 1280 << 20, prepare: bigFile, measure: randWrite(vfs.Unstable, 32)}
		}},
	{"GETATTR of all files in turn, 32 outstanding", "files, and live handles", "1/s", []int64{1_000, 10_000, 100_000, 1_000_000},
		func(n int64) row { return row{prepare: filesIn(n), measure: getattrIn(n)} }},
	{"READDIRPLUS of all, warm", "entries in the directory", "entries/s", []int64{1_000, 10_000, 100_000, 1_000_000},
		func(n int64) row { return row{warm: true, prepare: filesIn(n), measure: listIn(n)} }},
	{"GETATTR of one file, 32 outstanding, or one on each", "connections", "1/s", []int64{1, 8, 64, 256, 1000},
		func(n int64) row { return row{conns: int(n), prepare: bigFile, measure: getattr(max(1, 32/int(n)))} }},
	{"READ of 4 KiB, random, cached, 32 outstanding", "--memory in MiB", "1/s", []int64{16, 64, 256, 1024},
		func(n int64) row { return row{size: 8 << 20, memory: n << 20, prepare: bigFile, measure: randRead} }},
}

// dirOf is the directory with n files.
func dirOf(n int64) string { return manyName + strconv.FormatInt(n, 10) }

func filesIn(n int64) func(*bench, string) error {
	return func(_ *bench, dir string) error { return makeFiles(filepath.Join(dir, dirOf(n)), int(n)) }
}

func getattrIn(n int64) func(*bench, *target) (*result, error) {
	return func(_ *bench, t *target) (*result, error) { return getattrAll(t, dirOf(n), int(n)) }
}

func listIn(n int64) func(*bench, *target) (*result, error) {
	return func(_ *bench, t *target) (*result, error) {
		r, err := listDir(t, dirOf(n), int(n))
		if err == nil {
			r.Value = float64(n) / r.Value
		}
		return r, err
	}
}

// scaleRows are the points of all axes.
func scaleRows() (rows []row) {
	for _, a := range axes {
		for _, n := range a.points {
			r := a.load(n)
			r.name, r.unit, r.axis, r.at = fmt.Sprintf("%s: %d", a.label, n), a.unit, a.name, n
			rows = append(rows, r)
		}
	}
	return rows
}
