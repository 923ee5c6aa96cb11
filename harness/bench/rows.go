package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"loopnfs/harness/rawnfs"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/vfs"
	"loopnfs/internal/xdr"
)

// row is one line of the table: a load that all servers are put to.
type row struct {
	name string
	unit string // of the result
	// axis and at say what a point of -scale is.
	axis string
	at   int64
	// prepare makes in the export's directory what the load needs, before the server
	// is started.
	prepare func(b *bench, dir string) error
	// cold says that no cache has anything, warm that the load was there before.
	cold, warm bool
	// Instead of what the run has, where not zero: the size of the file, the number of
	// connections, and the memory that loopnfs gets.
	size   int64
	conns  int
	memory int64
	// flags are what loopnfs gets besides.
	flags []string
	// measure puts the load on a server that runs.
	measure func(b *bench, t *target) (*result, error)
}

// result is what a row gave for a server.
type result struct {
	Value     float64 `json:"value"`
	MicrosCPU float64 `json:"server_cpu_us,omitempty"` // per operation
	Syscalls  float64 `json:"syscalls,omitempty"`      // reads and writes per operation
	P50       float64 `json:"p50_us,omitempty"`
	P99       float64 `json:"p99_us,omitempty"`
	P999      float64 `json:"p99.9_us,omitempty"`
	Most      float64 `json:"most_us,omitempty"`
}

// target is a server that runs, as the rows see it.
type target struct {
	*server
	b    *bench
	root nfs3.FileHandle
	raw  *rawnfs.Client // nil for a mount
}

func newTarget(b *bench, s *server) (*target, error) {
	if b.mounts {
		return &target{server: s, b: b}, nil
	}
	root, err := s.root()
	if err != nil {
		return nil, err
	}
	raw, err := rawnfs.Dial(s.addr)
	return &target{server: s, b: b, root: root, raw: raw}, err
}

func (t *target) close() {
	if t.raw != nil {
		t.raw.Close()
	}
}

func (t *target) lookup(dir nfs3.FileHandle, name string) (nfs3.FileHandle, error) {
	res, err := t.raw.Lookup(dir, name)
	if err == nil && res.Status != nfs3.StatusOK {
		err = fmt.Errorf("LOOKUP %s: %v", name, res.Status)
	}
	return res.Handle, err
}

const (
	ioSize   = 1 << 20
	pageSize = 4096
)

var serverRows = []row{
	{name: "read 1 MiB, cached, 8 outstanding", unit: "MB/s", prepare: bigFile, measure: seqRead},
	{name: "overwrite 1 MiB + COMMIT, 8 outstanding", unit: "MB/s", prepare: bigFile, measure: seqWrite},
	{name: "random read 4 KiB, cached, 32 outstanding", unit: "1/s", prepare: bigFile, measure: randRead},
	{name: "random write 4 KiB UNSTABLE, 32 outstanding", unit: "1/s", prepare: bigFile, measure: randWrite(vfs.Unstable, 32)},
	{name: "random write 4 KiB FILE_SYNC, 1 outstanding", unit: "1/s", prepare: bigFile, measure: randWrite(vfs.FileSync, 1)},
	{name: "random write 4 KiB FILE_SYNC, 32 outstanding", unit: "1/s", prepare: bigFile, measure: randWrite(vfs.FileSync, 32)},
	{name: "NULL, 32 outstanding", unit: "1/s", measure: null},
	{name: "GETATTR, 32 outstanding", unit: "1/s", prepare: bigFile, measure: getattr(32)},
	{name: "GETATTR, 1 outstanding", unit: "1/s", prepare: bigFile, measure: getattr(1)},
	{name: "LOOKUP, 1 outstanding", unit: "1/s", prepare: bigFile, measure: lookup(1, root)},
	{name: "LOOKUP, 32 outstanding", unit: "1/s", prepare: bigFile, measure: lookup(32, root)},
	{name: "LOOKUP by a user, 32 outstanding", unit: "1/s", prepare: bigFile, measure: lookup(32, user)},
	{name: "CREATE 10k files, 32 outstanding", unit: "1/s", measure: createMany},
	{name: "REMOVE 10k files, 32 outstanding", unit: "1/s", prepare: filesToRemove, measure: removeMany},
	{name: "CREATE 10k files, --async-metadata", unit: "1/s", flags: []string{"--async-metadata"}, measure: createMany},
	{name: "REMOVE 10k files, --async-metadata", unit: "1/s", flags: []string{"--async-metadata"}, prepare: filesToRemove, measure: removeMany},
	{name: "READDIRPLUS of 100k entries, cold", unit: "s", prepare: manyFiles, cold: true, measure: listAll},
	{name: "READDIRPLUS of 100k entries, warm", unit: "s", prepare: manyFiles, warm: true, measure: listAll},
	{name: "GETATTR of 1k files, 32 outstanding", unit: "1/s", prepare: manyFiles, measure: getattrOf(1000)},
	{name: "GETATTR of 100k files, 32 outstanding", unit: "1/s", prepare: manyFiles, measure: getattrOf(100_000)},
}

