package doctor

import (
	"compress/gzip"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Policy is what nfs_release_folio does about a page that waits for its COMMIT.
type Policy string

// The policies.
const (
	Waits      Policy = "waits"
	NeverWaits Policy = "never waits"
	Unknown    Policy = "cannot be told"
)

// Kernel is the one that runs.
type Kernel struct {
	Release string `json:"release"` // uname -r
	// Base is the upstream version that it is made of, empty if that says
	// nothing: some distributions keep the number and change the rest.
	Base string `json:"base,omitempty"`
	// Package is the version of the distribution's package, if known.
	Package  string `json:"package,omitempty"`
	Policy   Policy `json:"release_policy"`
	Evidence string `json:"evidence"`
	// KcompactdWaits says that compaction in the background waits, too
	// (CVE-2025-21908).
	KcompactdWaits bool `json:"kcompactd_waits"`

	heavy bool // with so many fixes of its own that Base says nothing
}

// version is one of the upstream kernel.
type version struct{ major, minor, patch int }

func (v version) String() string {
	if v.patch == 0 {
		return fmt.Sprintf("%d.%d", v.major, v.minor)
	}
	return fmt.Sprintf("%d.%d.%d", v.major, v.minor, v.patch)
}

func (v version) before(o version) bool {
	if v.major != o.major {
		return v.major < o.major
	}
	if v.minor != o.minor {
		return v.minor < o.minor
	}
	return v.patch < o.patch
}

// fix is where a mistake came into the kernel and where it was taken out.
type fix struct {
	from version
	// in are the first versions without it: of long-term series, and last of
	// all.
	in []version
}

var (
	// releaseFix is "NFS: Fix a deadlock involving nfs_release_folio()"
	// (CVE-2026-23053) for "NFS: fix up nfs_release_folio() to try to release
	// the page".
	releaseFix = fix{version{6, 3, 0}, []version{{6, 6, 130}, {6, 12, 67}, {6, 18, 7}, {6, 19, 0}}}
	// kcompactdFix is "NFS: fix nfs_release_folio() to not deadlock via
	// kcompactd writeback" (CVE-2025-21908).
	kcompactdFix = fix{version{6, 3, 0}, []version{{6, 6, 83}, {6, 12, 19}, {6, 13, 7}, {6, 14, 0}}}

	// neverSince is the oldest version that is known to be like those before
	// releaseFix.from; 3.18 and some after it wait for a second.
	neverSince = version{5, 4, 0}
)

// fixed returns the version of f.in that v has, nil if none.
func (f fix) fixed(v version) *version {
	last := len(f.in) - 1
	for i, in := range f.in {
		if !v.before(in) && (i == last || v.major == in.major && v.minor == in.minor) {
			return &f.in[i]
		}
	}
	return nil
}

// versions lists where the fix is, for people.
func (f fix) versions() string {
	var s []string
	for _, in := range f.in {
		s = append(s, in.String())
	}
	return strings.Join(s, ", ") + " or newer"
}

// What tells that a kernel has releaseFix: names of its functions, and what
// package changelogs say.
var (
	fixSymbols = []string{"nfs_wb_folio_reclaim", "__traceiter_nfs_writeback_folio_reclaim"}
	nfsSymbol  = "nfs_wb_all"
	fixTitles  = []string{"NFS: Fix a deadlock involving nfs_release_folio()", "CVE-2026-23053"}
)

// Kernel tells which kernel runs, and what its release policy is.
func (h *Host) Kernel() Kernel {
	k, v, known := h.release()
	k.Policy, k.Evidence = k.policy(v, known, h.symbols, h.changelog)
	k.KcompactdWaits = k.Policy == Waits && known && kcompactdFix.fixed(v) == nil
	return k
}

// KernelMayWait reports whether the kernel may be one that waits in nfs_release_folio, by its
// version alone: to look for the fix in its code takes long on a slow machine.
func (h *Host) KernelMayWait() bool {
	k, v, known := h.release()
	policy, _ := k.policy(v, known,
		func() (nfs, fix bool) { return false, false },
		func(*Kernel) (found, fix bool) { return false, false })
	return policy != NeverWaits
}

// release identifies the kernel that runs, and its version if that is known.
func (h *Host) release() (k Kernel, v version, known bool) {
	release, _ := h.read("proc/sys/kernel/osrelease")
	built, _ := h.read("proc/sys/kernel/version")
	signature, _ := h.read("proc/version_signature")
	k = identify(release, built, signature)
	v, known = parseVersion(k.Base)
	return k, v, known
}

// identify finds out which kernel it is. Debian and Ubuntu give their packages
// numbers of the kernel's interface and tell the version elsewhere.
func identify(release, built, signature string) Kernel {
	k := Kernel{Release: release}
	base := release
	if _, pkg, ok := strings.Cut(built, " Debian "); ok {
		k.Package = firstField(pkg)
		base = k.Package
	} else if f := strings.Fields(signature); len(f) == 3 && f[0] == "Ubuntu" { // "Ubuntu 6.8.0-45.45-generic 6.8.12"
		k.Package = cutFlavour(f[1])
		base = f[2]
		k.heavy = true
	} else {
		k.heavy = vendor(release)
	}
	if v, ok := parseVersion(base); ok {
		k.Base = v.String()
	}
	return k
}

// cutFlavour takes the version of a package out of "6.8.0-45.45-generic".
func cutFlavour(s string) string {
	if i := strings.LastIndexByte(s, '-'); i > strings.IndexByte(s, '-') {
		return s[:i]
	}
	return s
}

// vendor reports whether a release is of a distribution that keeps the version
// and takes fixes of newer ones.
func vendor(release string) bool {
	for _, mark := range []string{".el", ".amzn", ".azl", ".cm2", "-generic", "-azure", "-aws", "-gcp", "-oracle", "-pve", "-default"} {
		if strings.Contains(release, mark) {
			return true
		}
	}
	return false
}

// parseVersion reads the number that s begins with: 6.12.43+deb12 is 6.12.43.
func parseVersion(s string) (v version, ok bool) {
	end := strings.IndexFunc(s, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if end >= 0 {
		s = s[:end]
	}
	parts := strings.SplitN(s, ".", 4)
	if len(parts) < 2 {
		return v, false
	}
	for i, n := range []*int{&v.major, &v.minor, &v.patch} {
		if i == len(parts) {
			break
		}
		var err error
		if *n, err = strconv.Atoi(parts[i]); err != nil {
			return v, false
		}
	}
	return v, true
}

// policy decides by what is surest: the code that runs, then the version, then
// what the package says it contains.
func (k *Kernel) policy(v version, known bool, symbols func() (nfs, fix bool), changelog func(*Kernel) (found, fix bool)) (Policy, string) {
	nfs, fix := symbols()
	if fix {
		return NeverWaits, "it has the function nfs_wb_folio_reclaim, which came with the fix"
	}
	if !known {
		return Unknown, "its version is not one that is known"
	}
	if in := releaseFix.fixed(v); in != nil {
		return NeverWaits, fmt.Sprintf("%s has the fix since %s", v, in)
	}
	found, fix := changelog(k)
	switch {
	case fix:
		return NeverWaits, "the changelog of its package names the fix"
	case v.before(releaseFix.from) && k.heavy:
		return Unknown, fmt.Sprintf("it is a %s to which its distribution added much, and its code does not tell", v)
	case v.before(neverSince):
		return Unknown, fmt.Sprintf("%s is too old to be known here", v)
	case v.before(releaseFix.from):
		return NeverWaits, fmt.Sprintf("%s is older than %s, the first that waits", v, releaseFix.from)
	case nfs:
		return Waits, fmt.Sprintf("%s is %s or newer, and the code with the fix is not in it", v, releaseFix.from)
	case found:
		return Waits, fmt.Sprintf("%s is %s or newer, and the changelog of its package does not name the fix", v, releaseFix.from)
	case k.heavy:
		return Unknown, fmt.Sprintf("%s waits unless its distribution added the fix; that can be seen once NFS is mounted", v)
	}
	return Waits, fmt.Sprintf("%s is %s or newer, and the fix is in %s", v, releaseFix.from, releaseFix.versions())
}

// symbols looks for functions in the kernel: of the NFS client, and of the fix.
func (h *Host) symbols() (nfs, fix bool) {
	_ = h.lines("proc/kallsyms", func(line string) bool {
		_, line, _ = strings.Cut(line, " ") // address type name [module]
		_, line, _ = strings.Cut(line, " ")
		name, _, _ := strings.Cut(line, "\t")
		nfs = nfs || name == nfsSymbol
		fix = fix || name == fixSymbols[0] || name == fixSymbols[1]
		return !fix
	})
	return nfs, fix
}

// changelog reads that of the package of the kernel: whether it is there, and
// names the fix. What was added after the version that runs does not count.
func (h *Host) changelog(k *Kernel) (found, fix bool) {
	if k.Package == "" || !safeWord(k.Release) {
		return false, false
	}
	for _, pkg := range []string{"linux-image-", "linux-modules-"} {
		for _, name := range []string{"changelog.Debian.gz", "changelog.gz"} {
			f, err := h.Root.Open("usr/share/doc/" + pkg + k.Release + "/" + name)
			if err != nil {
				continue
			}
			if z, err := gzip.NewReader(f); err == nil && !fix {
				ok, has := readChangelog(z, k.Package)
				found, fix = found || ok, fix || has
			}
			f.Close()
		}
	}
	return found, fix
}

// readChangelog looks for the fix in the entries of pkg and older ones. A package
// that only signs a kernel has an entry of its own before the real one.
func readChangelog(r io.Reader, pkg string) (found, fix bool) {
	reached := false
	err := scan(r, func(line string) bool {
		source, ver, header := changelogHeader(line)
		reached = reached || header && ver == dashes(pkg)
		found = found || reached && header && !strings.HasPrefix(source, "linux-signed")
		fix = reached && (strings.Contains(line, fixTitles[0]) || strings.Contains(line, fixTitles[1]))
		if strings.HasPrefix(line, "# Older entries have been removed") {
			found = false // the fix may have been in one of them
		}
		return !fix
	})
	return found && err == nil, fix
}

// changelogHeader splits "linux (6.12.117-1) trixie-security; urgency=high".
func changelogHeader(line string) (source, ver string, ok bool) {
	source, rest, ok := strings.Cut(line, " (")
	ver, _, closed := strings.Cut(rest, ") ")
	return source, dashes(ver), ok && closed && strings.HasPrefix(source, "linux")
}

// dashes makes versions comparable: that of a signed package has a plus sign
// where the kernel has a dash.
func dashes(ver string) string { return strings.ReplaceAll(ver, "+", "-") }
