package failover

import (
	_ "embed"

	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"loopnfs/harness"
	"loopnfs/harness/failover/host"
	"loopnfs/harness/vm"
	"loopnfs/harness/vm/job"
)

// Guests has the nodes be guests of QEMU, with a kernel, a memory and a superblock of their
// own each, which mount the export with the kernel's client. The other hosts stay what they
// are.
type Guests struct {
	// Kernel is the version of their kernel, or the beginning of one.
	Kernel string
	// MemoryMiB is how much memory each has.
	MemoryMiB int
	// MaxGap is how long clients may have to wait in a takeover, with the machine to
	// themselves.
	MaxGap time.Duration
	// Server is loopnfs, or another one in its place: knfsd.
	Server string
	Tools  *vm.Tools
}

// Limits of guests, which may be emulated on a busy machine.
const (
	guestLife = 30 * time.Minute
	guestUp   = 4 * time.Minute
	// guestDiskMiB is of the disk that every guest has, and which nodes do not use.
	guestDiskMiB = 16
	// hungSeconds is when the kernel of a guest says that a task hangs.
	hungSeconds = 10
)

// GuestServers are those that nodes can have.
var GuestServers = []string{"loopnfs", "knfsd"}

// GuestSchedule is what happens to guests if nothing else is chosen.
func GuestSchedule(seed int64) ([]Schedule, error) {
	s := Schedule{Seed: seed}
	for _, name := range []string{"clock-jump", "starved-survivor"} {
		f, err := FindFault(name)
		if err != nil {
			return nil, err
		}
		s.Faults = append(s.Faults, f)
	}
	return []Schedule{s}, nil
}

// GuestMemory is what a node has: a kernel leaves 215 MiB of it, and the software of the
// cluster 85 to 100 of those.
const GuestMemory = 256 << 20

// GuestGap is how long clients may have to wait if the machine emulates its guests.
const GuestGap = 45 * time.Second

// GuestToken is how long guests wait for a sign of life: one that is emulated may stand
// still for a second or two because its machine is busy.
const GuestToken = 3 * time.Second

// The device of the shared disk in a guest, and the port of the first monitor.
const (
	guestDisk    = "/dev/vdd"
	monitorPort1 = 4001
)

// logPorts are the logs of the clients of a guest, each of which has a serial port: a file
// of the guest would be lost with it.
var logPorts = []string{"names", "data", "stream"}

// guestModules are what the nodes of a cluster need.
var guestModules = []string{"nfs", "nfsv3", "nfsd", "fuse", "virtio_net", "nf_tables", "inet_diag", "tcp_diag"}

// knfsdAgent is the agent that has the kernel's server in the place of ours.
//
//go:embed knfsd
var knfsdAgent string

// others reports whether the server is not ours. Then clients are on the nodes only: the
// others speak to the one port of ours.
func (c *Cluster) others() bool { return c.opt.Guests != nil && c.opt.Guests.Server != "loopnfs" }

// clientHosts are those on which clients work.
func (c *Cluster) clientHosts() []string {
	if c.others() {
		return nodeNames
	}
	return hostNames
}

// replaceServer has a node start the server of others.
func (c *Cluster) replaceServer(ctx context.Context, h *host.Host) error {
	if !c.others() {
		return nil
	}
	const agent = "/usr/lib/ocf/resource.d/loopnfs/server"
	_, err := h.RunWith(ctx, knfsdAgent, "sh", "-c", "mv "+agent+" "+agent+".ours && cat >"+agent+" && chmod 755 "+agent)
	return err
}

// askEvery is how long a client waits before it asks again.
func (c *Cluster) askEvery() time.Duration {
	if c.opt.Guests == nil {
		return 100 * time.Millisecond
	}
	return 500 * time.Millisecond // an emulator wants the processor
}

// question is how a client finds out whether the service answers.
func (c *Cluster) question() []string {
	if c.others() {
		return []string{"timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/" + serviceAddr.String() + "/" + servicePort}
	}
	return []string{"loopnfs", "ping", service(), "--timeout", "1s"}
}

