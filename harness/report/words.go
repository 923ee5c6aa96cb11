package report

import (
	"strings"

	"loopnfs/harness"
)

// term is a word that the page uses, and what it means.
type term struct{ Word, Means string }

var terms = []term{
	{"page", "4 KiB of memory, the unit in which it is given out. What a program writes to a file is put into pages first."},
	{"dirty, write-back", "A page is dirty while only memory holds what was written, and in write-back while it is on its way to the disk or the server. Until that has ended it cannot be used for anything else."},
	{"COMMIT", "An NFS server may answer a WRITE before the data is on its disk. COMMIT asks it to put it there; until it is answered the client keeps the pages."},
	{"direct reclaim", "When no page is free, whoever needs one has to free one first. That is direct reclaim. The kernel also does it in the background (kswapd), but that is not always fast enough."},
	{"throttled", "Whoever writes faster than the disk is made to wait, so that not all of memory becomes dirty."},
	{"OOM killer", "When nothing can be freed, the kernel ends a process to get its memory. Often it is the wrong one."},
	{"guest", "A virtual machine with a stock kernel and little memory, made for one run and thrown away. Its times are by its own clock, since the emulation of it can be slow."},
	{"worst stall, longest call", "The longest time in which no writer got any further, and the longest that a single write took."},
	{"takeover, gap", "One machine of a cluster goes on with a service that another one had. Its clients notice a gap: the longest time for which one of them waited for an answer."},
	{"fencing", "Before a machine takes over a disk, the one that had it is switched off from outside, and it is made sure that it is off. Two that write to one disk destroy it."},
	{"split brain", "Both machines of a cluster live, and neither hears the other: each may think that it is alone."},
	{"verified", "After the run everything is unmounted, the server restarted and the mount made again. Then every byte that was acknowledged (by fsync or close) is read and compared."},
}

// tierText introduces a tier.
type tierText struct{ Name, Text string }

var tierWords = map[harness.Tier]tierText{
	harness.TierVM: {
		"Stock Linux kernels",
		"Each run is a disposable guest with little memory. Its kernel mounts NFS from a server in the same guest (for swap: in another one); programs write through the mount, mostly while another one takes most of the memory.",
	},
	harness.TierCluster: {
		"A cluster",
		"Two nodes share a disk, an address and a server, with Corosync and Pacemaker; clients work on both nodes and on a third host, each through a mount of that address. Things go wrong, one after the other. What every client was promised is kept outside of the cluster and compared afterwards. The node that takes over mounts the export itself: from then on that is a loop-back mount.",
	},
	harness.TierHost: {
		"loopnfs's own client",
		"On this machine, with client and server of loopnfs and little memory between them. Each deadlock is brought about first, by switching off what prevents it; then the same load runs with everything on.",
	},
}

// loop is that of a drill.
type loop struct{ drill, text string }

// loopsOf returns the drills of a tier, in the order in which they run.
func loopsOf(tier string) []loop {
	var all []loop
	if tier == string(harness.TierVM) {
		for _, d := range harness.VMDrills() {
			all = append(all, loop{d.Name, d.Loop})
		}
		return all
	}
	if tier == string(harness.TierCluster) {
		return []loop{{harness.TakeoverName, harness.TakeoverLoop}}
	}
	for _, d := range harness.Drills() {
		all = append(all, loop{d.Name, d.Loop})
	}
	return all
}

// serverTasks are how the tasks of a server are called, by their beginnings.
var serverTasks = map[string][]string{
	"loopnfs": {"loopnfs"},
	"knfsd":   {"nfsd"},
	"ganesha": {"ganesha", "svc_", "work-"},
	"gonfs":   {"gonfs", "loopnfs-gonfs"},
}

// isServer reports whether a task belongs to the NFS server.
func isServer(task, server string) bool {
	for _, prefix := range serverTasks[server] {
		if strings.HasPrefix(task, prefix) {
			return true
		}
	}
	return false
}

// roles are what those who wait do in a machine, by the beginning of their names.
var roles = []struct{ prefix, role, means string }{
	{"direct reclaim", "frees a page, for whoever needs one", "No page is free, so whoever needs one must free one first."},
	{"nfs_release_folio", "NFS client, asked to give up a page", "The page holds data that the server has been sent. It can be given away once the server has said that the data is safe."},
	{"server:", "in the NFS server", ""},
	{"client:", "in the NFS client", ""},
	{"write-back", "NFS client, sends dirty pages to the server", "Dirty pages of the mount are cleaned by WRITEs to the server."},
	{"writer", "a program that writes", ""},
	{"exe", "a program that writes", ""},
	{"hog", "a program that takes memory", ""},
	{"kswapd", "frees memory in the background", ""},
	{"kcompactd", "moves pages together", ""},
	{"kworker", "a worker of the kernel", ""},
	{"nbdkit", "serves a disk that is a file of the mount", ""},
}

// roleOf says what someone who waits is, in a few words.
func roleOf(who, server string) string {
	if isServer(who, server) {
		return "the NFS server"
	}
	for _, r := range roles {
		if strings.HasPrefix(who, r.prefix) {
			return r.role
		}
	}
	return ""
}

// meanings explain what is waited for, by a phrase in it; the first that fits.
var meanings = []struct{ phrase, means string }{
	{"COMMIT", "COMMIT asks the server to put what it was sent on its disk."},
	{"committed", "It must be sent to the server and put on its disk."},
	{"free page", "Memory is full, and nobody frees any."},
	{"memory", "Memory is full; no page is free."},
	{"dirty pages", "Too much of memory holds data that is not on a disk yet, so writers have to wait."},
	{"room for its data", "The server has no memory to receive more."},
	{"server worker", "All of them are busy: they wait, too."},
	{"lock of", "Its holder waits, too."},
	{"a page of the mount", ""},
	{"until a page has been written", "Only then can it be used for something else."},
	{"reply", "The server has not answered."},
	{"journal", "The file system's journal must be on the disk first."},
}

// explain says in a sentence or two what a wait means.
func (w wait) explain() string {
	var said []string
	for _, r := range roles {
		if r.means != "" && strings.HasPrefix(w.Who, r.prefix) {
			said = append(said, r.means)
			break
		}
	}
	for _, m := range meanings {
		if strings.Contains(w.For, m.phrase) {
			said = append(said, m.means)
			break
		}
	}
	return strings.Join(said, " ")
}
