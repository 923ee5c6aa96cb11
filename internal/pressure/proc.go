package pressure

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// procSource reads /proc.
type procSource struct {
	meminfo int
	psi     int   // -1 if the kernel has none
	reserve int64 // bytes
	buf     [8 << 10]byte
	poll    [1]unix.PollFd
}

// triggers are what the kernel is asked to tell, the first that it accepts: some
// task has stalled for so many µs within a window of so many. Short windows need
// CAP_SYS_RESOURCE.
var triggers = []string{"some 50000 500000\x00", "some 200000 2000000\x00"}

// openProc opens what is needed under dir. Without PSI it goes on.
func openProc(dir string) (*procSource, error) {
	fd, err := unix.Open(dir+"/meminfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot see how much memory there is: %s/meminfo: %w", dir, err)
	}
	p := &procSource{meminfo: fd, psi: openPSI(dir + "/pressure/memory"), reserve: minFree(dir)}
	p.poll[0] = unix.PollFd{Fd: int32(p.psi), Events: unix.POLLPRI}
	return p, nil
}

// minFree returns vm.min_free_kbytes in bytes, 0 if it cannot be read.
func minFree(dir string) int64 {
	b, err := os.ReadFile(dir + "/sys/vm/min_free_kbytes")
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 40)
	if err != nil {
		return 0
	}
	return n << 10
}

// openPSI returns a descriptor that polls POLLPRI when tasks stall, or -1.
func openPSI(name string) int {
	for _, trigger := range triggers {
		fd, err := unix.Open(name, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1
		}
		if _, err := unix.Write(fd, []byte(trigger)); err == nil {
			return fd
		}
		unix.Close(fd)
	}
	return -1
}

// Wait implements Source. Without PSI poll(2) ignores the descriptor and sleeps.
func (p *procSource) Wait(d time.Duration) bool {
	n, err := unix.Poll(p.poll[:], int(d/time.Millisecond))
	if err != nil || n == 0 {
		return false
	}
	if p.poll[0].Revents&unix.POLLPRI != 0 {
		return true
	}
	p.closePSI() // POLLERR: it tells nothing any more
	return false
}

// Read implements Source.
func (p *procSource) Read(s *Sample) error {
	n, err := unix.Pread(p.meminfo, p.buf[:], 0)
	if err != nil {
		return err
	}
	err = s.parse(p.buf[:n])
	s.Reserve = p.reserve
	return err
}

// Close implements Source.
func (p *procSource) Close() error {
	p.closePSI()
	return unix.Close(p.meminfo)
}

func (p *procSource) closePSI() {
	if p.psi >= 0 {
		unix.Close(p.psi)
		p.psi, p.poll[0].Fd = -1, -1
	}
}

var errMeminfo = errors.New("/proc/meminfo does not tell MemTotal, MemAvailable, Dirty and Writeback")

// parse reads /proc/meminfo. It allocates nothing.
func (s *Sample) parse(text []byte) error {
	*s = Sample{}
	found := 0
	for line := range bytes.Lines(text) {
		key, rest, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		to, need := s.field(key)
		if to == nil {
			continue
		}
		n, ok := kibibytes(rest)
		if !ok {
			return errMeminfo
		}
		*to += n
		if need {
			found++
		}
	}
	if found != 4 || s.Total == 0 {
		return errMeminfo
	}
	return nil
}

// field returns where the value of a line goes, and whether there must be one.
func (s *Sample) field(key []byte) (to *int64, need bool) {
	switch string(key) {
	case "MemTotal":
		return &s.Total, true
	case "MemAvailable":
		return &s.Available, true
	case "MemFree":
		return &s.Unused, false
	case "Dirty", "Writeback":
		return &s.Unclean, true
	case "NFS_Unstable":
		return &s.Unclean, false
	}
	return nil, false
}

// kibibytes reads "   1234 kB\n" and returns bytes.
func kibibytes(b []byte) (n int64, ok bool) {
	b, ok = bytes.CutSuffix(bytes.TrimSpace(b), []byte(" kB"))
	if !ok || len(b) == 0 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' || n > math.MaxInt64>>16 {
			return 0, false
		}
		n = 10*n + int64(c-'0')
	}
	return n << 10, true
}
