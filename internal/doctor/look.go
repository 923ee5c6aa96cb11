package doctor

import "fmt"

// Facts is what was seen of a host.
type Facts struct {
	Kernel  Kernel   `json:"kernel"`
	Memory  Memory   `json:"memory"`
	Mounts  []Mount  `json:"mounts"`
	Servers []Server `json:"servers"`
	Swaps   []Swap   `json:"swaps"`
	Suspend Suspend  `json:"suspend"`
	// Unseen is what could not be looked at, in words.
	Unseen []string `json:"unseen"`
}

func (f *Facts) unseen(format string, args ...any) {
	f.Unseen = append(f.Unseen, fmt.Sprintf(format, args...))
}

// Look reads the facts. It fails only if the host cannot be looked at at all.
func Look(h *Host) (*Facts, error) {
	f := &Facts{Mounts: []Mount{}, Servers: []Server{}, Swaps: []Swap{}, Unseen: []string{}}
	own, err := h.mountTable("proc/self/mountinfo", nil)
	if err != nil {
		return nil, fmt.Errorf("cannot read the mount table: %w: mount /proc", err)
	}
	procs, err := h.processes(f)
	if err != nil {
		return nil, fmt.Errorf("cannot read the processes: %w: mount /proc", err)
	}
	f.Kernel = h.Kernel()
	f.Memory = h.memory()
	nets := h.networks(procs, f)
	f.Mounts = append(f.Mounts, h.nfsMounts(own, procs, nets, f)...)
	h.servers(procs, nets, f)
	f.Swaps = append(f.Swaps, h.swaps(own, f)...)
	f.Suspend = h.suspend()
	return f, nil
}
