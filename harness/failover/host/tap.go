package host

import (
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Tap returns a network device for a guest, connected to the switch under the guest's name.
// It is gone when the file, and what inherited it, is closed, or the switch is.
func (s *Switch) Tap(name string) (f *os.File, err error) {
	s.mu.Lock()
	s.n++
	port := fmt.Sprintf("p%d-%s", s.n, name)
	s.ports[name] = port
	s.mu.Unlock()
	err = s.inside(func() error {
		f, err = openTap(port)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("tap for %s: %w", name, err)
	}
	if err := s.batch("link set "+port+" master lan", "link set "+port+" up"); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openTap makes a device that carries the headers of virtio, as QEMU expects.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Listen returns a socket that listens at a port of the switch's own address.
func (s *Switch) Listen(port int) (f *os.File, err error) {
	err = s.inside(func() error {
		l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", s.network.Addr(), port))
		if err != nil {
			return err
		}
		defer l.Close()
		f, err = l.(*net.TCPListener).File()
		return err
	})
	return f, err
}

// inside calls f in the network of the switch.
func (s *Switch) inside(f func() error) error {
	there, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", s.PID()))
	if err != nil {
		return err
	}
	defer there.Close()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer here.Close()
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // a thread that does not find back is not used again
		if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
			errs <- fmt.Errorf("enter the network of the switch: %w", err)
			return
		}
		err := f()
		if unix.Setns(int(here.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		errs <- err
	}()
	return <-errs
}
