package doctor

import (
	"path"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Swap is a swap area.
type Swap struct {
	Path string `json:"path"`
	// Mount is the Key of the NFS mount that it lies on, directly or through
	// loop devices; empty if on none.
	Mount string `json:"mount,omitempty"`
	// Through is the file on that mount.
	Through string `json:"through,omitempty"`
}

// maxLayers of loop devices are followed.
const maxLayers = 8

// swaps reads /proc/swaps.
func (h *Host) swaps(own []*mountinfo.Info, f *Facts) []Swap {
	var list []Swap
	err := h.lines("proc/swaps", func(line string) bool {
		if name := firstField(line); strings.HasPrefix(name, "/") {
			s := Swap{Path: unescape(name)}
			s.Mount, s.Through = h.nfsBelow(s.Path, own)
			list = append(list, s)
		}
		return true
	})
	if err != nil {
		f.unseen("swap areas: %v", err)
	}
	return list
}

// nfsBelow returns the NFS mount that a file or device lies on in the end.
func (h *Host) nfsBelow(file string, own []*mountinfo.Info) (key, through string) {
	for range maxLayers {
		if dev, ok := strings.CutPrefix(file, "/dev/"); ok {
			backing, err := h.read("sys/block/" + path.Base(dev) + "/loop/backing_file")
			if err != nil {
				return "", ""
			}
			file = backing
		}
		m := mountOf(file, own)
		if m == nil {
			return "", ""
		}
		if isNFS(m) {
			mount := newMount(m, process{})
			return mount.Key(), file
		}
		file = m.Source
	}
	return "", ""
}

// mountOf returns the mount that a file is on: of the longest matching path, the
// last one.
func mountOf(file string, table []*mountinfo.Info) (best *mountinfo.Info) {
	for _, m := range table {
		at := strings.TrimSuffix(m.Mountpoint, "/")
		if (file == m.Mountpoint || strings.HasPrefix(file, at+"/")) && (best == nil || len(m.Mountpoint) >= len(best.Mountpoint)) {
			best = m
		}
	}
	return best
}

// unescape undoes what the kernel does to spaces in the names of /proc/swaps:
// a backslash and three octal digits.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1:i+4]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
		} else {
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func octal(s string) bool { return strings.Trim(s, "01234567") == "" && s[0] <= '3' }
