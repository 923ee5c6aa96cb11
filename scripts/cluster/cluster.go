// Package cluster carries what sets the nodes of a cluster up: the resource agents, the
// configuration of Corosync and Pacemaker, and the script that installs them. All tiers
// take them from here, and so may anybody by hand: see the file install.
package cluster

import (
	"embed"
	"io/fs"
	"os"
	"path/filepath"
)

//go:embed install cluster.env corosync.conf.in cib.xml.in cib-crossing.xml.in fence_loopnfs ocf
var files embed.FS

// Write writes the files to dir, which it makes.
func Write(dir string) error {
	return fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dir, path)
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		data, err := files.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, data, 0o755)
	})
}