const (
	bigName, manyName = "big", "many"
	manyCount         = 100_000
	created           = 10_000
)

// bigFile makes a file that fits into every server's cache.
func bigFile(b *bench, dir string) error {
	name := filepath.Join(dir, bigName)
	if st, err := os.Stat(name); err == nil && st.Size() == b.size {
		return nil
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o666)
	if err != nil {
		return err
	}
	defer f.Close()
	rnd := rand.NewChaCha8([32]byte{1})
	buf := make([]byte, ioSize)
	for off := int64(0); off < b.size; off += ioSize {
		rnd.Read(buf)
		if _, err := f.WriteAt(buf, off); err != nil {
			return err
		}
	}
	return f.Sync()
}

func manyFiles(_ *bench, dir string) error {
	return makeFiles(filepath.Join(dir, manyName), manyCount)
}

// makeFiles makes a directory with n files, unless it is there.
func makeFiles(dir string, n int) error {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) == n {
		return nil
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	for i := range n {
		if err := os.WriteFile(filepath.Join(dir, fileName(i)), nil, 0o666); err != nil {
			return err
		}
	}
	return nil
}

func fileName(i int) string { return "file" + strconv.Itoa(1_000_000+i) }

// record is a call with everything but the XID.
func record(proc uint32, args rawnfs.Encoder, payload []byte) []byte {
	return rawnfs.Record(0, nfs3.Program, proc, args, payload)
}

// always makes the same call over and over.
func always(rec []byte) func(uint64) (call, bool) {
	return func(uint64) (call, bool) { return call{head: rec}, true }
}

// timed puts a load on the target for the time that a row takes, on all connections.
func (t *target) timed(window int, newNext func(conn int) func(uint64) (call, bool), noStatus bool) (*tally, *usage, error) {
	return t.drive(func(conn int) *load {
		return &load{window: window, next: newNext(conn), until: time.Now().Add(t.b.duration), noStatus: noStatus}
	})
}

// drive puts loads on as many connections as there should be, at once, after a part of
// it to warm up.
func (t *target) drive(newLoad func(conn int) *load) (*tally, *usage, error) {
	conns := make([]*conn, t.b.conns)
	for i := range conns {
		c, err := dial(t.addr)
		if err != nil {
			return nil, nil, err
		}
		defer c.close()
		conns[i] = c
	}
	before := t.usage()
	tallies, errs := make([]*tally, len(conns)), make([]error, len(conns))
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() { tallies[i], errs[i] = c.run(newLoad(i)) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, nil, err
	}
	sum := &tally{}
	for _, one := range tallies {
		sum.add(one)
	}
	u := t.usage().since(before)
	return sum, &u, nil
}