// mountGuest mounts the export with the kernel's client of a guest.
func (c *Cluster) mountGuest(ctx context.Context, name string) error {
	argv := []string{"loopnfs", "mount", service(), mountpoint, "--via", "kernel", "--loop-back", "--timeout", "45s"}
	if c.others() {
		argv = []string{"mount", "-t", "nfs", "-o", "vers=3,nolock,proto=tcp,hard,port=" + servicePort + ",mountproto=tcp,mountport=20048",
			serviceAddr.String() + ":" + clusterDisk + "/export", mountpoint}
	}
	_, err := c.host(name).Run(ctx, argv...)
	return err
}

func (c *Cluster) isGuest(name string) bool { return c.opt.Guests != nil && name != client1 }

func monitorPort(name string) int {
	if name == node1 {
		return monitorPort1
	}
	return monitorPort1 + 1
}

// fenceDevice is the power switch, for the fencing agent.
func (c *Cluster) fenceDevice() string {
	if c.opt.Guests == nil {
		return labDir + "/" + powerSocket
	}
	m := monitors{}
	for _, name := range nodeNames {
		m[name] = fmt.Sprintf("%s:%d", network.Addr(), monitorPort(name))
	}
	return m.String()
}

// device is the disk, as the nodes see it.
func (c *Cluster) device() string {
	if c.opt.Guests == nil {
		return c.disk.path
	}
	return guestDisk
}

// upLimit is how long something may take that involves a node which starts.
func (c *Cluster) upLimit() time.Duration {
	if c.opt.Guests == nil {
		return upLimit
	}
	return guestUp
}

// recoverLimit is how long the service, and each client, may need to go on. It is longer
// than guests are allowed to take, so that what they took is known.
func (c *Cluster) recoverLimit() time.Duration {
	if c.opt.Guests == nil {
		return recoverLimit
	}
	return max(3*recoverLimit, 3*c.opt.Guests.MaxGap)
}

func (c *Cluster) endLimit() time.Duration {
	if c.opt.Guests == nil {
		return endLimit
	}
	return 3 * endLimit
}

// checkGap reports clients of guests that our server did not answer for too long. A machine on
// which others want to compute, too, has as many times longer as there are tasks for each
// of its processors: all that a guest does is computed.
func (c *Cluster) checkGap(res *harness.Result) error {
	if c.opt.Guests == nil {
		return nil
	}
	busy, err := perProcessor()
	if err != nil {
		return err
	}
	limit := min(time.Duration(float64(c.opt.Guests.MaxGap)*busy), c.recoverLimit()).Round(time.Second)
	res.Notes = append(res.Notes, fmt.Sprintf("clients may wait for %v on a machine with %.1f tasks for each processor", limit, busy))
	if gap := time.Duration(res.StallMs) * time.Millisecond; gap > limit && !c.others() {
		return fmt.Errorf("clients waited for %v; %v are allowed", gap, limit)
	}
	return nil
}

// perProcessor is how many tasks there were for each processor in the last minutes, at least
// 1.
func perProcessor() (float64, error) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, err
	}
	var minute, five float64
	if _, err := fmt.Sscan(string(text), &minute, &five); err != nil {
		return 0, fmt.Errorf("/proc/loadavg: %w", err)
	}
	return max(1, five/float64(runtime.NumCPU())), nil
}

// bootGuest switches a node on that is a guest.
func (c *Cluster) bootGuest(ctx context.Context, name string) error {
	c.mu.Lock()
	c.starts[name]++
	start := c.starts[name]
	c.mu.Unlock()
	cfg, agent, err := c.guestConfig(name, start)
	if err != nil {
		return err
	}
	life, kill := context.WithCancel(context.WithoutCancel(ctx))
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if _, err := vm.Run(life, *cfg); life.Err() == nil {
			c.events.note("%s has ended: %v", name, err)
		}
	}()
	h := host.Remote(name, agent, kill, func() {
		<-gone
		agent.Close()
	})
	c.mu.Lock()
	c.hosts[name] = h
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, guestUp)
	defer cancel()
	return c.setUpGuest(ctx, h, start)
}

