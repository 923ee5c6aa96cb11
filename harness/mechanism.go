package harness

import (
	"fmt"
	"slices"
	"strings"

	"loopnfs/alloc"
	"loopnfs/internal/stack"
	"loopnfs/nfsclient"
	"loopnfs/nfsserver"
	"loopnfs/reclaim/writeback"
)

// policies are the exchangeable parts of a node.
type policies struct {
	memory  stack.MemoryConfig
	release nfsclient.ReleasePolicy
	copies  bool // the server's WRITE takes pages of its own
	// locality tells the server whose clients are on its machine; nil for addresses.
	locality nfsserver.Locality
}

// Mechanism is one that can be switched off.
type Mechanism struct {
	Name string
	// Off says what the world without it is.
	Off string
	off func(*policies)
}

// Mechanisms returns those that can be switched off.
func Mechanisms() []Mechanism {
	return []Mechanism{
		{"scope", "every allocation may enter the file system, whatever locks its caller holds",
			func(p *policies) { p.memory.Alloc.Mask = alloc.Unmasked }},
		{"nonblocking-release", "ReleaseFolio waits for the page's WRITE and COMMIT, as Linux 6.3 to 6.12 do, and the server needs pages to store what it has received, as others do",
			func(p *policies) { p.release, p.copies = nfsclient.Release2023{}, true }},
		{"local-throttle", "the server's WRITE waits for the global dirty limit, also when it cleans the pages that fill it",
			func(p *policies) { p.memory.Throttle = writeback.GlobalThrottle{} }},
		{"loopback-detect", "the server takes all clients for those of other machines, as which they mounted it",
			func(p *policies) { p.locality = nfsserver.NeverLocal{} }},
		{"reserve", "no pages are kept for those who free memory",
			func(p *policies) { p.memory.Alloc.Reserve = false }},
	}
}

// VMMechanisms returns those that a server in a guest can do without; `loopnfs
// serve` knows them by the same names.
func VMMechanisms() []Mechanism {
	return []Mechanism{
		{Name: "host-guard", Off: "memory is not locked, threads may enter reclaim of the mount, nobody starts the server again"},
		{Name: "stable-replies", Off: "WRITEs are answered UNSTABLE also when memory is short: their pages wait for a COMMIT"},
		{Name: "direct-io", Off: "what is written out goes through the page cache of the kernel"},
		{Name: "local-throttle", Off: "the server's own writers wait for its global dirty limit"},
	}
}

// CheckMechanisms reports a name that is not one of a mechanism.
func CheckMechanisms(names []string) error {
	var known []string
	for _, m := range Mechanisms() {
		known = append(known, m.Name)
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return fmt.Errorf("no mechanism is called %q; there are: %s", n, strings.Join(known, ", "))
		}
	}
	return nil
}

// policiesWithout returns the default policies but for the named mechanisms.
func policiesWithout(bytes int64, without []string) policies {
	p := policies{memory: stack.DefaultMemory(bytes), release: nfsclient.Release2026{}}
	for _, m := range Mechanisms() {
		if slices.Contains(without, m.Name) {
			m.off(&p)
		}
	}
	return p
}
