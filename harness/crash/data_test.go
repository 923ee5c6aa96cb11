package crash

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"

	"loopnfs/harness/rawnfs"
	"loopnfs/internal/nfs3"
	"loopnfs/internal/vfs"
)

// fileBlocks is the size of a worker's file, in sectors.
const fileBlocks = 96

// dataWorker overwrites the blocks of a file, stably at once or with a COMMIT. Each
// block says which version of it this is.
type dataWorker struct {
	disk *disk
	c    *rawnfs.Client
	h    nfs3.FileHandle
	verf vfs.Verifier // of the server that the promises are from

	version  uint32
	issued   []blockEvent // before they were sent
	promised []blockEvent // when they were acknowledged as stable
}

type blockEvent struct {
	at             int // in the record of the disk
	block, version uint32
}

func newDataWorker(d *disk, c *rawnfs.Client, dir nfs3.FileHandle, name string) (*dataWorker, error) {
	h, err := create(c, dir, name)
	return &dataWorker{disk: d, c: c, h: h}, err
}

func create(c *rawnfs.Client, dir nfs3.FileHandle, name string) (nfs3.FileHandle, error) {
	var res nfs3.CreateResult
	_, err := c.Call(nfs3.ProcCreate, &nfs3.CreateArgs{Where: nfs3.DirOpArgs{Dir: dir, Name: []byte(name)}, How: vfs.Guarded}, nil, &res)
	if err == nil && (res.Status != nfs3.StatusOK || !res.Handle.Has) {
		err = fmt.Errorf("CREATE %s: %v", name, res.Status)
	}
	return res.Handle.Handle, err
}

// step does one thing and takes down what was promised.
func (w *dataWorker) step(r *rand.Rand) error {
	var written []blockEvent
	how := vfs.Stable(r.IntN(3))
	for range 1 + r.IntN(3) {
		first := r.Uint32N(fileBlocks)
		n := 1 + r.Uint32N(min(8, fileBlocks-first))
		stable, err := w.write(first, n, how)
		if err != nil {
			return err
		}
		for i := range n {
			written = append(written, blockEvent{block: first + i, version: w.version})
		}
		if stable != vfs.Unstable {
			w.promise(written[len(written)-int(n):])
		}
	}
	if how == vfs.Unstable && r.IntN(2) == 0 {
		var res nfs3.CommitResult
		_, err := w.c.Call(nfs3.ProcCommit, &nfs3.CommitArgs{Handle: w.h}, nil, &res)
		if err != nil || res.Status != nfs3.StatusOK || res.Verf != w.verf {
			return fmt.Errorf("COMMIT: %+v, %w", res, err)
		}
		w.promise(written)
	}
	return nil
}

func (w *dataWorker) write(first, n uint32, how vfs.Stable) (vfs.Stable, error) {
	w.version++
	var data []byte
	for i := range n {
		w.issued = append(w.issued, blockEvent{w.disk.now(), first + i, w.version})
		data = append(data, makeBlock(first+i, w.version)...)
	}
	var res nfs3.WriteResult
	args := nfs3.WriteArgs{Handle: w.h, Offset: uint64(first) * sector, Count: uint32(len(data)), Stable: how}
	_, err := w.c.Call(nfs3.ProcWrite, &args, data, &res)
	if err != nil || res.Status != nfs3.StatusOK || int(res.Count) != len(data) || res.Committed < how {
		return 0, fmt.Errorf("WRITE: %+v, %w", res, err)
	}
	if w.verf == (vfs.Verifier{}) {
		w.verf = res.Verf
	}
	return res.Committed, nil
}

func (w *dataWorker) promise(events []blockEvent) {
	now := w.disk.now()
	for _, e := range events {
		e.at = now
		w.promised = append(w.promised, e)
	}
}

// makeBlock fills a block with what tells it from every other.
func makeBlock(block, version uint32) []byte {
	b := make([]byte, 8, sector)
	binary.BigEndian.PutUint32(b, block)
	binary.BigEndian.PutUint32(b[4:], version)
	for len(b) < sector-4 {
		b = append(b, b[:min(len(b), sector-4-len(b))]...)
	}
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

// check compares the file with what was promised before the crash.
func (w *dataWorker) check(c *rawnfs.Client, crash int) error {
	var oldest, newest [fileBlocks]uint32
	for _, e := range w.promised {
		if e.at <= crash {
			oldest[e.block] = max(oldest[e.block], e.version)
		}
	}
	for _, e := range w.issued {
		if e.at <= crash {
			newest[e.block] = e.version
		}
	}
	data, err := c.Read(w.h, 0, fileBlocks*sector)
	if err != nil {
		return err
	}
	data = append(data, make([]byte, fileBlocks*sector-len(data))...)
	for i := range uint32(fileBlocks) {
		v, err := versionOf(i, data[i*sector:][:sector])
		if err != nil {
			return err
		}
		if v < oldest[i] || v > newest[i] {
			return fmt.Errorf("block %d is version %d; %d was promised, %d the last that was sent", i, v, oldest[i], newest[i])
		}
	}
	return w.checkVerifier(c)
}

// checkVerifier finds out whether a client would know that the server is another one.
func (w *dataWorker) checkVerifier(c *rawnfs.Client) error {
	var res nfs3.CommitResult
	_, err := c.Call(nfs3.ProcCommit, &nfs3.CommitArgs{Handle: w.h}, nil, &res)
	if err == nil && (res.Status != nfs3.StatusOK || res.Verf == w.verf) {
		err = fmt.Errorf("COMMIT: %v; the verifier is the old one: %t", res.Status, res.Verf == w.verf)
	}
	return err
}

// versionOf returns 0 for a block that was never written.
func versionOf(block uint32, b []byte) (uint32, error) {
	if [sector]byte(b) == [sector]byte{} {
		return 0, nil
	}
	v := binary.BigEndian.Uint32(b[4:])
	if string(makeBlock(block, v)) != string(b) {
		return 0, fmt.Errorf("block %d is damaged: it begins with %x", block, b[:16])
	}
	return v, nil
}