// guestConfig describes a guest, and returns the line to its agent.
func (c *Cluster) guestConfig(name string, start int) (cfg *vm.Config, agent *os.File, err error) {
	g := c.opt.Guests
	files := map[string]string{"loopnfs": g.Tools.Loopnfs, "setup.tar": filepath.Join(c.dir, "setup.tar")}
	if err := c.packSetup(files["setup.tar"]); err != nil {
		return nil, nil, err
	}
	tap, err := c.net.Tap(name)
	if err != nil {
		return nil, nil, err
	}
	monitor, err := c.net.Listen(monitorPort(name))
	if err != nil {
		return nil, nil, err
	}
	near, far, err := socketPair()
	if err != nil {
		return nil, nil, err
	}
	ports := []vm.Port{{Name: job.AgentPort, Socket: far}, {Name: "log", File: filepath.Join(c.logDir(name), "pacemaker", "pacemaker.log")}}
	for _, kind := range logPorts {
		ports = append(ports, vm.Port{Name: kind, File: c.portFile(name, start, kind)})
	}
	for _, p := range ports[1:] {
		err = errors.Join(err, os.MkdirAll(filepath.Dir(p.File), 0o755))
	}
	b := addrs[name].As4()
	return &vm.Config{
		Kernel: g.Kernel, MemoryMiB: g.MemoryMiB, CPUs: 1, DiskMiB: guestDiskMiB, Init: g.Tools.Guest,
		Job: job.Job{Agent: true, Host: name, Modules: guestModules}, Files: files, Limit: guestLife,
		Devices: vm.Devices{
			Tap: tap, MAC: fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3]),
			Shared: c.disk.path, Ports: ports, Monitor: monitor,
		},
		Handle: func(job.Event) {}, Say: c.opt.Say, Console: c.console(name, start),
	}, near, err
}

// portFile is where the machine keeps what a guest logs.
func (c *Cluster) portFile(name string, start int, kind string) string {
	return filepath.Join(c.dir, "ports", fmt.Sprintf("%s.%d.%s", name, start, kind))
}

// console returns what keeps the messages of a guest's kernel.
func (c *Cluster) console(name string, start int) consoleFile {
	return consoleFile(filepath.Join(c.logDir(name), fmt.Sprintf("console.%d", start)))
}

type consoleFile string

func (f consoleFile) Write(b []byte) (int, error) {
	file, err := os.OpenFile(string(f), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return 0, err
	}
	n, err := file.Write(b)
	return n, errors.Join(err, file.Close())
}

// socketPair returns two connected sockets, the first for use by this program.
func socketPair() (near, far *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(pair[0], true); err != nil { // so that a read ends when it is closed
		return nil, nil, err
	}
	return os.NewFile(uintptr(pair[0]), "agent"), os.NewFile(uintptr(pair[1]), "guest"), nil
}

// calm has Pacemaker look less often, and wait longer: an emulated processor would do
// nothing else. A node that dies is noticed by Corosync.
var calm = strings.NewReplacer(
	`interval="1s"`, `interval="11s"`, `interval="2s"`, `interval="12s"`, `interval="10s"`, `interval="30s"`,
	`timeout="10s"`, `timeout="60s"`, `timeout="20s"`, `timeout="60s"`, `timeout="40s"`, `timeout="90s"`, `name="stonith-timeout" value="20s"`, `name="stonith-timeout" value="60s"`)

// calmDown rewrites the configuration that guests get.
func (c *Cluster) calmDown() error {
	path := c.lab("setup", "cib.xml.in")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	// Nor does it wait for an idle processor before it does the next thing.
	const here = `<cluster_property_set id="properties">`
	hurry := here + `<nvpair id="p-load" name="load-threshold" value="10000%"/>`
	const end = `</configuration>`
	patient := `<op_defaults><meta_attributes id="op-d"><nvpair id="op-d-timeout" name="timeout" value="90s"/></meta_attributes></op_defaults>` + end
	return os.WriteFile(path, []byte(strings.NewReplacer(here, hurry, end, patient).Replace(calm.Replace(string(text)))), 0o644)
}