// resultOf is the result of a load whose calls count.
func resultOf(s *tally, u *usage) *result {
	us := func(q float64) float64 { return float64(s.latency.quantile(q)) / 1e3 }
	r := &result{Value: s.rate(), P50: us(.5), P99: us(.99), P999: us(.999), Most: us(1)}
	r.use(u, s.calls)
	return r
}

// use notes what a server has used for n operations.
func (r *result) use(u *usage, n uint64) {
	per := float64(max(n, 1))
	r.MicrosCPU, r.Syscalls = u.cpu.Seconds()*1e6/per, float64(u.syscalls)/per
}

func (t *target) counted(window int, newNext func(conn int) func(uint64) (call, bool), noStatus bool) (*result, error) {
	s, u, err := t.timed(window, newNext, noStatus)
	if err != nil {
		return nil, err
	}
	return resultOf(s, u), nil
}

// megabytes turns a result in calls of size bytes into MB/s.
func megabytes(r *result, size uint64) *result {
	if r != nil {
		r.Value *= float64(size) / 1e6
	}
	return r
}

func null(_ *bench, t *target) (*result, error) {
	rec := record(nfs3.ProcNull, nothing{}, nil)
	return t.counted(32, func(int) func(uint64) (call, bool) { return always(rec) }, true)
}

func getattr(window int) func(*bench, *target) (*result, error) {
	return func(_ *bench, t *target) (*result, error) {
		h, err := t.lookup(t.root, bigName)
		if err != nil {
			return nil, err
		}
		rec := record(nfs3.ProcGetAttr, &nfs3.GetAttrArgs{Handle: h}, nil)
		return t.counted(window, func(int) func(uint64) (call, bool) { return always(rec) }, false)
	}
}

// Callers of whom servers think differently: what root may is known.
var (
	root sunrpc.AuthSysCred
	user = sunrpc.AuthSysCred{UID: 1000, GID: 1000, GIDs: [sunrpc.MaxGIDs]uint32{1000, 27, 100}, NGIDs: 3}
)

func lookup(window int, by sunrpc.AuthSysCred) func(*bench, *target) (*result, error) {
	return func(_ *bench, t *target) (*result, error) {
		args := nfs3.LookupArgs{Dir: t.root, Name: []byte(bigName)}
		rec := rawnfs.RecordBy(by, 0, nfs3.Program, nfs3.ProcLookup, &args, nil)
		return t.counted(window, func(int) func(uint64) (call, bool) { return always(rec) }, false)
	}
}

// getattrOf goes round many files.
func getattrOf(n int) func(*bench, *target) (*result, error) {
	return func(_ *bench, t *target) (*result, error) {
		return getattrAll(t, manyName, n)
	}
}

// getattrAll goes round the first n files of a directory.
func getattrAll(t *target, name string, n int) (*result, error) {
	dir, err := t.lookup(t.root, name)
	if err != nil {
		return nil, err
	}
	handles, err := list(t.raw, dir)
	if err != nil {
		return nil, err
	}
	if len(handles) < n {
		return nil, fmt.Errorf("%d handles, want %d", len(handles), n)
	}
	recs := make([][]byte, n)
	for i := range recs {
		recs[i] = record(nfs3.ProcGetAttr, &nfs3.GetAttrArgs{Handle: handles[i]}, nil)
	}
	return t.counted(32, func(int) func(uint64) (call, bool) {
		return func(i uint64) (call, bool) { return call{head: recs[i%uint64(n)]}, true }
	}, false)
}

func seqRead(b *bench, t *target) (*result, error) {
	h, err := t.lookup(t.root, bigName)
	if err != nil {
		return nil, err
	}
	if err := readOnce(t, h); err != nil {
		return nil, err
	}
	first, err := t.raw.Read(h, 0, ioSize) // a server with little memory gives less
	if err != nil {
		return nil, err
	}
	size := uint64(len(first))
	r, err := t.counted(8, func(int) func(uint64) (call, bool) {
		rec := record(nfs3.ProcRead, &nfs3.ReadArgs{Handle: h, Count: uint32(size)}, nil)
		return func(i uint64) (call, bool) {
			binary.BigEndian.PutUint64(rec[len(rec)-12:], i%(uint64(b.size)/size)*size)
			return call{head: rec}, true
		}
	}, false)
	return megabytes(r, size), err
}

