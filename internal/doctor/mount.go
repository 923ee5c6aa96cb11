package doctor

import (
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Mount is an NFS mount: one superblock, wherever it is mounted.
type Mount struct {
	// Device is its number, like "0:45": the name of its backing device, too.
	Device string   `json:"device"`
	Paths  []string `json:"paths"`
	// Process is one in whose mount namespace the paths are; 0 for our own.
	Process int    `json:"process,omitempty"`
	Source  string `json:"source"`
	// Version of the protocol, like "3" or "4.2".
	Version   string `json:"version"`
	Transport string `json:"transport"`
	Address   string `json:"address"`
	Port      uint16 `json:"port"`
	Loopback  bool   `json:"loopback"`
	// Servers are the keys of those that listen there; loop-back mounts only.
	Servers []string `json:"servers,omitempty"`
	// MaxRatio is that of the backing device, percent of the dirty limit;
	// StrictLimit is 1 if it holds below the dirty limit, too. -1 if it cannot
	// be seen, or the kernel has no such thing (strict_limit: before 6.2).
	MaxRatio    int64 `json:"bdi_max_ratio"`
	StrictLimit int64 `json:"bdi_strict_limit"`

	net     string // name of its network namespace, as far as can be told
	sockets []socket
}

// Key names the mount as a Subject.
func (m *Mount) Key() string { return "mount " + m.Device }

// mountTable reads a file like /proc/self/mountinfo.
func (h *Host) mountTable(name string, filter mountinfo.FilterFunc) ([]*mountinfo.Info, error) {
	f, err := h.Root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mountinfo.GetMountsFromReader(io.LimitReader(f, maxStream), filter)
}

func isNFS(m *mountinfo.Info) bool { return m.FSType == "nfs" || m.FSType == "nfs4" }

func onlyNFS(m *mountinfo.Info) (skip, stop bool) { return !isNFS(m), false }

// nfsMounts returns the NFS mounts of our own mount namespace, and those that only
// others have.
func (h *Host) nfsMounts(own []*mountinfo.Info, procs []process, nets []network, f *Facts) []Mount {
	var list []Mount
	ownNS := h.link("proc/self/ns/mnt")
	add(&list, own, process{net: nets[0].name})
	seen := map[string]bool{"": true, ownNS: true}
	for _, p := range procs {
		if p.kernel || seen[p.mnt] {
			continue
		}
		if len(seen) > maxNamespaces {
			f.unseen("mount namespaces beyond the first %d", maxNamespaces)
			break
		}
		seen[p.mnt] = true
		table, err := h.mountTable(proc(p.pid, "mountinfo"), onlyNFS)
		if err != nil && !gone(err) {
			f.unseen("mounts of process %d: %v", p.pid, err)
		}
		add(&list, table, p)
	}
	for i := range list {
		list[i].place(nets)
		list[i].MaxRatio = h.number("sys/class/bdi/" + list[i].Device + "/max_ratio")
		list[i].StrictLimit = h.number("sys/class/bdi/" + list[i].Device + "/strict_limit")
	}
	return list
}

// add adds the NFS mounts of a table that p, or this process if it is none, sees.
func add(list *[]Mount, table []*mountinfo.Info, p process) {
	for _, m := range table {
		if !isNFS(m) {
			continue
		}
		device := deviceOf(m)
		i := slices.IndexFunc(*list, func(o Mount) bool { return o.Device == device })
		if i < 0 {
			i = len(*list)
			*list = append(*list, newMount(m, p))
		}
		if at := &(*list)[i]; at.Process == p.pid {
			at.Paths = append(at.Paths, m.Mountpoint)
		}
	}
}

// deviceOf returns the device number of a mount, as /sys/class/bdi writes it.
func deviceOf(m *mountinfo.Info) string { return strconv.Itoa(m.Major) + ":" + strconv.Itoa(m.Minor) }

func newMount(info *mountinfo.Info, p process) Mount {
	m := Mount{
		Device: deviceOf(info), Process: p.pid, Source: info.Source, net: p.net,
		Version: strings.TrimPrefix(info.FSType, "nfs"), Transport: "tcp", Port: nfsPort,
	}
	for opt := range strings.SplitSeq(info.VFSOptions, ",") {
		key, value, _ := strings.Cut(opt, "=")
		switch key {
		case "vers":
			m.Version = value
		case "proto":
			m.Transport = strings.TrimSuffix(value, "6")
		case "addr":
			m.Address = value
		case "port":
			if n, err := strconv.ParseUint(value, 10, 16); err == nil && n != 0 {
				m.Port = uint16(n)
			}
		}
	}
	return m
}

// place finds out whether the server's address is one of this host, and which
// sockets answer there. A loop-back address is that of the mount's own network
// namespace; any other may belong to one next door.
func (m *Mount) place(nets []network) {
	a, err := netip.ParseAddr(m.Address)
	if err != nil {
		return
	}
	a = a.Unmap().WithZone("")
	for i := range nets {
		if !nets[i].has(a) || a.IsLoopback() && nets[i].name != m.net {
			continue
		}
		m.Loopback = true
		m.sockets = append(m.sockets, nets[i].listeners(m.Transport, netip.AddrPortFrom(a, m.Port))...)
	}
}
