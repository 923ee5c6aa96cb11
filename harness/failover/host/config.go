package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Config is what a host is like; it crosses to its init as JSON.
type Config struct {
	Name string
	// Scratch is an empty directory, on which the host mounts its own tmpfs.
	Scratch string
	// Exe is the program; it is /usr/sbin/loopnfs in the host.
	Exe string
	// Binds are directories of this machine that are in the host, too, by their path there.
	Binds map[string]string
	// Devices are block devices that are in the host, too.
	Devices []string
}

// Validate reports the first thing wrong with c.
func (c *Config) Validate() error {
	switch {
	case c.Name == "":
		return errors.New("host: no name")
	case !filepath.IsAbs(c.Scratch) || !filepath.IsAbs(c.Exe):
		return errors.New("host: scratch directory and program need absolute paths")
	}
	return nil
}

// The path of the program in a host.
const exePath = "/usr/sbin/loopnfs"

// EndsLog is the file in /var/log of a host that names whoever has not ended well, of those
// that had no parent any more.
const EndsLog = "ends.log"

// request is what the agent is to do.
type request struct {
	ID   int
	Argv []string `json:",omitempty"`
	In   string   `json:",omitempty"`
	// Output has the process run by itself: its output goes to this file, and the reply,
	// with its number, comes at once. Another reply comes when it has ended.
	Output string `json:",omitempty"`
	// Signal is sent to the process PID of the host, instead of starting one.
	PID, Signal int `json:",omitempty"`
	// Clock asks for the time of CLOCK_MONOTONIC, and Time sets that of CLOCK_REALTIME.
	Clock bool  `json:",omitempty"`
	Time  int64 `json:",omitempty"`
}

// reply is what came of it.
type reply struct {
	ID    int
	PID   int    `json:",omitempty"` // of a process that runs by itself
	Ended bool   `json:",omitempty"` // it has
	Code  int    `json:",omitempty"`
	Out   string `json:",omitempty"`
	Err   string `json:",omitempty"`
	Clock int64  `json:",omitempty"`
}

// readConfig reads the configuration from the environment variable that init passes on
// to itself.
func readConfig() (c Config, err error) {
	if err := json.Unmarshal([]byte(os.Getenv(configEnv)), &c); err != nil {
		return c, fmt.Errorf("%s: %w", configEnv, err)
	}
	return c, c.Validate()
}

const (
	configEnv = "LOOPNFS_HOST"
	// stageEnv says how far init is.
	stageEnv = "LOOPNFS_HOST_STAGE"
)