// readOnce brings the file into the server's cache.
func readOnce(t *target, h nfs3.FileHandle) error {
	for off := int64(0); off < t.b.size; {
		got, err := t.raw.Read(h, uint64(off), ioSize)
		if err == nil && len(got) == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("READ of 1 MiB at %d: %w", off, err)
		}
		off += int64(len(got))
	}
	return nil
}

func randRead(b *bench, t *target) (*result, error) {
	h, err := t.lookup(t.root, bigName)
	if err != nil {
		return nil, err
	}
	if err := readOnce(t, h); err != nil {
		return nil, err
	}
	return t.counted(32, func(conn int) func(uint64) (call, bool) {
		rec, rnd := record(nfs3.ProcRead, &nfs3.ReadArgs{Handle: h, Count: pageSize}, nil), rand.New(rand.NewPCG(1, uint64(conn)))
		return func(uint64) (call, bool) {
			binary.BigEndian.PutUint64(rec[len(rec)-12:], rnd.Uint64N(uint64(b.size/pageSize))*pageSize)
			return call{head: rec}, true
		}
	}, false)
}

// writeCall returns the head of WRITEs of n bytes, and where in it the offset is.
func writeCall(h nfs3.FileHandle, n int, how vfs.Stable) (head []byte, offset int) {
	rec := record(nfs3.ProcWrite, &nfs3.WriteArgs{Handle: h, Count: uint32(n), Stable: how}, make([]byte, n))
	head = rec[:len(rec)-n]
	return head, len(head) - 4 - 4 - 4 - 8
}

// seqWrite overwrites the file from its start to its end, commits, and begins again.
func seqWrite(b *bench, t *target) (*result, error) {
	h, err := t.lookup(t.root, bigName)
	if err != nil {
		return nil, err
	}
	c, err := dial(t.addr)
	if err != nil {
		return nil, err
	}
	defer c.close()
	head, at := writeCall(h, ioSize, vfs.Unstable)
	payload := make([]byte, ioSize)
	rand.NewChaCha8([32]byte{2}).Read(payload)
	commit := record(nfs3.ProcCommit, &nfs3.CommitArgs{Handle: h}, nil)
	before, sum := t.usage(), &tally{}
	for start := time.Now(); sum.elapsed < b.duration; sum.elapsed = time.Since(start) {
		one, err := c.run(&load{window: 8, next: func(i uint64) (call, bool) {
			binary.BigEndian.PutUint64(head[at:], i*ioSize)
			return call{head, payload}, int64(i)*ioSize < b.size
		}})
		if err != nil {
			return nil, err
		}
		sum.calls += one.calls
		sum.latency.add(&one.latency)
		if _, err := c.run(&load{window: 1, next: func(i uint64) (call, bool) { return call{head: commit}, i == 0 }}); err != nil {
			return nil, err
		}
	}
	u := t.usage().since(before)
	return megabytes(resultOf(sum, &u), ioSize), nil
}

func randWrite(how vfs.Stable, window int) func(*bench, *target) (*result, error) {
	return func(b *bench, t *target) (*result, error) {
		h, err := t.lookup(t.root, bigName)
		if err != nil {
			return nil, err
		}
		payload := make([]byte, pageSize)
		rand.NewChaCha8([32]byte{3}).Read(payload)
		return t.counted(window, func(conn int) func(uint64) (call, bool) {
			head, at := writeCall(h, pageSize, how)
			rnd := rand.New(rand.NewPCG(2, uint64(conn)))
			return func(i uint64) (call, bool) {
				binary.BigEndian.PutUint64(head[at:], rnd.Uint64N(uint64(b.size/pageSize))*pageSize)
				binary.LittleEndian.PutUint64(payload, i)
				return call{head, payload}, true
			}
		}, false)
	}
}

