package nfsmount

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"sync/atomic"

	"loopnfs/internal/hostaddr"
)

// Config says what to mount, and where.
type Config struct {
	Host       string // name or address of the server
	Export     string // "/NAME"
	Mountpoint string // absolute
	// Port of NFS; "" is that of the options, or 2049. MOUNT is there too,
	// unless the options say otherwise.
	Port    string
	Options *Options
	// LoopBack says that the server is on this host, or may come here, even
	// if its address does not tell.
	LoopBack bool
}

const (
	// loopTimeo is the time-out of a request on a loop-back mount, in tenths
	// of a second. A server on this host answers or its connection breaks, which
	// sends everything again at once; so a time-out would only send requests
	// twice to a server that is slow for want of memory. Not for ever, because
	// other servers do drop requests then.
	loopTimeo = "1800"
	// ioSize is the largest READ and WRITE, in bytes; the server may want less.
	// Under memory pressure, too: in guests of 192 MiB, release-page took 13 s
	// with it and 15 s with 256 KiB.
	ioSize = "1048576"
	// maxSource is the longest HOST:/NAME that fsconfig(2) takes.
	maxSource = maxValue
)

// Host is the machine that mounts.
type Host struct {
	Kernel Kernel
	Dial   func(ctx context.Context, network, address string) (net.Conn, error)
	// Local reports whether an address is on this host (hostaddr).
	Local func(peer, here netip.Addr) bool
	// Root is where /proc and /sys are.
	Root string
}

// ThisHost is the machine that this program runs on.
func ThisHost() *Host {
	return &Host{Kernel: Linux{}, Dial: new(net.Dialer).DialContext, Local: new(hostaddr.Addresses).IsLocal, Root: "/"}
}

func (h *Host) path(elem ...string) string {
	return filepath.Join(append([]string{h.Root}, elem...)...)
}

// Mounted says what Mount has done.
type Mounted struct {
	LoopBack bool
	Cap      Cap // of a loop-back mount
	// Notes are what the user should know, a sentence each.
	Notes []string
}

// Mount mounts. It takes until ctx ends at most; then nothing is mounted, but the
// kernel may still be waiting for the server until the process ends.
func (h *Host) Mount(ctx context.Context, cfg Config) (*Mounted, error) {
	if len(cfg.Host)+len(cfg.Export) >= maxSource-len("[]:") {
		return nil, fmt.Errorf("server and name are longer than %d bytes", maxSource)
	}
	if err := h.Kernel.Probe(); err != nil {
		return nil, err
	}
	var err error
	if cfg.Mountpoint, err = h.checkMountpoint(cfg.Mountpoint); err != nil {
		return nil, err
	}
	cfg.Port = cmp.Or(cfg.Port, cfg.Options.given["port"], "2049")
	addr, local, err := h.reach(ctx, cfg.Host, cfg.Port)
	if err != nil {
		return nil, err
	}
	m := &Mounted{LoopBack: local || cfg.LoopBack}
	if err := m.checkOptions(cfg.Options); err != nil {
		return nil, err
	}
	if m.LoopBack {
		if err := h.checkNoSwap(cfg.Mountpoint); err != nil {
			return nil, err
		}
	}
	params := cfg.params(addr, m.LoopBack)
	err = bounded(ctx, func(attach func(func() error) error) error {
		return h.mount(m, &cfg, params, cfg.Options.attrs, attach)
	})
	if err != nil {
		return nil, err // m may still be written
	}
	return m, nil
}

// reach connects to the server once, which tells which of its addresses answers,
// and whether that is on this host.
func (h *Host) reach(ctx context.Context, host, port string) (addr netip.Addr, local bool, err error) {
	c, err := h.Dial(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return addr, false, err
	}
	defer c.Close()
	peer, err := netip.ParseAddrPort(c.RemoteAddr().String())
	here, err2 := netip.ParseAddrPort(c.LocalAddr().String())
	if err := errors.Join(err, err2); err != nil {
		return addr, false, err
	}
	return peer.Addr().Unmap(), h.Local(hostaddr.Plain(peer.Addr()), hostaddr.Plain(here.Addr())), nil
}

// checkOptions refuses what is not safe on a loop-back mount.
func (m *Mounted) checkOptions(o *Options) error {
	for _, p := range o.params {
		switch {
		case m.LoopBack && (p.Key == "soft" || p.Key == "softerr"):
			return fmt.Errorf("-o %s: the server is on this host, so it is slow when memory is short, and then a soft mount throws away what was written: leave it out, and unmount with loopnfs umount --force if the server is gone", p.Key)
		case p.Key == "lock":
			m.Notes = append(m.Notes, "locks across machines need rpc.statd here and a server with NLM, which loopnfs's has not")
		}
	}
	return nil
}

// params are what the kernel is told: what is fixed, what nobody has said, and
// what the user has.
func (c *Config) params(addr netip.Addr, loopBack bool) []Param {
	o := c.Options
	proto, host := "tcp", addr.WithZone("").String()
	if addr.Is6() {
		proto, host = "tcp6", "["+host+"]"
	}
	if _, err := netip.ParseAddr(c.Host); err != nil {
		host = c.Host
	}
	list := []Param{
		{"source", host + ":" + c.Export}, {"addr", addr.String()},
		{"vers", "3"}, {"proto", proto}, {"mountproto", proto},
		{"port", c.Port}, {"mountport", c.Port},
	}
	unless := func(key, value string, others ...string) {
		if !o.gives(append(others, key)...) {
			list = append(list, Param{key, value})
		}
	}
	unless("hard", "", "soft", "softerr")
	unless("nolock", "", "lock", "local_lock")
	unless("rsize", ioSize)
	unless("wsize", ioSize)
	if loopBack {
		unless("timeo", loopTimeo)
		unless("nconnect", "1")
	}
	for _, p := range o.params {
		if p.Key != "port" {
			list = append(list, p)
		}
	}
	return list
}

// mount is Mount once the server was reached.
func (h *Host) mount(m *Mounted, cfg *Config, params []Param, attrs int, attach func(func() error) error) error {
	mnt, err := h.Kernel.Create(params, attrs)
	if err != nil {
		return err
	}
	defer mnt.Close()
	if m.LoopBack {
		if err := h.checkNotOwnExport(mnt, cfg.Mountpoint, cfg.Export); err != nil {
			return err
		}
		st, err := mnt.Stat()
		if err != nil {
			return err
		}
		if m.Cap, err = h.setCap(st.Device); err != nil {
			m.Notes = append(m.Notes, err.Error())
		}
	}
	return attach(func() error { return mnt.Attach(cfg.Mountpoint) })
}

// errLate is returned by what is attached too late.
var errLate = errors.New("too late")

// bounded runs f until ctx ends. What f attaches is either there when bounded
// returns nil, or never will be.
func bounded(ctx context.Context, f func(attach func(func() error) error) error) error {
	var decided atomic.Bool
	done := make(chan error, 1)
	go func() {
		done <- f(func(do func() error) error {
			if decided.Swap(true) {
				return errLate
			}
			return do()
		})
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		if decided.Swap(true) {
			return <-done
		}
		return fmt.Errorf("the server was reached, but does not answer: %w", context.Cause(ctx))
	}
}
