// Package vm boots disposable guests with stock kernels, to do there what this
// host cannot or must not do: mount NFS with the kernel's client, and run out of
// memory.
//
// A guest leaves nothing behind: its disks are files without a name, and QEMU
// ends with the process that started it.
package vm

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"loopnfs/harness/vm/job"
)

// Config says what guest to boot.
type Config struct {
	// Kernel is the version of a kernel, or the beginning of one.
	Kernel string
	// MemoryMiB of RAM, 64 to 65536, and CPUs, 1 to 64.
	MemoryMiB, CPUs int
	// DiskMiB is the size of the data disk.
	DiskMiB int
	Job     job.Job
	// Files go to job.Dir in the guest: name there to path here. Executables
	// should be static.
	Files map[string]string
	// Wire, if not nil, is one end of a stream socket whose other end is the
	// Wire of another guest: a network of two. The caller closes it.
	Wire *os.File
	// Devices are what the guest has besides, to be a host among others.
	Devices Devices
	// Init is the program of the guest, bin/loopnfs-guest.
	Init string
	// Limit bounds the life of the guest, in real time.
	Limit time.Duration
	// Handle is told each event. Say is told what takes long.
	Handle func(job.Event)
	Say    func(format string, args ...any)
	// Console, if not nil, gets what the kernel writes to its console.
	Console io.Writer
}

// Validate reports the first thing wrong with c.
func (c *Config) Validate() error {
	switch {
	case c.MemoryMiB < 64 || c.MemoryMiB > 65536:
		return fmt.Errorf("a guest with %d MiB of memory: give 64 to 65536", c.MemoryMiB)
	case c.CPUs < 1 || c.CPUs > 64:
		return fmt.Errorf("a guest with %d CPUs: give 1 to 64", c.CPUs)
	case c.DiskMiB < 16 || c.DiskMiB > 1<<20:
		return fmt.Errorf("a guest with a disk of %d MiB: give 16 to %d", c.DiskMiB, 1<<20)
	case c.Limit <= 0:
		return fmt.Errorf("a guest that lives for %v: give more than 0", c.Limit)
	}
	for name := range c.Files {
		if strings.Contains(name, "/") || slices.Contains([]string{"", ".", "..", job.Name}, name) {
			return fmt.Errorf("a file cannot be called %q in the guest: give it another name", name)
		}
	}
	return c.validateJob()
}

func (c *Config) validateJob() error {
	j := &c.Job
	if _, err := c.mac(); err != nil {
		return err
	}
	switch {
	case j.Disk != "" && j.Disk != "ext4" && j.Disk != "xfs":
		return fmt.Errorf("a disk with %s: give ext4 or xfs", j.Disk)
	case len(j.Command) == 0 && j.Load == nil && j.Serve == nil && !j.Agent:
		return errors.New("the guest has nothing to do: give it a command")
	}
	return nil
}

// bootModules are what every guest needs to find its disks.
var bootModules = []string{"virtio_pci", "virtio_blk", "crc32c_generic", "ext4"}

// Run boots a guest, waits until it has ended, and returns which kernel it had.
// The error is for a guest that did not do its job; what came of the job is for
// Handle. The files of c.Devices are closed as soon as QEMU has them, or the guest did
// not start.
func Run(ctx context.Context, c Config) (kernel string, err error) {
	defer c.Devices.close()
	if err := c.Validate(); err != nil {
		return "", err
	}
	if _, err := findQEMU(); err != nil {
		return "", err
	}
	k, root, accel, err := ingredients(ctx, c.Kernel, c.Init, c.Say)
	if err != nil {
		return k.version(), err
	}
	return k.Version, boot(ctx, &c, k, root, accel)
}

// ingredients returns what a guest is made of: a kernel, the image of its root, and how
// its processor is had.
func ingredients(ctx context.Context, kernel, init string, say func(string, ...any)) (k *Kernel, root, accel string, err error) {
	cache, err := openCache(say)
	if err != nil {
		return nil, "", "", err
	}
	if k, err = cache.kernel(ctx, kernel); err != nil {
		return nil, "", "", err
	}
	if root, err = cache.root(ctx); err != nil {
		return k, "", "", err
	}
	accel, err = cache.accel(ctx, k, root, init)
	return k, root, accel, err
}