// packSetup makes an archive of what hosts of namespaces have as /run/lab/setup.
func (c *Cluster) packSetup(path string) error {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	if err := errors.Join(t.AddFS(os.DirFS(c.lab("setup"))), t.Close()); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// setUpGuest makes a guest that has just booted what a host of namespaces is.
func (c *Cluster) setUpGuest(ctx context.Context, h *host.Host, start int) error {
	addr := fmt.Sprintf("%s/%d", addrs[h.Name], network.Bits())
	script := strings.Join([]string{
		"mkdir -p " + labDir + "/setup /var/log/pacemaker " + mountpoint,
		"tar -x -C " + labDir + "/setup -f " + job.Dir + "/setup.tar",
		"ln -s " + job.Dir + "/loopnfs /usr/sbin/loopnfs",
		"ip addr add " + addr + " dev eth0", "ip link set eth0 up",
		fmt.Sprintf("echo %d >/proc/sys/kernel/hung_task_timeout_secs", hungSeconds),
		"echo -1 >/proc/sys/kernel/hung_task_warnings",
	}, " && ")
	if _, err := h.Run(ctx, "sh", "-c", script); err != nil {
		return fmt.Errorf("%s does not start: %w", h.Name, err)
	}
	if err := h.SetClock(ctx); err != nil {
		return err
	}
	_, err := h.Start("/dev/virtio-ports/log", "", "tail", "-n", "+1", "-F", "/var/log/pacemaker/pacemaker.log")
	return err
}

// launcher is how the software of the cluster is started: as on a host with little memory,
// all of which may be wanted by somebody else, and which is full of pages of a mount whose
// server they have to start.
func (c *Cluster) launcher(name string) []string {
	if !c.isGuest(name) {
		return nil
	}
	return []string{"choom", "-n", "-1000", "--", "loopnfs", "exec", "--"}
}

// clocks returns by how much the monotonic clocks of guests are ahead.
func (c *Cluster) clocks(ctx context.Context) (map[string]int64, error) {
	ahead := map[string]int64{}
	for _, name := range nodeNames {
		if !c.isGuest(name) {
			continue
		}
		theirs, at, err := c.host(name).Clock(ctx)
		if err != nil {
			return nil, err
		}
		ahead[name] = theirs - at
	}
	return ahead, nil
}

// linkLogs has the clients of a guest write their logs to its ports, and gives what comes
// out of these the names that it has everywhere else.
func (r *run) linkLogs(ctx context.Context, cfg *ClientConfig) error {
	r.Cluster.mu.Lock()
	start := r.starts[cfg.Host]
	r.Cluster.mu.Unlock()
	script := []string{"mkdir -p " + cfg.Logs}
	for _, kind := range logPorts {
		name := cfg.Name + "." + kind
		script = append(script, fmt.Sprintf("ln -s /dev/virtio-ports/%s %s/%s", kind, cfg.Logs, name))
		if err := os.Link(r.portFile(cfg.Host, start, kind), r.lab(r.name, name)); err != nil {
			return err
		}
	}
	_, err := r.Cluster.host(cfg.Host).Run(ctx, "sh", "-c", strings.Join(script, " && "))
	return err
}

const (
	// Hogs leave a third of a guest's memory, but at least leaveMiB: a server locks 55 of
	// them, and the programs of the cluster and the mount want more than the rest. They take
	// hogMiB in any case.
	leavePart = 3
	leaveMiB  = 80
	hogMiB    = 8
	// starveFor is how long clients have to go on without memory after the takeover, in
	// which the kernel looks for tasks that hang, more than once.
	starveFor = 3 * hungSeconds * time.Second
)

// starveGuest is starvedSurvivor for a guest, which has a memory of its own: hogs take it,
// and come back when the OOM killer has taken one. What clients have written since fills
// memory, too, and cannot leave until there is a server: this node's own.
func (c *Cluster) starveGuest(ctx context.Context, d *drama) (err error) {
	h := c.host(d.second)
	free, err := available(ctx, h)
	if err != nil {
		return err
	}
	if free < leaveMiB {
		return fmt.Errorf("%s has %d MiB of memory left before any is taken, and needs %d: give it more", h.Name, free, leaveMiB)
	}
	take := max(free-max(c.opt.Guests.MemoryMiB/leavePart, leaveMiB), hogMiB)
	c.events.note("%s has %d MiB to spare; %d MiB of them are taken", d.second, free, take)
	hog, err := h.Start("/dev/null", "", "sh", "-c", fmt.Sprintf(
		"for i in $(seq %d); do while :; do choom -n 1000 -- /run/hog hog %d; sleep 0.1; done & done; wait", hogs, (take<<10)/hogs))
	if err != nil {
		return err
	}
	defer func() {
		_, endErr := h.Run(ctx, "pkill", "-KILL", "-s", fmt.Sprint(hog.PID()))
		err = errors.Join(err, endErr)
	}()
	sleep(ctx, 2*time.Second)
	if err := errors.Join(c.off(d.serving), c.awaitServing(ctx, d.second)); err != nil {
		return err
	}
	if err := d.progress(ctx); err != nil {
		return err
	}
	left, err := available(ctx, h)
	if err != nil {
		return err
	}
	c.events.note("the mount of %s is a loop-back mount now, and goes on, with %d MiB of memory left", d.second, left)
	return c.awaitNoHang(ctx, h)
}

// available returns how much memory can be had without swapping, in MiB.
func available(ctx context.Context, h *host.Host) (mib int, err error) {
	out, err := h.Run(ctx, "sed", "-n", "s/^MemAvailable: *\\([0-9]*\\) kB$/\\1/p", "/proc/meminfo")
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(out, &mib)
	return mib >> 10, err
}

// awaitNoHang waits, and reports tasks that hang from now on, as the guest's kernel says.
func (c *Cluster) awaitNoHang(ctx context.Context, h *host.Host) error {
	before, err := hangs(ctx, h)
	if err != nil {
		return err
	}
	sleep(ctx, starveFor)
	after, err := hangs(ctx, h)
	if err == nil && len(after) > len(before) {
		err = fmt.Errorf("the kernel of %s found tasks that hang after the takeover: %s", h.Name, strings.Join(after[len(before):], "; "))
	}
	return err
}

// hangs returns what a kernel has said of tasks that hang.
func hangs(ctx context.Context, h *host.Host) ([]string, error) {
	out, err := h.Run(ctx, "dmesg")
	var found []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, "blocked for more than") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found, err
}

