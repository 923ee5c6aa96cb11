package doctor

import (
	"os"
	"strconv"
	"strings"
)

// Memory is how the kernel's memory management is set. -1 is for what cannot be
// read.
type Memory struct {
	TotalBytes int64 `json:"total_bytes"`
	// DirtyBytes and DirtyRatio are sysctls; one of them is 0.
	DirtyBytes int64 `json:"dirty_bytes"`
	DirtyRatio int64 `json:"dirty_ratio"`
	// DirtyBackgroundBytes and DirtyBackgroundRatio, likewise.
	DirtyBackgroundBytes int64 `json:"dirty_background_bytes"`
	DirtyBackgroundRatio int64 `json:"dirty_background_ratio"`
	// DirtyLimitBytes is what comes of them now.
	DirtyLimitBytes         int64 `json:"dirty_limit_bytes"`
	MinFreeBytes            int64 `json:"min_free_bytes"`
	WatermarkScaleFactor    int64 `json:"watermark_scale_factor"` // of 10,000
	CompactionProactiveness int64 `json:"compaction_proactiveness"`
	// CompactUnevictable is 1 if compaction may move locked memory.
	CompactUnevictable int64 `json:"compact_unevictable_allowed"`
	// TransparentHugepages is always, madvise, never, or empty.
	TransparentHugepages string `json:"transparent_hugepages"`
	// HugepageDefrag says who compacts memory for them: always, defer,
	// defer+madvise, madvise, never, or empty.
	HugepageDefrag string `json:"hugepage_defrag"`
	SwapTotalBytes int64  `json:"swap_total_bytes"`
}

func (h *Host) memory() Memory {
	vm := func(name string) int64 { return h.number("proc/sys/vm/" + name) }
	m := Memory{
		TotalBytes: -1, SwapTotalBytes: -1, DirtyLimitBytes: -1,
		DirtyBytes: vm("dirty_bytes"), DirtyRatio: vm("dirty_ratio"),
		DirtyBackgroundBytes: vm("dirty_background_bytes"), DirtyBackgroundRatio: vm("dirty_background_ratio"),
		MinFreeBytes: kib(vm("min_free_kbytes")), WatermarkScaleFactor: vm("watermark_scale_factor"),
		CompactionProactiveness: vm("compaction_proactiveness"), CompactUnevictable: vm("compact_unevictable_allowed"),
		TransparentHugepages: chosen(h.read("sys/kernel/mm/transparent_hugepage/enabled")),
		HugepageDefrag:       chosen(h.read("sys/kernel/mm/transparent_hugepage/defrag")),
	}
	_ = h.lines("proc/meminfo", func(line string) bool {
		switch f := strings.Fields(line); {
		case len(f) < 2:
		case f[0] == "MemTotal:":
			m.TotalBytes = kib(atoi(f[1]))
		case f[0] == "SwapTotal:":
			m.SwapTotalBytes = kib(atoi(f[1]))
		}
		return true
	})
	_ = h.lines("proc/vmstat", func(line string) bool {
		if s, ok := strings.CutPrefix(line, "nr_dirty_threshold "); ok {
			m.DirtyLimitBytes = pages(atoi(s))
		}
		return true
	})
	return m
}

// atoi returns -1 for what is not a number of something.
func atoi(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 50)
	if err != nil || n < 0 {
		return -1
	}
	return n
}

func kib(n int64) int64 {
	if n < 0 || n >= 1<<50 {
		return -1
	}
	return n << 10
}

// chosen returns the word in brackets.
func chosen(s string, _ error) string {
	_, s, _ = strings.Cut(s, "[")
	s, _, ok := strings.Cut(s, "]")
	if !ok {
		return ""
	}
	return s
}

// pages returns the bytes of n pages.
func pages(n int64) int64 {
	if n < 0 {
		return -1
	}
	return n * int64(os.Getpagesize())
}
