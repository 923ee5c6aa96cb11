package vm

import (
	"fmt"
	"os"
	"strings"
)

// Devices are what a guest has besides its disks and its console. The files are closed
// by Run.
type Devices struct {
	// Tap, if not nil, is a network device of this host: eth0 in the guest, with the
	// hardware address MAC.
	Tap *os.File
	MAC string
	// Shared is a disk, or file, that other guests may have, too: /dev/vdd in the guest.
	// What the guest has been told to be stable is there when it is killed.
	Shared string
	// Ports are serial ports, which the guest has as /dev/virtio-ports/NAME.
	Ports []Port
	// Monitor, if not nil, listens for who may end the guest (QMP).
	Monitor *os.File
}

// Port is a serial port of a guest.
type Port struct {
	Name string
	// File gets what the guest writes; it is a path.
	File string
	// Socket, instead of a file, is one end of a pair: both ends may write.
	Socket *os.File
}

// close closes the files, if that was not done yet.
func (d *Devices) close() {
	for _, f := range append([]*os.File{d.Tap, d.Monitor}, d.sockets()...) {
		if f != nil {
			f.Close()
		}
	}
}

func (d *Devices) sockets() (files []*os.File) {
	for _, p := range d.Ports {
		files = append(files, p.Socket)
	}
	return files
}

// devices returns what QEMU is told of them. Disks come after those of every guest,
// whatever QEMU does first, as their slots are higher.
func (g *guest) devices() []string {
	d := &g.cfg.Devices
	var args []string
	if d.Tap != nil {
		args = append(args, "-netdev", "tap,id=lan,fd="+g.descriptor(d.Tap),
			"-device", "virtio-net-pci,netdev=lan,romfile=,mac="+d.MAC)
	}
	if d.Shared != "" {
		args = append(args, "-drive", "if=none,id=shared,format=raw,cache=none,file.locking=off,file="+escape(d.Shared),
			"-device", "virtio-blk-pci,drive=shared,share-rw=on,addr=0x1e")
	}
	if len(d.Ports) > 0 {
		args = append(args, "-device", "virtio-serial-pci,id=ports")
	}
	for i, p := range d.Ports {
		backend := "file,append=on,path=" + escape(p.File)
		if p.Socket != nil {
			backend = "socket,fd=" + g.descriptor(p.Socket)
		}
		args = append(args, "-chardev", fmt.Sprintf("%s,id=port%d", backend, i),
			"-device", fmt.Sprintf("virtserialport,bus=ports.0,nr=%d,chardev=port%d,name=%s", i+1, i, p.Name))
	}
	if d.Monitor != nil {
		args = append(args, "-chardev", "socket,id=monitor,server=on,wait=off,fd="+g.descriptor(d.Monitor), "-mon", "chardev=monitor,mode=control")
	}
	return args
}

// descriptor passes a file on, and returns the number by which QEMU knows it.
func (g *guest) descriptor(f *os.File) string {
	g.inherit(f)
	return fmt.Sprint(2 + len(g.inherited))
}

// escape writes a path as a value of QEMU's options.
func escape(path string) string { return strings.ReplaceAll(path, ",", ",,") }