// describe says in a result what the nodes are.
func (c *Cluster) describe(res *harness.Result) {
	if c.opt.Guests == nil {
		return
	}
	res.Server, res.Kernel = c.opt.Guests.Server, c.opt.Guests.Kernel
	if c.others() { // it is shown, and nothing is promised
		res.Expected = ""
	}
}

// hangs looks whether a run with the server of others ended in clients that hang, and says
// in the result who waits for whom. That of ours must not, and then it is an error.
func (r *run) hangs(ctx context.Context, res *harness.Result, err error) bool {
	var hang *hangError
	if !r.others() || !errors.As(err, &hang) {
		return false
	}
	res.Outcome = harness.Hung
	res.Notes = append(res.Notes, hang.Error())
	for _, name := range nodeNames { // the server may be the one that waits, on the other node
		if r.Cluster.host(name).Gone() {
			continue
		}
		stacks, err := r.waiting(ctx, name)
		if err != nil {
			res.Notes = append(res.Notes, fmt.Sprintf("who waits on %s cannot be found out: %v", name, err))
		}
		res.Stacks = append(res.Stacks, stacks...)
	}
	res.Cycle = harness.ExplainStacks(res.Stacks)
	return true
}

// waiting returns the tasks of a node that wait and cannot be interrupted.
func (c *Cluster) waiting(ctx context.Context, name string) ([]job.Stack, error) {
	ctx, cancel := context.WithTimeout(ctx, shortCall)
	defer cancel()
	out, err := c.host(name).Run(ctx, "sh", "-c", waitingTasks)
	return readStacks(out), err
}

// waitingTasks prints the number, the name and the stack of each task that waits and cannot
// be interrupted.
const waitingTasks = `for t in /proc/[0-9]*/task/*; do
	grep -q '^State:.D' $t/status 2>/dev/null && echo "task ${t##*/} $(cat $t/comm)" && cat $t/stack
done; true`

// readStacks reads what waitingTasks prints.
func readStacks(text string) (stacks []job.Stack) {
	for line := range strings.Lines(text) {
		if head, ok := strings.CutPrefix(line, "task "); ok {
			pid, comm, _ := strings.Cut(strings.TrimSpace(head), " ")
			s := job.Stack{Comm: comm, State: "D"}
			s.PID, _ = strconv.Atoi(pid)
			stacks = append(stacks, s)
			continue
		}
		_, frame, ok := strings.Cut(line, "] ")
		if frame, _, _ = strings.Cut(frame, "+"); ok && len(stacks) > 0 {
			last := &stacks[len(stacks)-1]
			last.Frames = append(last.Frames, frame)
		}
	}
	return stacks
}
