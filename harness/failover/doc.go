// Package failover takes a server away from its clients, and looks what they notice: two
// nodes share a disk, an address and a server, Corosync and Pacemaker say who has them, and
// clients work on both nodes and on a third host.
//
//	Schedule ──► Play ──┬── fault: a node dies, a cable is pulled, the disk stalls, …
//	                    │      │
//	                    │   n1 ┴─ server, clients ──┐
//	                    │   n2 ── clients ──────────┼── each through a mount of the address
//	                    │   c1 ── clients ──────────┘
//	                    ├── timeline: what was done, and what the logs of the nodes say
//	                    ├── observer: on which nodes there is a server, all the time
//	                    └── verify: is every promise kept? (recorder, linear, work, lease)
//
// The hosts are namespaces of this machine (package host). What sets the nodes up, and the
// resource agents, are those that anybody may use (scripts/cluster). Nodes are fenced by a
// power switch which says that a node is off when all of its processes are gone.
//
// A schedule plays one or more faults under one load. After each, the service must answer
// and every client must be answered again; then the cluster is made whole, and at the end
// the clients stop, everything is unmounted, and what was promised is compared with what is
// there.
//
// Not here: a node's own kernel, memory or clock. There is one of each.
package failover
