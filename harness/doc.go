// Package harness runs drills: each documented deadlock as a case on real
// mounts, with its mechanism switched off, when it must hang and be explained,
// and with everything on, when it must finish with every byte verified.
//
// One run is a small set of processes:
//
//	drill ──┬── node     server, store, client and FUSE door on one arena
//	        ├── worker   writes through the mount, records what was
//	        │            acknowledged outside of it (package work)
//	        └── fio      more load, with checksums of its own
//
// The node makes no system call into its own mount; the load comes from the
// other two. The drill watches: acknowledgements of the worker are progress;
// when they stop, the node's wait-for graph says why. A hung node is killed,
// which ends its mount; nothing of a run outlives it. What a killed drill
// leaves behind is recorded in a file first, and cleaned up by the next one.
package harness
