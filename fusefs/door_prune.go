package fusefs

import (
	"errors"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
)

const (
	// minPruneMinor is the version of FUSE with NOTIFY_PRUNE: Linux 6.18.
	minPruneMinor = 45
	// pruneBatch is how many nodes one notification names.
	pruneBatch = 1024
	// pruneShare is the part of the limit that is pruned at a time.
	pruneShare = 4
	// prunePasses is how often the kernel is asked in a row, as long as that helps.
	prunePasses = 4
	// pruneFirst and pruneMax are how long to wait before the next try while nearly all
	// nodes are in use.
	pruneFirst = time.Second
	pruneMax   = time.Minute
	// FORGETs are waited for until none has come for settleQuiet ticks, at most settleMax.
	settleTick  = 2 * time.Millisecond
	settleQuiet = 3
	settleMax   = time.Second
)

// pruner has the kernel drop what it does not use when it refers to too many nodes: for
// each of them the file system keeps an inode. It belongs to one goroutine, and no request
// waits for it.
type pruner struct {
	conn     *doorConn
	nodes    *nodeTable
	limit    int
	notifies bool   // the kernel has NOTIFY_PRUNE
	helper   helper // makes another call where it has not
	msg      pruneMsg
}

// pruneMsg is NOTIFY_PRUNE with its nodes.
type pruneMsg struct {
	fuse.OutHeader
	count, _ uint32
	_        uint64
	nodes    [pruneBatch]vfs.NodeID
}

func newPruner(d *Door) *pruner {
	return &pruner{
		conn: d.conn, nodes: &d.fs.nodes, limit: d.cfg.MaxNodes,
		notifies: d.conn.minor >= minPruneMinor && !d.cfg.noPruneMsg, helper: helper{door: d},
	}
}

// run prunes when there are too many nodes, until the connection ends.
func (p *pruner) run() {
	defer p.helper.stop()
	wait := pruneFirst
	for {
		var again, idle <-chan time.Time
		switch {
		case p.nodes.len() > p.limit:
			again = time.After(wait)
		case p.helper.in != nil:
			idle = time.After(helperIdle)
			fallthrough
		default:
			wait = pruneFirst
		}
		select {
		case <-p.nodes.full:
		case <-again:
			wait = min(2*wait, pruneMax)
		case <-idle:
			p.helper.stop()
			continue
		case <-p.conn.over:
			return
		}
		p.prune()
		p.nodes.wakeAt(max(p.limit, p.nodes.len()+p.limit/pruneShare))
	}
}

// prune has the kernel drop nodes until there are few enough, or all that are left seem to
// be in use.
func (p *pruner) prune() {
	for range prunePasses {
		n := p.nodes.len()
		if n <= p.limit-p.limit/pruneShare {
			return
		}
		if !p.ask(n-(p.limit-p.limit/pruneShare)) || !p.settle(n) {
			return
		}
	}
}

// ask asks the kernel to drop n nodes or more. It returns false if it was not asked.
func (p *pruner) ask(n int) bool {
	if p.notifies {
		err := p.notify(n)
		if !errors.Is(err, unix.EINVAL) {
			return err == nil
		}
		p.notifies = false
	}
	return p.helper.drop()
}

// notify tells the kernel of n nodes that can go, if it does not use them.
func (p *pruner) notify(n int) error {
	for ids := p.nodes.oldest(n); len(ids) > 0; {
		m := &p.msg
		k := copy(m.nodes[:], ids)
		ids = ids[k:]
		size := unsafe.Offsetof(m.nodes) + uintptr(k)*unsafe.Sizeof(m.nodes[0])
		m.OutHeader = fuse.OutHeader{Length: uint32(size), Status: notifyPrune}
		m.count = uint32(k)
		if _, err := unix.Write(p.conn.fd, unsafe.Slice((*byte)(unsafe.Pointer(m)), size)); err != nil {
			return err
		}
	}
	return nil
}

// settle waits until no more FORGETs come, and reports whether there are fewer nodes than
// n now.
func (p *pruner) settle(n int) bool {
	last, quiet := -1, 0
	for end := time.Now().Add(settleMax); quiet < settleQuiet && time.Now().Before(end); quiet++ {
		select {
		case <-time.After(settleTick):
		case <-p.conn.over:
			return false
		}
		if _, now := p.nodes.size(); now != last {
			last, quiet = now, 0
		}
	}
	return p.nodes.len() < n
}
