// Package host makes hosts of namespaces: each has network, mounts, processes, host name
// and IPC of its own, over an overlay of this host's root, and can be killed like a
// machine that loses its power.
//
//	this process ──┬── init of n1: process 1 there ── agent ──┬── corosync, pacemakerd, …
//	  (Lab)        ├── init of n2                             └── what Run and Start start
//	               └── init of the switch: a bridge, to which the others are connected
//
// What a host writes is in a tmpfs that nobody else sees, and goes with it. The agent
// carries out what comes in on its standard input; when that ends, as this process does,
// the agent ends, with it process 1, and with that everything in the host. So nothing is
// left behind, however this process ends.
//
// A host is no prison, but nothing in it can reach the machine by accident, as cluster
// software does that wants to restart a node: /proc/sysrq-trigger is /dev/null there,
// /proc/sys cannot be written but for its network, and CAP_SYS_BOOT, CAP_SYS_TIME and
// CAP_SYS_MODULE are gone for good. The agent looks whether that is so, or does not start.
//
// All hosts have one kernel: one clock, one memory, and one superblock for each disk.
package host
