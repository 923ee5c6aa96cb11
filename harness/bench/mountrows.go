package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	rowSeqRead  = "read 1 MiB"
	rowSeqWrite = "overwrite 1 MiB, then fsync"
)

// libnfsRows are those that nfs-cp can be put to.
var libnfsRows = []string{rowSeqRead, rowSeqWrite}

var mountRows = []row{
	{name: rowSeqRead, unit: "MB/s", prepare: bigFile, warm: true, measure: fio("read", ioSize)},
	{name: rowSeqWrite, unit: "MB/s", prepare: bigFile, measure: fio("write", ioSize, "--end_fsync=1")},
	{name: "overwrite 1 MiB", unit: "MB/s", prepare: bigFile, measure: fio("write", ioSize)},
	{name: "random read 4 KiB", unit: "1/s", prepare: bigFile, warm: true, measure: fio("randread", pageSize)},
	{name: "random write 4 KiB", unit: "1/s", prepare: bigFile, measure: fio("randwrite", pageSize)},
	{name: "create and close of 10k files", unit: "1/s", measure: each(createOne)},
	{name: "stat of 10k files, not in the kernel's cache", unit: "1/s", prepare: filesToRemove, measure: each(statOne)},
	{name: "unlink of 10k files", unit: "1/s", prepare: filesToRemove, measure: each(unlinkOne)},
	{name: "list 100k entries, first time", unit: "1/s", prepare: manyFiles, measure: listMount},
	{name: "list 100k entries, again", unit: "1/s", prepare: manyFiles, warm: true, measure: listMount},
}

// fioReport is the part of fio's output that counts.
type fioReport struct {
	Jobs []struct {
		Read, Write fioIO
	}
}

type fioIO struct {
	IOBytes uint64  `json:"io_bytes"`
	Total   uint64  `json:"total_ios"`
	Runtime float64 `json:"runtime"` // ms
	Latency struct {
		Percentile map[string]float64
	} `json:"clat_ns"`
}

// fio reads or writes the big file once from one job with psync, again and again until
// the time is over. Each time it has the kernel drop the file's pages first.
func fio(rw string, size int, more ...string) func(*bench, *target) (*result, error) {
	return func(b *bench, t *target) (*result, error) {
		if t.name == "libnfs" {
			return libnfs(b, t, rw)
		}
		args := append([]string{"--name=" + rw, "--filename=" + filepath.Join(t.point, bigName), "--rw=" + rw, fmt.Sprintf("--bs=%d", size),
			fmt.Sprintf("--size=%d", b.size), "--ioengine=psync", "--overwrite=1", "--output-format=json"}, more...)
		var sum fioIO
		before := t.usage()
		var took time.Duration
		for start := time.Now(); took < b.duration; took = time.Since(start) {
			one, err := runFIO(args)
			if err != nil {
				return nil, err
			}
			sum.IOBytes, sum.Total, sum.Runtime = sum.IOBytes+one.IOBytes, sum.Total+one.Total, sum.Runtime+one.Runtime
			sum.Latency = one.Latency
		}
		us := func(p string) float64 { return sum.Latency.Percentile[p] / 1e3 }
		r := &result{Value: float64(sum.Total) / sum.Runtime * 1e3, P50: us("50.000000"), P99: us("99.000000"), P999: us("99.900000")}
		if size == ioSize {
			r.Value = float64(sum.IOBytes) / 1e6 / sum.Runtime * 1e3
		}
		u := t.usage().since(before)
		r.use(&u, sum.Total)
		return r, nil
	}
}

func runFIO(args []string) (fioIO, error) {
	cmd := exec.Command("fio", args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fioIO{}, fmt.Errorf("fio: %w: %s%s", err, &stderr, out)
	}
	var rep fioReport
	if err := json.Unmarshal(out, &rep); err != nil || len(rep.Jobs) != 1 {
		return fioIO{}, fmt.Errorf("fio said what cannot be understood: %w", err)
	}
	one := rep.Jobs[0].Read
	if rep.Jobs[0].Write.Total > 0 {
		one = rep.Jobs[0].Write
	}
	return one, nil
}

// libnfs copies the file from the server to memory, or the other way. nfs-cp writes to new
// files only.
func libnfs(b *bench, t *target, rw string) (*result, error) {
	_, port, _ := net.SplitHostPort(t.below.addr)
	url := func(name string) string {
		return fmt.Sprintf("nfs://127.0.0.1%s/%s?version=3&nfsport=%s&mountport=%s", t.below.export, name, port, port)
	}
	from, to, made := url(bigName), "/run/copy", "/run/copy"
	if rw == "write" {
		from, to, made = filepath.Join(t.dir, bigName), url("copy"), filepath.Join(t.dir, "copy")
	}
	before, n := t.usage(), uint64(0)
	var took time.Duration
	for ; took < b.duration; n++ {
		start := time.Now()
		if out, err := exec.Command("nfs-cp", from, to).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("nfs-cp: %w: %s", err, out)
		}
		took += time.Since(start)
		// A server that has it open would keep its space.
		if err := errors.Join(os.Truncate(made, 0), os.Remove(made)); err != nil {
			return nil, err
		}
	}
	r := &result{Value: float64(n) * float64(b.size) / 1e6 / took.Seconds()}
	u := t.usage().since(before)
	r.use(&u, n*uint64(b.size/ioSize))
	return r, nil
}

// each does something to every file of the directory of created ones.
func each(do func(name string) error) func(*bench, *target) (*result, error) {
	return func(_ *bench, t *target) (*result, error) {
		dir := filepath.Join(t.point, createdDir)
		if err := os.Mkdir(dir, 0o777); err != nil && !os.IsExist(err) {
			return nil, err
		}
		var lat histogram
		before, start := t.usage(), time.Now()
		for i := range created {
			at := time.Now()
			if err := do(filepath.Join(dir, fileName(i))); err != nil {
				return nil, err
			}
			lat.note(int64(time.Since(at)))
		}
		s := &tally{calls: created, elapsed: time.Since(start), latency: lat}
		u := t.usage().since(before)
		return resultOf(s, &u), os.RemoveAll(dir)
	}
}

func createOne(name string) error {
	fd, err := unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func statOne(name string) error {
	var st unix.Stat_t
	return unix.Lstat(name, &st)
}

func unlinkOne(name string) error { return unix.Unlink(name) }

// listMount reads the directory as ls -U does.
func listMount(_ *bench, t *target) (*result, error) {
	fd, err := unix.Open(filepath.Join(t.point, manyName), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	before, start, got := t.usage(), time.Now(), 0
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		got += len(names)
	}
	took, u := time.Since(start), t.usage().since(before)
	if got != manyCount {
		return nil, fmt.Errorf("%d entries, want %d", got, manyCount)
	}
	r := &result{Value: manyCount / took.Seconds()}
	r.use(&u, manyCount)
	return r, nil
}
