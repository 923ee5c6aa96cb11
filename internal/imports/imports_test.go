package imports

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "loopnfs/"

// leaves know nothing of this module, and everybody may import them.
var leaves = []string{"internal/waitfor", "internal/waitq", "internal/xdr", "internal/fslog"}

// filesystems is what the two ends of a mount, and its doors, are made of. They
// do not know each other.
var filesystems = []string{
	"alloc/gfp", "alloc", "internal/vfs", "internal/sunrpc", "internal/nfs3",
	"reclaim/writeback", "internal/pagecache", "reclaim",
}

// table lists, bottom up, what each package may import of this module besides
// the leaves. An entry stands for the packages below it in the tree too. Tests
// are free: they may put together what the program must not.
var table = []struct {
	pkg    string
	allows []string
}{
	{"internal/waitfor", nil},
	{"internal/waitq", nil},
	{"internal/xdr", nil},
	{"internal/fslog", nil},
	{"internal/imports", nil},
	{"internal/hostguard", nil},
	{"internal/pressure", nil},
	{"internal/memgroup", nil},
	{"internal/lease", nil},
	{"internal/hostaddr", nil},
	{"internal/nfsmount", []string{"internal/hostaddr"}},
	{"internal/doctor", []string{"internal/hostguard", "internal/memgroup"}},
	{"alloc/gfp", nil},
	{"internal/vfs", []string{"alloc/gfp"}},
	{"alloc", []string{"alloc/gfp"}},
	{"internal/sunrpc", []string{"alloc/gfp", "internal/vfs"}},
	{"internal/nfs3", []string{"alloc/gfp", "internal/vfs"}},
	{"internal/nlm4", nil},
	{"internal/portmap", []string{"internal/sunrpc"}},
	{"internal/nlm", []string{"internal/nlm4", "internal/sunrpc", "internal/portmap", "internal/hostaddr"}},
	{"reclaim/writeback", []string{"alloc/gfp", "internal/vfs"}},
	{"internal/pagecache", []string{"alloc/gfp", "internal/vfs", "alloc", "reclaim/writeback"}},
	{"reclaim", []string{"alloc/gfp", "internal/vfs", "alloc", "reclaim/writeback", "internal/pagecache"}},
	{"nfsclient", filesystems},
	{"nfsserver", slices.Concat(filesystems, []string{"internal/hostaddr", "internal/nlm4", "internal/nlm"})},
	{"fusefs", filesystems},
	{"internal/stack", slices.Concat(filesystems, []string{"internal/nlm", "nfsclient", "nfsserver", "fusefs"})},
	{"billyfs", slices.Concat(filesystems, []string{"nfsserver", "internal/stack"})},
	{"scripts/cluster", nil},
	{"harness", slices.Concat(filesystems, []string{"internal/nlm4", "internal/nlm", "nfsclient", "nfsserver", "fusefs", "internal/stack"})},
	{"harness/failover/host", nil},
	{"harness/vm/guest", []string{"harness", "harness/failover/host"}},
	{"harness/failover", []string{"internal/nfs3", "internal/vfs", "internal/nlm4", "internal/nlm", "scripts/cluster", "harness", "harness/failover/host"}},
	{"harness/report", []string{"harness"}},
	{"cmd", slices.Concat(filesystems, []string{"nfsclient", "nfsserver", "fusefs", "internal/stack", "harness", "harness/failover", "harness/failover/host", "harness/report",
		"internal/hostguard", "internal/pressure", "internal/lease", "internal/memgroup", "internal/hostaddr", "internal/nfsmount", "internal/doctor", "internal/portmap", "internal/nlm"})},
}

// foreign lists packages of others, and what of ours may import them.
var foreign = map[string][]string{"github.com/hanwen/go-fuse": {"fusefs", "harness/bench/gofuse"}}

// owner returns the entry of the table that pkg belongs to: the longest match.
func owner(pkg string) string {
	best := ""
	for _, e := range table {
		if (pkg == e.pkg || strings.HasPrefix(pkg, e.pkg+"/")) && len(e.pkg) > len(best) {
			best = e.pkg
		}
	}
	return best
}

func allowed(from, to string) bool {
	if from == to || slices.Contains(leaves, to) {
		return true
	}
	for _, e := range table {
		if e.pkg == from {
			return slices.Contains(e.allows, to)
		}
	}
	return false
}

// eachImport calls f for every import of every Go file that is not a test.
func eachImport(t *testing.T, f func(pkg, file, imported string)) {
	t.Helper()
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
				return filepath.SkipDir
			}
			return nil
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		tree, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		file, err := filepath.Rel(root, path)
		for _, spec := range tree.Imports {
			f(filepath.ToSlash(filepath.Dir(file)), file, strings.Trim(spec.Path.Value, `"`))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestImportsPointDown(t *testing.T) {
	seen := 0
	eachImport(t, func(pkg, file, imported string) {
		seen++
		from := owner(pkg)
		if from == "" {
			t.Errorf("%s: package %s is not in the table: add it here and in docs/design/packages.md", file, pkg)
			return
		}
		to, ours := strings.CutPrefix(imported, module)
		if ours && !allowed(from, owner(to)) {
			t.Errorf("%s: %s must not import %s", file, pkg, to)
		}
		for prefix, only := range foreign {
			if strings.HasPrefix(imported, prefix) && !slices.Contains(only, pkg) {
				t.Errorf("%s: only %s may import %s", file, strings.Join(only, ", "), prefix)
			}
		}
	})
	if seen < 50 {
		t.Errorf("only %d imports found: the test looks in the wrong place", seen)
	}
}

// The edges that must never exist, whoever edits the table.
func TestForbiddenEdges(t *testing.T) {
	for _, e := range [][2]string{
		{"alloc", "reclaim"}, {"reclaim", "nfsclient"}, {"reclaim", "fusefs"},
		{"nfsserver", "nfsclient"}, {"nfsclient", "nfsserver"}, {"nfsserver", "fusefs"},
		{"fusefs", "nfsserver"}, {"fusefs", "nfsclient"}, {"nfsclient", "fusefs"},
		{"harness", "harness/report"}, {"internal/stack", "billyfs"},
		{"internal/nlm", "nfsserver"}, {"internal/nlm", "alloc"},
		{"reclaim/writeback", "alloc"}, {"internal/waitfor", "alloc"},
	} {
		if allowed(e[0], e[1]) {
			t.Errorf("the table allows %s to import %s", e[0], e[1])
		}
	}
}

// The table is written bottom up: an edge up is a mistake in the table.
func TestTableIsInOrder(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range table {
		for _, to := range e.allows {
			if !seen[to] {
				t.Errorf("%s may import %s, which does not come before it", e.pkg, to)
			}
		}
		seen[e.pkg] = true
	}
}
