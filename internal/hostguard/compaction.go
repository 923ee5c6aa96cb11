package hostguard

import (
	"errors"
	"os"
	"strings"
)

// Who compacts memory moves pages by the dozen and holds all of them, locked, until the
// last can go; to split a large one that is dirty, a process waits for the server that
// wrote it (migrate_pages_batch, nfs_release_folio). What it holds meanwhile may be the
// server's own. So these settings, which are those of the whole host, leave as little as
// can be to processes that wait. Kernels without compaction, or huge pages, have none.

// keepInPlace keeps compaction from moving locked memory.
func keepInPlace() error {
	const file = "/proc/sys/vm/compact_unevictable_allowed"
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) || strings.TrimSpace(string(b)) == "0" {
		return nil
	}
	return os.WriteFile(file, []byte("0"), 0)
}

const hugepageDir = "/sys/kernel/mm/transparent_hugepage/"

// deferHugepages leaves it to kcompactd, which does not wait, to compact memory for huge
// pages, on a kernel where others wait. They are still used where there are some.
func deferHugepages(kernelWaits bool) error {
	if !kernelWaits {
		return nil
	}
	defrag, err := os.ReadFile(hugepageDir + "defrag")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil && !compactsLater(string(defrag)) {
		err = os.WriteFile(hugepageDir+"defrag", []byte("defer"), 0)
	}
	return errors.Join(err, os.WriteFile(hugepageDir+"khugepaged/defrag", []byte("0"), 0))
}

// compactsLater reports whether the setting has no process wait for compaction.
func compactsLater(defrag string) bool {
	return strings.Contains(defrag, "[defer]") || strings.Contains(defrag, "[never]")
}
