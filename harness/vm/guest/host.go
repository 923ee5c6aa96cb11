package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"loopnfs/harness/vm/job"
)

// host is the line to the host; before openHost, the console.
var host struct {
	mu  sync.Mutex
	enc *json.Encoder
}

func openHost() error {
	f, err := os.OpenFile(hostPort, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return err
	}
	t.Oflag &^= unix.OPOST
	t.Lflag = 0
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return err
	}
	host.enc = json.NewEncoder(f)
	return nil
}

// say tells the host something.
func say(e job.Event) {
	host.mu.Lock()
	defer host.mu.Unlock()
	if host.enc == nil {
		fmt.Printf("guest: %+v\n", e)
		return
	}
	_ = host.enc.Encode(e) // there is nobody else to tell
}

func sayf(format string, args ...any) { say(job.Event{Say: fmt.Sprintf(format, args...)}) }
