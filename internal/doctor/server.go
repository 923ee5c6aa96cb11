package doctor

import (
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"loopnfs/internal/hostguard"
	"loopnfs/internal/memgroup"
)

// Server is an NFS server on this host.
type Server struct {
	// PID of its process; 0 for the kernel's.
	PID  int    `json:"pid"`
	Name string `json:"name"`
	// Unit is the systemd service that it belongs to, if any.
	Unit string `json:"unit,omitempty"`
	// Loopback says that a mount of this host is served by it.
	Loopback bool `json:"loopback"`
	Threads  int  `json:"threads"`
	// NoIO and LocalThrottle are how many of the threads have PF_MEMALLOC_NOIO
	// and PF_LOCAL_THROTTLE. The kernel's have the latter during a local WRITE.
	NoIO          int `json:"memalloc_noio"`
	LocalThrottle int `json:"local_throttle"`
	// Apart is how many of loopnfs are without them on purpose.
	Apart         int   `json:"apart"`
	LockedBytes   int64 `json:"locked_bytes"`
	ResidentBytes int64 `json:"resident_bytes"`
	SwapBytes     int64 `json:"swap_bytes"`
	OOMScoreAdj   int   `json:"oom_score_adj"`
	// Group is its control group for memory, GroupLimit the limit of that or of one above
	// it, in bytes: empty and 0 if there is none, or it cannot be seen.
	Group      string `json:"group,omitempty"`
	GroupLimit int64  `json:"group_limit_bytes,omitempty"`
	// ReclaimsGroup says that it has what frees memory of the group open.
	ReclaimsGroup bool `json:"reclaims_group,omitempty"`
}

// knfsd is the Key of the kernel's server.
const knfsd = "server knfsd"

// Key names the server as a Subject.
func (s *Server) Key() string {
	if s.Kernel() {
		return knfsd
	}
	return "server " + strconv.Itoa(s.PID)
}

// Kernel reports whether it is the kernel's own.
func (s *Server) Kernel() bool { return s.PID == 0 }

// Guarded reports whether every thread is an I/O flusher, but for those that stand apart.
func (s *Server) Guarded() bool {
	n := s.Threads - s.Apart
	return n > 0 && s.NoIO == n && s.LocalThrottle == n
}

// servers finds the servers of the loop-back mounts, and those that wait for
// clients at the port of NFS.
func (h *Host) servers(procs []process, nets []network, f *Facts) {
	inodes := map[string]bool{}
	for i := range nets {
		for _, s := range nets[i].sockets {
			if s.proto == "tcp" && s.addr.Port() == nfsPort {
				inodes[s.inode] = true
			}
		}
	}
	for i := range f.Mounts {
		for _, s := range f.Mounts[i].sockets {
			inodes[s.inode] = true
		}
	}
	owners, hidden := h.socketOwners(procs, inodes)
	if hidden > 0 && len(inodes) > 0 {
		f.unseen("which sockets belong to %d processes of others: run this as root", hidden)
	}
	kernel := h.kernelServer(procs)
	for i := range f.Mounts {
		m := &f.Mounts[i]
		for _, s := range m.sockets {
			h.addServers(f, owners[s.inode], m)
			if len(owners[s.inode]) == 0 && kernel != nil && (hidden == 0 || h.kernelListens(s)) {
				f.addServer(*kernel, m)
			}
		}
		if m.Transport == "rdma" && kernel != nil { // it has no socket
			f.addServer(*kernel, m)
		}
	}
	for inode := range inodes {
		h.addServers(f, owners[inode], nil)
	}
	if kernel != nil {
		f.addServer(*kernel, nil)
	}
	slices.SortFunc(f.Servers, func(a, b Server) int { return a.PID - b.PID })
}

func (h *Host) addServers(f *Facts, procs []process, m *Mount) {
	for _, p := range procs {
		s, err := h.server(p)
		if err == nil {
			f.addServer(s, m)
		} else if !gone(err) {
			f.unseen("%v", err)
		}
	}
}

// addServer adds s, unless it is known, and that m is served by it, if m is not nil.
func (f *Facts) addServer(s Server, m *Mount) {
	i := slices.IndexFunc(f.Servers, func(o Server) bool { return o.PID == s.PID })
	if i < 0 {
		i = len(f.Servers)
		f.Servers = append(f.Servers, s)
	}
	if m == nil {
		return
	}
	f.Servers[i].Loopback = true
	if key := s.Key(); !slices.Contains(m.Servers, key) {
		m.Servers = append(m.Servers, key)
	}
}

func (h *Host) server(p process) (Server, error) {
	procFS, err := fs.Sub(h.Root, "proc")
	if err != nil {
		return Server{}, err
	}
	a, err := hostguard.AuditFS(procFS, p.pid)
	s := Server{
		PID: a.PID, Name: p.name, Unit: h.unit(p.pid), Threads: a.Threads, NoIO: a.NoIO, LocalThrottle: a.LocalThrottle, Apart: a.Apart,
		LockedBytes: a.LockedBytes, ResidentBytes: a.ResidentBytes, SwapBytes: a.SwapBytes, OOMScoreAdj: a.OOMScoreAdj,
	}
	h.limits(&s)
	return s, err
}

// limits finds the limit of memory of a server's control group, if there is one that can
// be seen.
func (h *Host) limits(s *Server) {
	g, err := memgroup.Find(h.Root, strconv.Itoa(s.PID))
	if err != nil || g.Limit == memgroup.Unlimited {
		return
	}
	s.Group, s.GroupLimit = g.Dir, g.Limit
	dir := proc(s.PID, "fd")
	fds, _ := h.names(dir)
	s.ReclaimsGroup = slices.ContainsFunc(fds, func(fd string) bool {
		return path.Base(h.link(dir+"/"+fd)) == path.Base(g.ReclaimFile())
	})
}

// kernelServer returns the kernel's server, nil if it does not run.
func (h *Host) kernelServer(procs []process) *Server {
	s := Server{Name: "knfsd"}
	for _, p := range procs {
		if p.kernel && p.name == "nfsd" {
			s.Threads++
		}
	}
	if s.Threads == 0 {
		return nil
	}
	return &s
}

// kernelListens reports whether the kernel's server says that a socket is its own.
func (h *Host) kernelListens(s socket) (yes bool) {
	_ = h.lines("proc/fs/nfsd/portlist", func(line string) bool {
		yes = line == s.proto+" "+strconv.Itoa(int(s.addr.Port()))
		return !yes
	})
	return yes
}

// unit returns the systemd service of a process, by its control group.
func (h *Host) unit(pid int) (unit string) {
	_ = h.lines(proc(pid, "cgroup"), func(line string) bool {
		for part := range strings.SplitSeq(line, "/") {
			if strings.HasSuffix(part, ".service") && safeWord(part) {
				unit = part
			}
		}
		return unit == ""
	})
	return unit
}
