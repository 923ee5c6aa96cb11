package vm

import (
	"fmt"
	"os"
	"path/filepath"
)

// Tools are the programs that go into a guest. They are static, and lie beside
// the program that runs.
type Tools struct {
	Guest   string // its init
	Loopnfs string
	Gonfs   string // a server that embeds go-nfs
}

// FindTools returns the tools, or an error that says how to build them.
func FindTools() (*Tools, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(exe)
	t := &Tools{filepath.Join(dir, "loopnfs-guest"), filepath.Join(dir, "loopnfs"), filepath.Join(dir, "loopnfs-gonfs")}
	for _, path := range []string{t.Guest, t.Loopnfs, t.Gonfs} {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("%s, which guests need, is missing: run make build", path)
		}
	}
	return t, nil
}

// Files returns what a guest finds in job.Dir.
func (t *Tools) Files() map[string]string {
	return map[string]string{"loopnfs": t.Loopnfs, "gonfs": t.Gonfs}
}

// AllModules returns the names of the modules that any of the drills needs.
func AllModules() []string {
	return []string{"nfs", "nfsv3", "nfsd", "fuse", "nbd", "xfs", "virtio_net"}
}
