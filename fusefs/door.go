package fusefs

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/vfs"
	"loopnfs/internal/waitfor"
)

// Sizes and times of a door, unless the configuration says otherwise.
const (
	DefaultMaxWrite         = 1 << 20
	DefaultMaxInflightBytes = 32 << 20
	DefaultAttrTimeout      = time.Second
	DefaultEntryTimeout     = time.Second

	minWrite      = 4096
	minNodes      = 16
	readAhead     = 1 << 20
	maxBackground = 12 // asynchronous requests of the kernel: read-ahead
)

// DefaultMaxNodes is how many nodes the kernel remembers, unless the configuration says
// otherwise.
var DefaultMaxNodes = NodesFor(DefaultMaxInodes)

// NodesFor is how many nodes the kernel may remember of a file system that keeps so many
// inodes.
func NodesFor(inodes int) int { return 3 * inodes / 2 }

// DoorConfig says what to mount where.
type DoorConfig struct {
	// FS is the file system behind the door.
	FS vfs.FS
	// Mountpoint is an existing directory where nothing is mounted.
	Mountpoint string
	// FsName and Type are what mount(8) and df(1) show: "127.0.0.1:/data" of
	// type "fuse.loopnfs".
	FsName, Type string
	// MaxWrite is the largest READ and WRITE in bytes; 0 means
	// DefaultMaxWrite. It is lowered to what FS takes.
	MaxWrite int
	// MaxInflightBytes bounds the Go memory of requests that carry data; 0
	// means DefaultMaxInflightBytes. One request always fits.
	MaxInflightBytes int
	// AttrTimeout and EntryTimeout are how long the kernel may believe
	// attributes and names without asking; negative means not at all, 0 means
	// the default.
	AttrTimeout, EntryTimeout time.Duration
	// MaxNodes is how many nodes the kernel may refer to before it is made to
	// drop those that it does not use; 0 means DefaultMaxNodes.
	MaxNodes int
	// Dropper returns a command that calls ServeDrops for a mount, to be started
	// where the kernel cannot be told what to drop (before Linux 6.18), or an
	// error when it is better not to start it now. nil: nobody can.
	Dropper func(mountpoint string, id int) (*exec.Cmd, error)
	// AllowOther lets other users than the one who mounts in; always so for
	// root. Others need user_allow_other in /etc/fuse.conf for it.
	AllowOther bool
	// Graph gets a task per request in work; may be nil.
	Graph *waitfor.Graph
	// Logger gets what nobody else is told; nil means slog.Default().
	Logger *slog.Logger

	noPruneMsg bool // do as if the kernel had no NOTIFY_PRUNE
}

func (c *DoorConfig) setDefaults() {
	if c.Type == "" {
		c.Type = "loopnfs"
	}
	if c.FsName == "" {
		c.FsName = c.Type
	}
	if c.MaxWrite == 0 {
		c.MaxWrite = DefaultMaxWrite
	}
	if c.FS != nil {
		c.MaxWrite = min(c.MaxWrite, int(c.FS.MaxIO()))
	}
	c.MaxWrite &^= minWrite - 1
	if c.MaxInflightBytes == 0 {
		c.MaxInflightBytes = DefaultMaxInflightBytes
	}
	if c.MaxNodes == 0 {
		c.MaxNodes = DefaultMaxNodes
	}
	c.AttrTimeout = timeout(c.AttrTimeout, DefaultAttrTimeout)
	c.EntryTimeout = timeout(c.EntryTimeout, DefaultEntryTimeout)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	c.AllowOther = c.AllowOther || os.Geteuid() == 0
}

func timeout(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return max(d, 0)
}

// Validate reports the first thing wrong with c, after defaults are set.
func (c *DoorConfig) Validate() error {
	switch {
	case c.FS == nil:
		return errors.New("fuse: no file system to mount")
	case c.Mountpoint == "":
		return errors.New("fuse: no mount point given")
	case c.MaxWrite < minWrite:
		return fmt.Errorf("fuse: requests of %d bytes are too small: at least %d", c.MaxWrite, minWrite)
	case c.MaxNodes < minNodes:
		return fmt.Errorf("fuse: MaxNodes is %d: give at least %d", c.MaxNodes, minNodes)
	case c.MaxInflightBytes < 0:
		return fmt.Errorf("fuse: MaxInflightBytes is %d: give a number of bytes", c.MaxInflightBytes)
	}
	return nil
}

