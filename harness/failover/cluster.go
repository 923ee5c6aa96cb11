package failover

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"loopnfs/harness"
	"loopnfs/harness/failover/host"
	"loopnfs/harness/vm"
	"loopnfs/scripts/cluster"
)

// Options say how a cluster is brought up.
type Options struct {
	// Exe is the loopnfs binary, which is what all hosts run.
	Exe string
	// Dir is where a directory for the cluster is made, on a disk.
	Dir string
	// Logs, if not empty, is a directory in which the logs of all hosts are kept.
	Logs string
	// Token is how long corosync waits for a sign of life.
	Token time.Duration
	// Lease is how long the lease on the disk holds without being renewed; 0 for none. A
	// takeover takes as much longer.
	Lease time.Duration
	// Crossing has two servers, with an export of a disk each, one on each node.
	Crossing bool
	// Guests, if not nil, has the nodes be guests of QEMU.
	Guests *Guests
	// Say is told, in a line, what is going on.
	Say func(format string, args ...any)
}

// Defaults. The network of the hosts is fast, so the token is short. The lease is not as
// short as it might be: who shares the machine may keep a server from renewing it.
const (
	DefaultToken = time.Second
	DefaultLease = 2 * time.Second
)

// The hosts, and the service.
const (
	node1, node2, client1 = "n1", "n2", "c1"
	exportName            = "/data"
	servicePort           = "2049"
	labDir                = "/run/lab"
	clusterDisk           = "/srv/shared"
)

var (
	network     = netip.MustParsePrefix("10.77.0.254/24") // of the switch, the witness
	serviceAddr = netip.MustParseAddr("10.77.0.10")
	moreAddr    = netip.MustParseAddr("10.77.0.11") // of the second export
	addrs       = map[string]netip.Addr{
		node1: netip.MustParseAddr("10.77.0.1"), node2: netip.MustParseAddr("10.77.0.2"), client1: netip.MustParseAddr("10.77.0.3"),
	}
	nodeNames = []string{node1, node2}
	hostNames = []string{node1, node2, client1}
)

func service() string { return serviceAddr.String() + ":" + exportName }

// initArgs is the command line that makes the program the init of a host.
var initArgs = []string{"failover", "host"}

const (
	upLimit   = 60 * time.Second
	shortCall = 10 * time.Second
)

// Cluster is two nodes that share a disk, an address and a server, and a client.
type Cluster struct {
	opt    Options
	ledger *harness.Ledger
	dir    string
	disk   *disk
	more   *disk // of the second export, if there is one
	net    *host.Switch
	power  *power
	events *timeline
	groups *groups

	mu     sync.Mutex
	hosts  map[string]*host.Host
	starts map[string]int
	played int // schedules
}

// Up brings a cluster up and returns when its service answers. Whatever happens,
// Down has to be called if the cluster is not nil.
func Up(ctx context.Context, opt Options) (*Cluster, error) {
	if err := checkTools(); err != nil {
		return nil, err
	}
	l, err := harness.NewLedger(opt.Dir)
	if err != nil {
		return nil, err
	}
	if err := cleanLeftovers(l.Dir); err != nil {
		opt.Say("%v", err)
	}
	c := &Cluster{
		opt: opt, ledger: l, dir: l.Dir, hosts: map[string]*host.Host{}, starts: map[string]int{},
		events: newTimeline(opt.Say), groups: newGroups(),
	}
	if opt.Guests != nil { // nothing of a guest is in a group
		c.groups = &groups{}
	}
	return c, c.up(ctx)
}

func (c *Cluster) up(ctx context.Context) (err error) {
	if c.disk, err = newDisk(c.dir); err != nil {
		return err
	}
	if c.opt.Crossing {
		if c.more, err = newDisk(c.dir); err != nil {
			return err
		}
	}
	c.disk.elsewhere = c.opt.Guests != nil
	if err := errors.Join(os.Mkdir(c.lab(), 0o755), cluster.Write(c.lab("setup")), c.writeSettings()); err != nil {
		return err
	}
	if c.opt.Guests != nil {
		if err := c.calmDown(); err != nil {
			return err
		}
		if err := vm.Prepare(ctx, c.opt.Guests.Kernel, c.opt.Guests.Tools.Guest, c.opt.Say); err != nil {
			return err
		}
	}
	if c.power, err = startPower(c.lab(), &power{off: c.off, isOn: c.isOn, event: c.events.note}); err != nil {
		return err
	}
	if c.net, err = host.StartSwitch(c.hostConfig("switch"), network, initArgs...); err != nil {
		return err
	}
	if err := c.each(ctx, hostNames, c.boot); err != nil {
		return err
	}
	c.events.note("the hosts are up")
	if err := c.each(ctx, nodeNames, c.startNode); err != nil {
		return err
	}
	if err := c.awaitService(ctx, c.upLimit()); err != nil {
		return err
	}
	c.events.note("the service answers at %s", service())
	return nil
}

