package harness

import (
	"fmt"
	"slices"
	"strings"

	"loopnfs/harness/work"
)

// Tier says what a drill runs on.
type Tier string

// TierHost is real FUSE mounts and real TCP on this host, without kernel NFS.
const TierHost Tier = "host"

// Drill is one documented deadlock.
type Drill struct {
	Name string
	// Loop is the circle of waits, in words.
	Loop string
	// Mechanism prevents it; without it the drill hangs.
	Mechanism string
	// Cycle holds a phrase for each wait that the explanation of the hang
	// must contain.
	Cycle []string
	// Work is what the worker does.
	Work work.Config
	// Patience is how many times as much it does without Mechanism, for a hang that comes
	// only when threads meet; 0 is once.
	Patience int
	// Fio says how many fio jobs write beside it.
	Fio int
	// Takeover: the server is on another machine, which dies under the load; then it is
	// started on that of the mount.
	Takeover bool
}

// throttled is the circle of a server that is throttled for what it is to clean.
var throttled = []string{"WRITE waits for dirty pages to fall below the limit", "write-back waits for"}

// Drills returns all drills, in the order in which they run.
func Drills() []Drill {
	return []Drill{
		{
			Name:      "release-page",
			Loop:      "server allocates -> direct reclaim -> ReleaseFolio of a client page waits for COMMIT -> server",
			Mechanism: "nonblocking-release",
			Cycle:     []string{"WRITE waits for a free page", "direct reclaim waits for COMMIT of inode"},
			Work:      work.Config{Mode: work.Blocks, Jobs: 4, Blocks: 512, Rounds: 4},
			Fio:       4,
		},
		{
			Name:      "nofs-recursion",
			Loop:      "store holds the lock of a directory, allocates -> direct reclaim enters the store -> the same lock",
			Mechanism: "scope",
			Cycle:     []string{"waits for a free page", "direct reclaim waits for the lock of directory inode"},
			Work:      work.Config{Mode: work.Files, Jobs: 4, Blocks: 300, Rounds: 1},
			Patience:  6,
			Fio:       4,
		},
		{
			Name:      "throttle-livelock",
			Loop:      "client pages fill the dirty limit; the WRITE that would clean them is throttled",
			Mechanism: "local-throttle",
			Cycle:     throttled,
			Work:      work.Config{Mode: work.Blocks, Jobs: 4, Blocks: 512, Rounds: 4},
			Fio:       4,
		},
		{
			Name:      TakeoverName,
			Loop:      "the server dies elsewhere, and is started here: the dirty pages of what was a remote mount fill the limit; the WRITE that would clean them is throttled",
			Mechanism: "loopback-detect",
			Cycle:     throttled,
			Work:      work.Config{Mode: work.Blocks, Jobs: 4, Blocks: 512, Rounds: 6},
			Fio:       4,
			Takeover:  true,
		},
	}
}

// Find returns the drills with the given names, all of them if there are none.
func Find(names []string) ([]Drill, error) {
	all := Drills()
	if len(names) == 0 {
		return all, nil
	}
	var found []Drill
	for _, name := range names {
		i := slices.IndexFunc(all, func(d Drill) bool { return d.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("no drill is called %q; there are: %s", name, strings.Join(Names(), ", "))
		}
		found = append(found, all[i])
	}
	return found, nil
}

// Names returns the names of all drills.
func Names() []string {
	var names []string
	for _, d := range Drills() {
		names = append(names, d.Name)
	}
	return names
}

// explains reports whether the cycle contains every wait that d documents.
func (d *Drill) explains(cycle []string) bool {
	for _, phrase := range d.Cycle {
		if !slices.ContainsFunc(cycle, func(edge string) bool { return strings.Contains(edge, phrase) }) {
			return false
		}
	}
	return true
}
