package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/internal/nfs3"
)

// limits is what TCP on the loop-back interface gives, with a program at the other end
// that does nothing else: no NFS server can do better.
type limits struct {
	Stream  float64 `json:"stream_mb_s"`   // as much as there is, one way
	Round   float64 `json:"round_trips_s"` // 128 bytes there and back, one at a time
	Batched float64 `json:"null_s"`        // NULL, answered from a constant, 32 outstanding
}

// How the other end is to behave: the first byte that it gets.
const (
	peerSends  = 's'
	peerEchoes = 'e'
	peerNulls  = 'n'
)

const roundBytes = 128

// measureLimits takes a little more than three times d.
func measureLimits(d time.Duration) (l limits, err error) {
	self, err := os.Executable()
	if err != nil {
		return l, err
	}
	peer := exec.Command(self, "-tcp-peer")
	stdin, err := peer.StdinPipe() // it ends with us
	if err != nil {
		return l, err
	}
	stdout, err := peer.StdoutPipe()
	if err != nil {
		return l, err
	}
	if err := peer.Start(); err != nil {
		return l, err
	}
	defer func() { stdin.Close(); err = errors.Join(err, peer.Wait()) }()
	var addr string
	if _, err := fmt.Fscan(stdout, &addr); err != nil {
		return l, fmt.Errorf("the other end of the TCP limit: %w", err)
	}
	if l.Stream, err = streamLimit(addr, d); err != nil {
		return l, err
	}
	if l.Round, err = roundLimit(addr, d); err != nil {
		return l, err
	}
	l.Batched, err = nullLimit(addr, d)
	return l, err
}

func streamLimit(addr string, d time.Duration) (float64, error) {
	c, err := dial(addr)
	if err != nil {
		return 0, err
	}
	defer c.close()
	if err := writeAll(c.fd, []byte{peerSends}); err != nil {
		return 0, err
	}
	start, sum := time.Now(), 0
	for time.Since(start) < d {
		n, err := read(c.fd, c.in)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return float64(sum) / 1e6 / time.Since(start).Seconds(), nil
}

func roundLimit(addr string, d time.Duration) (float64, error) {
	c, err := dial(addr)
	if err != nil {
		return 0, err
	}
	defer c.close()
	msg, n, start := make([]byte, roundBytes), 0, time.Now()
	msg[0] = peerEchoes
	for ; time.Since(start) < d; n++ {
		if err := writeAll(c.fd, msg); err != nil {
			return 0, err
		}
		if got, err := read(c.fd, c.in); err != nil || got != roundBytes {
			return 0, fmt.Errorf("echo: %d bytes, %w", got, err)
		}
	}
	return float64(n) / time.Since(start).Seconds(), nil
}

func nullLimit(addr string, d time.Duration) (float64, error) {
	c, err := dial(addr)
	if err != nil {
		return 0, err
	}
	defer c.close()
	if err := writeAll(c.fd, []byte{peerNulls}); err != nil {
		return 0, err
	}
	rec := record(nfs3.ProcNull, nothing{}, nil)
	t, err := c.run(&load{window: 32, next: always(rec), until: time.Now().Add(d), noStatus: true})
	if err != nil {
		return 0, err
	}
	return t.rate(), nil
}

// tcpPeer is the other end, until standard input ends.
func tcpPeer() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for {
		nc, err := l.Accept()
		if err != nil {
			return err
		}
		f, err := nc.(*net.TCPConn).File()
		if err != nil {
			return err
		}
		nc.Close()
		if err := unix.SetNonblock(int(f.Fd()), false); err != nil {
			return err
		}
		go func() {
			defer f.Close()
			behave(int(f.Fd()))
		}()
	}
}

func behave(fd int) {
	buf := make([]byte, ioSize)
	n, err := read(fd, buf)
	if err != nil || n == 0 {
		return
	}
	switch buf[0] {
	case peerSends:
		for writeAll(fd, buf) == nil {
		}
	case peerEchoes:
		for n == roundBytes && writeAll(fd, buf[:n]) == nil {
			n, _ = read(fd, buf)
		}
	case peerNulls:
		answerNulls(fd, buf, copy(buf, buf[1:n]))
	}
}

// answerNulls answers all records that are there with one write.
func answerNulls(fd int, buf []byte, have int) {
	reply := make([]byte, 28)
	reply[0], reply[3], reply[11] = 0x80, 24, 1
	size := len(record(nfs3.ProcNull, nothing{}, nil))
	var out bytes.Buffer
	for {
		done := 0
		for ; have-done >= size; done += size {
			copy(reply[4:8], buf[done+4:])
			out.Write(reply)
		}
		if writeAll(fd, out.Bytes()) != nil {
			return
		}
		out.Reset()
		have = copy(buf, buf[done:have])
		n, err := read(fd, buf[have:])
		if err != nil || n == 0 {
			return
		}
		have += n
	}
}
