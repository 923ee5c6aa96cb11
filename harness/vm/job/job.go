// Package job is what the host and the program inside a guest tell each other:
// the host sends a Job on a disk, the guest answers with Events, a line of JSON
// each, on a serial port.
package job

import "loopnfs/harness/work"

// Name is the file of the Job in the archive that the guest is given.
const Name = "job.json"

// Dir is where the guest unpacks the archive.
const Dir = "/job"

// Job says what a guest does before it powers off: a command, a load, or to serve, or
// to do what it is asked to, until it is killed.
type Job struct {
	// Address is that of the guest on the wire to another one, like 10.0.0.1/24;
	// empty if there is none.
	Address string
	// Modules are loaded, in this order, before anything else.
	Modules []string
	// Disk is the file system made on the data disk: ext4 or xfs.
	Disk string
	// Command is run, with its output passed on as it comes.
	Command []string
	Load    *Load
	Serve   *Server
	// Agent has the guest carry out what is asked at the port AgentPort.
	Agent bool
	// Host is the name of the guest.
	Host string
}

// AgentPort is the name of a serial port.
const AgentPort = "agent"

// Server is an NFS server inside the guest.
type Server struct {
	// Name is loopnfs, knfsd, ganesha or gonfs.
	Name string
	// Host is where it runs; empty for the guest that mounts it.
	Host string
	// Without are the mechanisms of loopnfs that are off.
	Without []string
}

// Load is a workload on a loop-back mount, under memory pressure.
type Load struct {
	Server Server
	// Script is what happens besides the load; see the drills of the vm tier.
	Script string
	// HogPercent of the available memory is taken by a process that keeps
	// touching it; 0 for none.
	HogPercent int
	// Sysctl is written under /proc/sys when the pressure begins.
	Sysctl map[string]string
	Work   work.Config
	// Baseline is the same load without pressure, to tell a collapse from
	// slowness; its Rounds may be fewer. No Jobs means none.
	Baseline work.Config
	// StallSeconds without progress are worth a look at who waits, HangSeconds
	// are a standstill, LimitSeconds in all are allowed; guest time.
	StallSeconds, HangSeconds, LimitSeconds int
}

// Event is one line from the guest; exactly one field is set.
type Event struct {
	// Ready: the guest is up and begins its job.
	Ready *Ready `json:",omitempty"`
	// Serving: the server can be mounted.
	Serving bool `json:",omitempty"`
	// Output of a Command, byte for byte, or words on what is going on.
	Output []byte  `json:",omitempty"`
	Say    string  `json:",omitempty"`
	Sample *Sample `json:",omitempty"`
	// Stuck: nothing moves, and this is known so far. Who waits comes next,
	// unless the monitor is stuck too.
	Stuck *Result `json:",omitempty"`
	// Exit is the end of a Command.
	Exit *int `json:",omitempty"`
	// Result is the end of a Load.
	Result *Result `json:",omitempty"`
	// Error is what kept the guest from doing its job.
	Error string `json:",omitempty"`
}

// Ready is what the guest found itself to be.
type Ready struct {
	Kernel string
	MemKB  int64
}

// Sample is the state of the guest at one moment under load.
type Sample struct {
	Seconds                         float64 `json:"s"` // since the load began, guest time
	FreeKB, AvailableKB             int64
	DirtyKB, WritebackKB            int64
	Bytes                           int64 // accepted by write(2) from the writers
	DirectScans, OOMKills, Throttle int64 // counters of /proc/vmstat, since the load began
}

// Outcomes of a Load, as the guest sees it.
const (
	Survived = "survived"
	Hung     = "hung"
	Slow     = "slow"   // still moving at the end of its time
	Failed   = "failed" // see Result.Error
)

// Result is how a Load ended.
type Result struct {
	Outcome string
	Error   string  `json:",omitempty"`
	Seconds float64 // of the load
	Bytes   int64
	// BaselineRate and Rate are in bytes per second.
	BaselineRate, Rate float64
	// Stall is the longest time without progress of any writer, Latency the
	// longest single call of one; seconds.
	Stall, Latency float64
	Verified       bool
	OOMKills       int64
	// Killed names the processes that the OOM killer took.
	Killed []string `json:",omitempty"`
	// Stacks are those of blocked tasks when the load first stood still for
	// StallSeconds, or, if it never moved again, at its end.
	Stacks []Stack `json:",omitempty"`
	// Notes are measured facts worth a line in the report.
	Notes []string `json:",omitempty"`
}

// Stack is one blocked task.
type Stack struct {
	PID    int
	Comm   string
	State  string   // as in /proc/PID/stat
	Wchan  string   `json:",omitempty"`
	Frames []string // innermost first, without offsets
}