// finite is a load of n calls in all.
func (t *target) finite(window, n int, make func(i int) []byte) (*result, error) {
	s, u, err := t.drive(func(conn int) *load {
		return &load{window: window, next: func(i uint64) (call, bool) {
			k := int(i)*t.b.conns + conn
			if k >= n {
				return call{}, false
			}
			return call{head: make(k)}, true
		}}
	})
	if err != nil {
		return nil, err
	}
	return resultOf(s, u), nil
}

const createdDir = "created"

// filesToRemove makes what removeMany removes, on the disk.
func filesToRemove(_ *bench, dir string) error {
	return makeFiles(filepath.Join(dir, createdDir), created)
}

func createMany(_ *bench, t *target) (*result, error) {
	dir, err := t.raw.Mkdir(t.root, createdDir)
	if err != nil {
		return nil, err
	}
	return t.finite(32, created, func(i int) []byte {
		return record(nfs3.ProcCreate, &nfs3.CreateArgs{Where: nfs3.DirOpArgs{Dir: dir, Name: []byte(fileName(i))},
			Set: vfs.SetAttr{SetMode: true, Mode: 0o644}}, nil)
	})
}

// removeMany removes what createMany made.
func removeMany(_ *bench, t *target) (*result, error) {
	dir, err := t.lookup(t.root, createdDir)
	if err != nil {
		return nil, err
	}
	r, err := t.finite(32, created, func(i int) []byte {
		return record(nfs3.ProcRemove, &nfs3.RemoveArgs{Dir: dir, Name: []byte(fileName(i))}, nil)
	})
	if err == nil {
		var res nfs3.WCCResult
		_, err = t.raw.Call(nfs3.ProcRmdir, &nfs3.RmdirArgs{Dir: t.root, Name: []byte(createdDir)}, nil, &res)
	}
	return r, err
}

func listAll(_ *bench, t *target) (*result, error) { return listDir(t, manyName, manyCount) }

// listDir lists a directory of n entries.
func listDir(t *target, name string, n int) (*result, error) {
	dir, err := t.lookup(t.root, name)
	if err != nil {
		return nil, err
	}
	start, before := time.Now(), t.usage()
	handles, err := list(t.raw, dir)
	if err != nil {
		return nil, err
	}
	if len(handles) != n {
		return nil, fmt.Errorf("%d entries, want %d", len(handles), n)
	}
	took, after := time.Since(start), t.usage()
	return &result{Value: took.Seconds(), MicrosCPU: (after.cpu - before.cpu).Seconds() * 1e6 / float64(n)}, nil
}

// nothing is the arguments of NULL.
type nothing struct{}

// Encode implements rawnfs.Encoder.
func (nothing) Encode(*xdr.Encoder) {}

// list reads a directory with READDIRPLUS, as much at a time as servers give, and returns
// the handles.
func list(c *rawnfs.Client, dir nfs3.FileHandle) ([]nfs3.FileHandle, error) {
	var handles []nfs3.FileHandle
	args := nfs3.ReaddirplusArgs{Handle: dir, DirCount: ioSize, MaxCount: ioSize}
	for {
		var res nfs3.ReaddirplusResult
		d, err := c.Call(nfs3.ProcReaddirplus, &args, nil, &res)
		if err == nil && res.Status != nfs3.StatusOK {
			err = fmt.Errorf("READDIRPLUS: %v", res.Status)
		}
		if err != nil {
			return nil, err
		}
		var e nfs3.EntryPlus
		for nfs3.NextEntryPlus(d, &e) {
			args.Cookie = e.Cookie
			if name := string(e.Name); name != "." && name != ".." {
				handles = append(handles, e.Handle.Handle)
			}
		}
		eof, err := nfs3.ListEOF(d)
		if err != nil || eof {
			return handles, err
		}
		args.Verf = res.Verf
	}
}