// guest is a running QEMU.
type guest struct {
	cfg       *Config
	files     []*os.File // without names
	inherited []*os.File // by QEMU: files, and more
	console   *os.File
	cmd       *exec.Cmd
}

// errNotStarted is what is wrong with the host, and says nothing of guests.
var errNotStarted = errors.New("the guest cannot be started")

func boot(ctx context.Context, c *Config, k *Kernel, root, accel string) (err error) {
	g := &guest{cfg: c}
	defer g.close()
	args, err := g.args(k, root, accel)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotStarted, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.Limit, fmt.Errorf("the guest did not end within %v", c.Limit))
	defer cancel()
	qemu, err := findQEMU()
	if err != nil {
		return err
	}
	g.cmd = exec.CommandContext(ctx, qemu, args...)
	g.cmd.ExtraFiles = g.inherited
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	said := new(strings.Builder)
	g.cmd.Stderr = said
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	// The parent-death signal is sent when the thread that forked ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := g.cmd.Start(); err != nil {
		return fmt.Errorf("%w: %w", errNotStarted, err)
	}
	c.Devices.close() // what only the guest has open goes with it
	seen := g.listen(out)
	err = g.cmd.Wait()
	switch {
	case ctx.Err() != nil:
		if context.Cause(ctx) == context.Canceled { // whoever cancelled knows why
			return context.Canceled
		}
		return errors.Join(context.Cause(ctx), g.lastWords())
	case err != nil:
		return fmt.Errorf("qemu: %w: %s", err, said)
	case seen.err != "":
		return errors.New(seen.err)
	case !seen.end:
		return errors.Join(errors.New("the guest ended before its job did"), g.lastWords())
	}
	return nil
}

func findQEMU() (string, error) {
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return "", errors.New("qemu-system-x86_64 is not installed: on Debian or Ubuntu, apt install qemu-system-x86 (make drill-vm does)")
	}
	return path, nil
}

// listened is what was gathered from the events.
type listened struct {
	end bool
	err string
}

// listen passes on events until the guest ends.
func (g *guest) listen(out io.Reader) (l listened) {
	in := bufio.NewReaderSize(out, maxLine)
	for {
		line, err := readLine(in)
		if err != nil {
			return l
		}
		var e job.Event
		if json.Unmarshal(line, &e) != nil {
			continue // the firmware may write here
		}
		l.end = l.end || e.Exit != nil || e.Result != nil
		if e.Error != "" {
			l.err = e.Error
		}
		g.cfg.Handle(e)
	}
}

// maxLine bounds an event: a guest passes output on in pieces of 32 KiB, of
// which JSON makes up to six times as much.
const maxLine = 1 << 20

// readLine returns the next line, empty instead of one longer than maxLine. What
// comes after the last line end is half of an event, and ends the guest.
func readLine(in *bufio.Reader) ([]byte, error) {
	line, err := in.ReadSlice('\n')
	if err != bufio.ErrBufferFull {
		return line, err
	}
	for err == bufio.ErrBufferFull {
		_, err = in.ReadSlice('\n')
	}
	return nil, err
}

