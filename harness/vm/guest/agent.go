package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	agent "loopnfs/harness/failover/host"
	"loopnfs/harness/vm/job"
)

// portDir is where serial ports are by their names.
const portDir = "/dev/virtio-ports"

// obey does what the host asks for, until this guest is killed.
func obey(name string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return err
	}
	if err := namePorts(); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(portDir, job.AgentPort), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return agent.Serve(f, f, plain)
}

// namePorts does what udev does elsewhere.
func namePorts() error {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil || len(names) == 0 {
		return fmt.Errorf("this guest has no serial ports: %w", err)
	}
	if err := os.MkdirAll(portDir, 0o755); err != nil {
		return err
	}
	for _, path := range names {
		name, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		device := "/dev/" + filepath.Base(filepath.Dir(path))
		if err := os.Symlink(device, filepath.Join(portDir, strings.TrimSpace(string(name)))); err != nil {
			return err
		}
	}
	return nil
}
