package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// serviceAddress is where the server is mounted; it moves with the service.
	serviceAddress = "10.9.9.9"
	serviceDevice  = "lo:1"
	// coldMiB is what is left of memory when the server is started: its arena and the
	// copy of the program (31), two processes, and what the kernel needs for them.
	coldMiB = 80
	// deadFor is at least for how long there is no server: as long as it takes until
	// the mount's pages fill the dirty limit.
	deadFor, deadLimit = 2 * time.Second, 15 * time.Second
	takeovers          = 2
)

// setServiceAddress brings the address here, or takes it away, without starting a program:
// there may be no memory for one.
func setServiceAddress(here bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(serviceDevice)
	if err != nil {
		return err
	}
	if !here {
		ifr.SetUint16(0) // an alias that is down is none
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
	}
	if err := ifr.SetInet4Addr([]byte{10, 9, 9, 9}); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCSIFADDR, ifr)
}

// comeHere has the server mounted as one that is elsewhere, and may come here: by the
// address of a service, and with nobody to cap the mount.
func (r *run) comeHere() error {
	r.server.address, r.server.lease, r.plain = serviceAddress, srv+"/lease", true
	return setServiceAddress(true)
}

// takeover lets the server die as a host does, with all that it had and kept, and starts
// another one when its client's pages have filled the dirty limit, and others the rest.
func (r *run) takeover() error {
	done := 0
	for ; done < takeovers && r.pause(2500*time.Millisecond); done++ {
		if err := r.takeOverOnce(); err != nil {
			return err
		}
	}
	r.note("the server was lost and another one started cold %d times", done)
	if done == 0 {
		return errors.New("the load ended before the server could be lost")
	}
	return nil
}

func (r *run) takeOverOnce() error {
	began := time.Now()
	if err := setServiceAddress(false); err != nil {
		return fmt.Errorf("take the address away: %w", err)
	}
	if err := r.server.die(); err != nil {
		return err
	}
	r.standStill()
	m := r.mem.read()
	filled := m.dirty + m.writeback
	rest, err := r.takeRest()
	if err != nil {
		return err
	}
	if rest != nil {
		defer rest.Process.Kill()
	}
	left := r.mem.read().available
	start := time.Now()
	if err := r.server.start(); err != nil {
		return fmt.Errorf("cold start with %d MiB of dirty pages, %d MiB left: %w", filled>>10, left>>10, err)
	}
	took := time.Since(start)
	if err := setServiceAddress(true); err != nil {
		return fmt.Errorf("bring the address here: %w", err)
	}
	r.note("%d MiB dirty or under way after %.1f s, %d MiB left for the start, which took %.1f s",
		filled>>10, start.Sub(began).Seconds(), left>>10, took.Seconds())
	return r.progress()
}

// standStill waits until the writers do not get on: their pages fill the dirty limit.
func (r *run) standStill() {
	last, since := int64(-1), time.Now()
	for end := time.Now().Add(deadLimit); time.Now().Before(end) && time.Since(since) < deadFor; time.Sleep(100 * time.Millisecond) {
		if n := r.worker.progress.Load().Written; n != last {
			last, since = n, time.Now()
		}
	}
}

// takeRest has somebody take all memory that can be had, but for coldMiB.
func (r *run) takeRest() (*exec.Cmd, error) {
	kb := r.mem.read().available - coldMiB<<10
	if kb <= 0 {
		return nil, nil
	}
	hog := plain(hogName, "hog", strconv.FormatInt(kb, 10))
	out, err := hog.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := hog.Start(); err != nil {
		return nil, err
	}
	go func() { _ = hog.Wait() }()
	return hog, within("taking the rest of memory", func() error {
		_, err := fmt.Fscanln(out, new(string))
		return err
	})
}

// progress waits until the writers get on again, or have ended; watch tells how long that
// may take.
func (r *run) progress() error {
	began, from := time.Now(), r.worker.progress.Load().Written
	for !r.worker.ended() {
		if r.worker.progress.Load().Written > from+1<<20 {
			r.note("the writers went on %.1f s after the address was here", time.Since(began).Seconds())
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil
}

// die ends the server with SIGKILL, whoever keeps it, too, and takes away what it has kept
// for a restart: the next one is on another host.
func (s *server) die() error {
	if s.cfg.Name == "knfsd" {
		return s.stop()
	}
	if err := unix.Kill(s.cmd.Process.Pid, unix.SIGKILL); err != nil {
		return fmt.Errorf("kill the server: %w", err)
	}
	<-s.done
	kept, _ := filepath.Glob("/dev/shm/loopnfs-*")
	for _, dir := range kept {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}
