package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

// notifier tells the service manager how the server is (sd_notify(3)). It does so in a
// goroutine of its own: the manager may wait for memory that this server is to clean. A
// nil one tells nobody.
type notifier struct{ states chan string }

// maxStates wait to be told, others are dropped.
const maxStates = 16

func startNotifier(log *slog.Logger) *notifier {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	n := &notifier{make(chan string, maxStates)}
	go func() {
		for state := range n.states {
			if _, err := daemon.SdNotify(false, state); err != nil {
				log.Warn("the service manager is not told", "state", state, "error", err, "remedy", "NotifyAccess=all in the unit")
			}
		}
	}()
	return n
}

func (n *notifier) tell(state string) {
	if n == nil {
		return
	}
	select {
	case n.states <- state:
	default:
	}
}

// starting says that it may take so long until ready.
func (n *notifier) starting(what string, d time.Duration) {
	n.tell(fmt.Sprintf("STATUS=%s\nEXTEND_TIMEOUT_USEC=%d", what, d.Microseconds()))
}

func (n *notifier) ready(status string) { n.tell(daemon.SdNotifyReady + "\nSTATUS=" + status) }

// reloading says that what follows until ready is that.
func (n *notifier) reloading() {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	n.tell(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, ts.Nano()/1000))
}

func (n *notifier) stopping() { n.tell(daemon.SdNotifyStopping + "\nSTATUS=stopping") }

// watchdogTime is after how long without a sign of life the manager ends the service; 0 if
// it does not. What it says of the keeper it says of the server.
func watchdogTime() (time.Duration, error) {
	if os.Getenv("WATCHDOG_PID") == strconv.Itoa(os.Getppid()) {
		os.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	}
	return daemon.SdWatchdogEnabled(false)
}

// watch gives signs of life as long as check has no error, which is given a third of the
// time.
func (n *notifier) watch(ctx context.Context, check func(time.Duration) error, log *slog.Logger) {
	limit, err := watchdogTime()
	if err != nil {
		log.Warn("no signs of life for the service manager", "error", err, "remedy", "repair WatchdogSec in the unit")
	}
	if n == nil || limit == 0 || err != nil {
		return
	}
	tick := time.NewTicker(limit / 3)
	defer tick.Stop()
	for well := true; ; {
		err := check(limit / 3)
		if err == nil {
			n.tell(daemon.SdNotifyWatchdog)
		} else if well {
			log.Warn("the server does not answer itself: the service manager will end it", "error", err, "limit", limit)
		}
		well = err == nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// selfCall asks the server for nothing (NULL), as any client can, over a connection that
// stays: a new one would take memory, of which there may be none.
type selfCall struct {
	addr  string
	valid func() bool // the lease
	nc    net.Conn
	buf   []byte
}

// newSelfCall is for a server that listens at addr.
func newSelfCall(addr net.Addr, valid func() bool) *selfCall {
	at := addr.(*net.TCPAddr).AddrPort()
	switch a := at.Addr(); {
	case a.IsUnspecified() && a.Is4():
		at = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port())
	case a.IsUnspecified():
		at = netip.AddrPortFrom(netip.IPv6Loopback(), at.Port())
	}
	return &selfCall{addr: at.String(), valid: valid, buf: make([]byte, 512)}
}

// call makes the call within d. After an error the next one connects again.
func (s *selfCall) call(d time.Duration) (err error) {
	if s.valid != nil && !s.valid() {
		return errors.New("it has no lease")
	}
	if s.nc == nil {
		if s.nc, err = net.DialTimeout("tcp", s.addr, d); err != nil {
			s.nc = nil
			return err
		}
	}
	err = s.nc.SetDeadline(time.Now().Add(d))
	if err == nil {
		c := sunrpc.Call{XID: rand.Uint32(), Prog: nfs3.Program, Vers: nfs3.Version, Proc: nfs3.ProcNull}
		_, err = sunrpc.Exchange(s.nc, &c, func(*xdr.Encoder) {}, s.buf)
	}
	if err != nil {
		s.nc.Close()
		s.nc = nil
	}
	return err
}