func (g *guest) args(k *Kernel, root, accel string) ([]string, error) {
	c := g.cfg
	modules, err := k.closure(append(bootModules[:len(bootModules):len(bootModules)], c.Job.Modules...))
	if err != nil {
		return nil, err
	}
	initrd, err := g.file(func(f *os.File) error { return writeInitramfs(f, c.Init, modules) })
	if err != nil {
		return nil, err
	}
	data, err := g.file(func(f *os.File) error { return f.Truncate(int64(c.DiskMiB) << 20) })
	if err != nil {
		return nil, err
	}
	jobDisk, err := g.file(func(f *os.File) error { return writeJob(f, c.Job, c.Files) })
	if err != nil {
		return nil, err
	}
	console, err := g.file(func(*os.File) error { return nil })
	if err != nil {
		return nil, err
	}
	g.console = g.files[len(g.files)-1]
	cmdline := "console=ttyS0,115200 mitigations=off nokaslr no_timer_check random.trust_cpu=on panic=2 " +
		"loglevel=7 audit=0 selinux=0 apparmor=0 rdinit=/init"
	if khz := hostKHz(); accel == "tcg" && khz > 0 {
		// Under emulation a busy host would have it calibrated wrongly.
		cmdline += fmt.Sprintf(" tsc=reliable tsc_early_khz=%d", khz)
	}
	args := []string{
		"-machine", "pc,hpet=off", "-smp", fmt.Sprint(c.CPUs), "-m", fmt.Sprint(c.MemoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", k.image(), "-initrd", initrd, "-append", cmdline,
		"-drive", "file=" + escape(root) + ",if=virtio,format=raw,snapshot=on,cache=unsafe",
		"-drive", "file=" + data + ",if=virtio,format=raw,cache=unsafe",
		"-drive", "file=" + jobDisk + ",if=virtio,format=raw,readonly=on",
		"-serial", "file:" + console, "-chardev", "stdio,id=host,signal=off", "-serial", "chardev:host",
	}
	if c.Wire != nil {
		mac, err := c.mac()
		if err != nil {
			return nil, err
		}
		g.inherit(c.Wire)
		args = append(args, "-netdev", fmt.Sprintf("socket,id=wire,fd=%d", 2+len(g.inherited)),
			"-device", "virtio-net-pci,netdev=wire,romfile=,mac="+mac)
	}
	args = append(args, g.devices()...)
	return append(args, accelArgs(accel)...), nil
}

// mac returns an address that the two guests of a wire do not share; empty for a
// guest without a wire.
func (c *Config) mac() (string, error) {
	if c.Wire == nil && c.Job.Address == "" {
		return "", nil
	}
	addr, err := netip.ParsePrefix(c.Job.Address)
	if err != nil || !addr.Addr().Is4() || c.Wire == nil {
		return "", fmt.Errorf("a guest on a wire with the address %q: give a wire and an address like 10.0.0.1/24", c.Job.Address)
	}
	ip := addr.Addr().As4()
	return fmt.Sprintf("52:54:%02x:%02x:%02x:%02x", ip[0], ip[1], ip[2], ip[3]), nil
}

// inherit passes a file on to QEMU, which knows it as descriptor 2 plus the
// number of files so far.
func (g *guest) inherit(f *os.File) { g.inherited = append(g.inherited, f) }

// file makes a file that has no name and returns the one that QEMU knows it by.
// The name is gone before the file is filled: whoever is killed leaves nothing.
func (g *guest) file(fill func(*os.File) error) (string, error) {
	f, err := os.CreateTemp("/var/tmp", "loopnfs-vm-")
	if err != nil {
		return "", err
	}
	g.files = append(g.files, f)
	g.inherit(f)
	err = errors.Join(os.Remove(f.Name()), fill(f))
	return fmt.Sprintf("/dev/fd/%d", 2+len(g.inherited)), err
}

func (g *guest) close() {
	if g.cfg.Console != nil && g.console != nil {
		_, _ = io.Copy(g.cfg.Console, io.NewSectionReader(g.console, 0, maxConsole))
	}
	for _, f := range g.files {
		f.Close()
	}
}

const maxConsole = 16 << 20

// lastWords returns the end of the console as an error.
func (g *guest) lastWords() error {
	st, err := g.console.Stat()
	if err != nil {
		return err
	}
	const tail = 2000
	b := make([]byte, min(tail, st.Size()))
	n, _ := g.console.ReadAt(b, max(0, st.Size()-tail))
	return fmt.Errorf("the end of its console:\n%s", b[:n])
}

// writeJob makes the disk with the job: an archive, the job last in it.
func writeJob(w io.Writer, j job.Job, files map[string]string) error {
	t := tar.NewWriter(w)
	for name, from := range files {
		if err := addFile(t, name, from); err != nil {
			return err
		}
	}
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Name: job.Name, Mode: 0o644, Size: int64(len(text))}); err != nil {
		return err
	}
	_, err = t.Write(text)
	return errors.Join(err, t.Close())
}

func addFile(t *tar.Writer, name, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("%s for the guest: %w", filepath.Base(from), err)
	}
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err = t.Write(data)
	return err
}

// Prepare makes or fetches what guests with that kernel boot from, as Run does with the
// first one, which may take minutes. init is as in Config.
func Prepare(ctx context.Context, kernel, init string, say func(string, ...any)) error {
	if _, err := findQEMU(); err != nil {
		return err
	}
	_, _, _, err := ingredients(ctx, kernel, init, say)
	return err
}