// each does something to hosts at the same time.
func (c *Cluster) each(ctx context.Context, names []string, f func(ctx context.Context, name string) error) error {
	errs := make([]error, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() { errs[i] = f(ctx, name) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// lab returns a path of the directory that all hosts have as /run/lab.
func (c *Cluster) lab(elem ...string) string {
	return filepath.Join(append([]string{c.dir, "lab"}, elem...)...)
}

// writeSettings writes those of the install script.
func (c *Cluster) writeSettings() error {
	defaults, err := os.ReadFile(c.lab("setup", "cluster.env"))
	if err != nil {
		return err
	}
	settings := fmt.Sprintf("%s\nDEVICE=%s\nDIRECTORY=%s\nTOKEN=%d\nNODE1_ADDRESS=%s\nNODE2_ADDRESS=%s\nADDRESS=%s\nNAME=%s\nFENCE_DEVICE=%s\nFENCE_WITNESS=%s\nLEASE=%s\nOPTIONS='%s'\n",
		defaults, c.device(), clusterDisk, c.opt.Token.Milliseconds(), addrs[node1], addrs[node2], serviceAddr, exportName,
		c.fenceDevice(), network.Addr(), c.lease(), c.serveOptions())
	if c.more != nil {
		settings += fmt.Sprintf("LAYOUT=crossing\nDEVICE2=%s\nADDRESS2=%s\n", c.more.path, moreAddr)
	}
	return os.WriteFile(c.lab("setup", "settings"), []byte(settings), 0o644)
}

// devices returns the disks that both nodes have.
func (c *Cluster) devices() []string {
	if c.more == nil {
		return []string{c.disk.path}
	}
	return []string{c.disk.path, c.more.path}
}

// lease returns the path of the lease on the nodes; empty if there is none.
func (c *Cluster) lease() string {
	if c.opt.Lease == 0 {
		return ""
	}
	return clusterDisk + "/lease"
}

// serveOptions are flags of the servers. Clients are root, and not nobody.
func (c *Cluster) serveOptions() string {
	flags := "--locks --squash none"
	if c.opt.Lease != 0 {
		flags += fmt.Sprintf(" --lease-duration %v", c.opt.Lease)
	}
	return flags
}

func (c *Cluster) hostConfig(name string) host.Config {
	return host.Config{Name: name, Scratch: filepath.Join(c.dir, "scratch-"+name), Exe: c.opt.Exe}
}

// logDir is where the log files of a host are. They are there when it is gone.
func (c *Cluster) logDir(name string) string { return filepath.Join(c.dir, "log", name) }

// boot switches a host on and connects it.
func (c *Cluster) boot(ctx context.Context, name string) error {
	if err := os.MkdirAll(c.logDir(name), 0o755); err != nil {
		return err
	}
	if c.isGuest(name) {
		return c.bootGuest(ctx, name)
	}
	cfg := c.hostConfig(name)
	cfg.Binds = map[string]string{labDir: c.lab(), "/var/log": c.logDir(name)}
	if name != client1 {
		cfg.Devices = c.devices()
	}
	group, err := c.groups.make(name)
	if err != nil {
		return err
	}
	h, err := host.Start(cfg, group, initArgs...)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.hosts[name] = h
	c.starts[name]++
	c.mu.Unlock()
	return c.net.Connect(h, addrs[name])
}

// host returns a host; it may be gone.
func (c *Cluster) host(name string) *host.Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hosts[name]
}

// startNode starts the cluster software of a node.
func (c *Cluster) startNode(ctx context.Context, name string) error {
	h := c.host(name)
	if _, err := h.Run(ctx, "sh", "-c", labDir+"/setup/install "+labDir+"/setup/settings && install -d -o hacluster -g haclient -m 770 /var/log/pacemaker"); err != nil {
		return err
	}
	if err := c.replaceServer(ctx, h); err != nil {
		return err
	}
	// It locks all of its memory, the stacks of its threads at their full size, too.
	if _, err := h.Start("/var/log/corosync.out", "", append(c.launcher(name), "prlimit", "--stack=2097152", "corosync", "-f")...); err != nil {
		return err
	}
	for limit := time.Now().Add(c.upLimit()); ; time.Sleep(c.askEvery()) {
		_, err := h.Run(ctx, "corosync-cfgtool", "-s")
		if err == nil {
			break
		}
		if ctx.Err() != nil || time.Now().After(limit) {
			return fmt.Errorf("corosync does not start: %w", err)
		}
	}
	_, err := h.Start("/var/log/pacemaker.out", "", append(c.launcher(name), "env", "PCMK_logfile=/var/log/pacemaker/pacemaker.log", "pacemakerd", "-f")...)
	c.mu.Lock()
	first := c.starts[name] == 1
	c.mu.Unlock()
	if err == nil && first {
		c.events.follow(name, filepath.Join(c.logDir(name), "pacemaker", "pacemaker.log"))
	}
	return err
}

// awaitService waits until the client gets an answer.
func (c *Cluster) awaitService(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		_, err := c.host(client1).Run(ctx, c.question()...)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("the service does not answer within %v: %w", limit, err)
		}
		time.Sleep(c.askEvery())
	}
}