// Door is a FUSE mount of a vfs.FS.
//
// It speaks the raw protocol: a FUSE node id is a vfs.NodeID. What it adds to
// the file system behind it:
//
//   - Who asks. FUSE names user and group; the supplementary groups are those
//     of the calling thread in /proc, believed for a second. I/O on an open
//     file is done in the name of whoever opened it.
//   - Who may search. The kernel does not check permissions here (the file
//     system behind the door does, which may be a server that maps users), so
//     a name is cached only if everybody may search its directory.
//   - Close-to-open. Each open makes the kernel forget the attributes, and the
//     pages, that it has cached.
//   - Signals. A caller that gets a signal goes on waiting unless it dies of it:
//     no call fails with EINTR because of a timer.
//   - NFS3ERR_JUKEBOX. The request is tried again until it is served.
//
// The kernel's write-back cache is off: dirty pages wait in the arena, not in
// the kernel. A file that is opened with O_APPEND goes past the kernel's cache
// (FOPEN_DIRECT_IO), since the file system knows better where the end is; such a
// file cannot be mapped shared.
//
// Memory: the kernel refers to MaxNodes nodes and a quarter more for a moment, and to
// those in use. Every WRITE in work holds a Go buffer of MaxWrite bytes, together at
// most MaxInflightBytes. Data of READ goes from the pages of the file system to
// the kernel without a copy.
//
// Locks: those of the tables (nodes, handles, slots, groups) are leaves; none is
// held while the file system is called.
//
// What it does not do: extended attributes, POSIX locks across machines (locks
// are the kernel's, local), RENAME_EXCHANGE and RENAME_NOREPLACE, fallocate,
// SEEK_HOLE, ioctl.
type Door struct {
	cfg  DoorConfig
	dev  *device
	fs   *doorFS
	conn *doorConn
	dead chan struct{} // the kernel serves the connection no more
	done chan struct{} // the last request has been served
}

// MountFS mounts cfg.FS and serves it until it is unmounted.
func MountFS(cfg DoorConfig) (*Door, error) {
	cfg.setDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	dev, err := newDevice(&cfg)
	if err != nil {
		return nil, err
	}
	d := &Door{cfg: cfg, dev: dev, dead: make(chan struct{}), done: make(chan struct{})}
	d.fs = newDoorFS(&d.cfg, d.isDead)
	if d.conn, err = newDoorConn(dev.serveFD, &d.cfg, d.fs); err != nil {
		err = errors.Join(fmt.Errorf("cannot start FUSE on %s: %w", dev.Path, err), dev.Detach())
		dev.close()
		return nil, err
	}
	if err := dev.setReadAhead(readAhead); err != nil {
		cfg.Logger.Debug("fuse: read-ahead stays as it is", "error", err)
	}
	go d.serve()
	go d.watch()
	return d, nil
}

func (d *Door) serve() {
	d.conn.serve(newPruner(d))
	if !d.dev.disconnected() {
		_ = d.Abort() // nobody reads requests any more
	}
	d.fs.forgetAll()
	close(d.done)
}

// watch closes dead when the kernel has given up the connection. The device
// would tell poll(2) at once, but wake the poller for every request too.
func (d *Door) watch() {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	defer d.dev.close()
	for !d.dev.disconnected() {
		select {
		case <-tick.C:
		case <-d.done:
			<-tick.C
		}
	}
	close(d.dead)
	d.conn.end(unix.ENODEV) // it may be that nobody listens, and hears of it
	<-d.done
}

func (d *Door) isDead() bool {
	select {
	case <-d.dead:
		return true
	default:
		return d.dev.disconnected()
	}
}

// Mountpoint returns the absolute path of the mount point.
func (d *Door) Mountpoint() string { return d.dev.Path }

// ConnectionID returns the number of the mount under
// /sys/fs/fuse/connections: the minor number of its device.
func (d *Door) ConnectionID() int { return d.dev.ID }

// Dead is closed when the kernel has given up the connection: nobody waits for
// any request any more, though some may still be in work.
func (d *Door) Dead() <-chan struct{} { return d.dead }

// Done is closed when the door is unmounted and the last request served.
func (d *Door) Done() <-chan struct{} { return d.done }

// Wait waits until the door is unmounted and the last request served.
func (d *Door) Wait() {
	<-d.done
}

// elsewhereLimit is how long the kernel may take to give up a connection that is not
// mounted any more.
const elsewhereLimit = 2 * time.Second

// errElsewhere is EBUSY, too.
var errElsewhere = fmt.Errorf("unmounted here, but not in another mount namespace, as a container or a guest has that was started meanwhile: %w", unix.EBUSY)

// Unmount unmounts the door and waits for the last request. It fails with
// EBUSY while somebody uses the mount, and if it is mounted in another mount namespace, too:
// who was started meanwhile in one of its own has got a copy.
//
// umount(2) writes back what was changed through memory maps: to us. So that no
// thread of this process waits for this process, another one makes the call, if
// there is a program for it.
func (d *Door) Unmount() error {
	if d.dev.mounted() {
		err := fusermountU(d.dev.Path)
		if errors.Is(err, exec.ErrNotFound) {
			err = d.dev.Unmount()
		}
		if err != nil && d.dev.mounted() {
			return err
		}
	}
	select {
	case <-d.done:
		return nil
	case <-d.dead:
	case <-time.After(elsewhereLimit):
		if !d.isDead() {
			return fmt.Errorf("%s: %w", d.dev.Path, errElsewhere)
		}
	}
	<-d.done
	return nil
}

// Abort ends the connection whoever uses it: everybody who waits gets an
// error, and the mount point is free. Requests in work may go on; Done tells
// when they have ended.
func (d *Door) Abort() error {
	if !d.dev.disconnected() {
		d.dev.abort() // also if it was taken out of the mount table before
	}
	return d.dev.Detach()
}

// Counts returns how many requests of each kind were served.
func (d *Door) Counts() map[string]uint64 { return d.fs.counts() }