// off switches a node off and returns when it is gone.
func (c *Cluster) off(name string) error { return c.host(name).Kill() }

func (c *Cluster) isOn(name string) (on, known bool) {
	if _, node := addrs[name]; !node || name == client1 {
		return false, false
	}
	return !c.host(name).Gone(), true
}

// Down takes everything down: no process, mount, loop device or control group is left.
func (c *Cluster) Down() error {
	var errs []error
	if c.disk != nil {
		errs = append(errs, c.disk.resume(c.dir)) // or nobody who waits for it goes
	}
	c.mu.Lock()
	for _, h := range c.hosts {
		errs = append(errs, h.Kill())
	}
	c.mu.Unlock()
	if c.net != nil {
		errs = append(errs, c.net.Kill())
	}
	if c.power != nil {
		c.power.close()
	}
	c.events.stop()
	if c.opt.Logs != "" {
		errs = append(errs, c.copyLogs(c.opt.Logs))
	}
	for _, d := range []*disk{c.disk, c.more} {
		if d != nil {
			errs = append(errs, d.close())
		}
	}
	errs = append(errs, c.groups.remove())
	_, err := c.ledger.Clean()
	return errors.Join(append(errs, err)...)
}

// copyLogs keeps the logs of hosts and clients, in a directory of their own in to.
func (c *Cluster) copyLogs(to string) error {
	to = filepath.Join(to, time.Now().Format("20060102-150405.000"))
	from, err := filepath.Glob(c.lab("run-*"))
	from = append(from, filepath.Join(c.dir, "log"))
	for _, dir := range from {
		if _, statErr := os.Stat(dir); statErr == nil { // else it has not come that far
			err = errors.Join(err, os.CopyFS(filepath.Join(to, filepath.Base(dir)), os.DirFS(dir)))
		}
	}
	return err
}

// checkTools reports what is not installed.
func checkTools() error {
	if os.Geteuid() != 0 {
		return errors.New("hosts of namespaces need root")
	}
	var missing []string
	for cmd, pkg := range map[string]string{
		"/usr/sbin/corosync": "corosync", "/usr/sbin/pacemakerd": "pacemaker", "/usr/lib/ocf/resource.d/heartbeat/IPaddr2": "resource-agents",
		"/usr/sbin/nft": "nftables", "/usr/bin/arping": "iputils-arping", "/usr/sbin/mkfs.ext4": "e2fsprogs", "/usr/bin/nsenter": "util-linux",
		"/usr/bin/ss": "iproute2", "/usr/sbin/modprobe": "kmod", "/usr/bin/pgrep": "procps", "/dev/fuse": "fuse3",
	} {
		if _, err := os.Stat(cmd); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing: %s; run scripts/setup.sh cluster", strings.Join(missing, ", "))
	}
	return nil
}
