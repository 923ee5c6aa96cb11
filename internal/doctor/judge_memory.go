package doctor

import "fmt"

// Limits of the settings.
const (
	maxDirtyRatio = 40 // percent; the kernel's default is 20, and 10 in the background
	minDirtyBytes = 8 << 20
	minFreeFloor  = 4 << 20
	minFreeCeil   = 64 << 20
	wantScale     = 100 // of 10,000: one percent
)

func (r *Report) judgeMemory() {
	r.add(r.dirtyLimit())
	r.add(r.minFree())
	if s := r.Memory.WatermarkScaleFactor; s >= 0 && s < wantScale && r.Loopbacks() > 0 {
		r.add(Finding{
			ID: "watermark-scale", Severity: Note, Subject: SubjectMemory,
			What:   fmt.Sprintf("vm.watermark_scale_factor %d", s),
			Why:    "kswapd begins to free memory late, so that everybody else has to do it and wait.",
			Remedy: []string{fmt.Sprintf("sysctl -w vm.watermark_scale_factor=%d", wantScale)},
		})
	}
}

func (r *Report) dirtyLimit() Finding {
	m := &r.Memory
	f := Finding{
		ID: "dirty-limit", Subject: SubjectMemory,
		What: fmt.Sprintf("dirty limit %s (%s), in the background from %s", r.dirtyNow(), setting(m.DirtyBytes, m.DirtyRatio), setting(m.DirtyBackgroundBytes, m.DirtyBackgroundRatio)),
		Why:  "Writers are held up before too much memory is dirty, and not too early.",
	}
	switch {
	case m.DirtyBytes < 0 || m.DirtyRatio < 0:
		f.Severity, f.Why = Note, "How much memory may be dirty is not known."
	case m.DirtyBytes > 0 && m.DirtyBytes < minDirtyBytes:
		f.Severity = r.looped(Warning, Note)
		f.Why = "With so small a limit a server that is not marked PF_LOCAL_THROTTLE waits for the pages that it is to clean: a tenth of the speed, and seconds for each write."
		f.sysctl("dirty_bytes", r.enoughDirty())
		f.sysctl("dirty_background_bytes", r.enoughDirty()/2)
	case m.DirtyBytes == 0 && m.DirtyRatio > maxDirtyRatio || m.TotalBytes > 0 && m.DirtyBytes > m.TotalBytes/100*maxDirtyRatio:
		f.Severity = r.looped(Warning, Note)
		f.Why = "So much memory may be dirty that, when it runs out, most of what could be freed has to be written by the server first."
		f.sysctl("dirty_ratio", 20)
		f.sysctl("dirty_background_ratio", 10)
	case m.DirtyBytes == 0 && m.DirtyBackgroundBytes == 0 && m.DirtyBackgroundRatio >= m.DirtyRatio:
		f.Severity = r.looped(Warning, Note)
		f.Why = "Writing in the background begins when writers are held up already, instead of before."
		f.sysctl("dirty_background_ratio", max(1, m.DirtyRatio/2))
	}
	return f
}

// dirtyNow is what the limit is at the moment.
func (r *Report) dirtyNow() string {
	if n := r.Memory.DirtyLimitBytes; n >= 0 {
		return sizeOf(n)
	}
	return "unknown"
}

// enoughDirty is a limit in bytes: little, but enough to keep a disk busy.
func (r *Report) enoughDirty() int64 {
	const enough = 32 << 20
	if t := r.Memory.TotalBytes; t > 0 && t/10 < enough {
		return max(minDirtyBytes, t/10>>20<<20)
	}
	return enough
}

func setting(bytes, ratio int64) string {
	switch {
	case bytes < 0 || ratio < 0:
		return "unknown"
	case bytes > 0:
		return sizeOf(bytes)
	}
	return fmt.Sprintf("%d %%", ratio)
}

// minFree wants one percent of the memory, in bounds: what network packets, and
// those who clean pages, take when there is nothing else.
func (r *Report) minFree() Finding {
	m := &r.Memory
	f := Finding{
		ID: "min-free", Subject: SubjectMemory, What: fmt.Sprintf("vm.min_free_kbytes %s", value(m.MinFreeBytes>>10)),
		Why: "There is a reserve for packets and for those who clean pages.",
	}
	want := min(max(m.TotalBytes/100, minFreeFloor), minFreeCeil)
	switch {
	case m.MinFreeBytes < 0 || m.TotalBytes < 0:
		f.Severity, f.Why = Note, "How large the reserve of memory is, is not known."
	case m.MinFreeBytes < want:
		f.Severity = r.looped(Warning, Note)
		f.Why = "The reserve that packets between client and server are made from, when there is no other memory, is small."
		f.sysctl("min_free_kbytes", want>>10)
	}
	return f
}

// sysctl adds a change of a setting of the memory management.
func (f *Finding) sysctl(name string, value int64) {
	permanent := fmt.Sprintf("echo 'vm.%s = %d' >> /etc/sysctl.d/90-loopback-nfs.conf", name, value)
	f.Changes = append(f.Changes, Change{Path: "/proc/sys/vm/" + name, New: fmt.Sprint(value), Permanent: permanent})
	f.Remedy = append(f.Remedy, fmt.Sprintf("sysctl -w vm.%s=%d", name, value))
}

// What swap on NFS was seen to work with, in drills on 192 MiB.
const (
	swapMinFree = 24 << 20
	swapScale   = 1000
)

func (r *Report) judgeSwap() {
	high := r.Memory.MinFreeBytes >= swapMinFree && r.Memory.WatermarkScaleFactor >= swapScale
	for i := range r.Swaps {
		if r.Swaps[i].Mount != "" {
			r.add(judgeSwapArea(&r.Swaps[i], r.isLoopback(r.Swaps[i].Mount), high))
		}
	}
}

// judgeSwapArea judges an area on a mount. high says that the watermarks leave pages
// for others than those who swap.
func judgeSwapArea(s *Swap, loopback, high bool) Finding {
	f := Finding{
		ID: "swap-on-nfs", Severity: Note, Subject: SubjectSwap,
		What:   fmt.Sprintf("swap area %s lies on an NFS mount of another host", Printable(s.Path)),
		Why:    "The kernel can do that; it depends on that host and the network whenever memory is short.",
		Remedy: []string{"swapoff " + quote(s.Path)},
	}
	switch {
	case loopback && high:
		f.Severity = Warning
		f.Why = "To free a page the kernel asks the server to write it, and the server needs pages for that. The watermarks are high enough to have kept some in drills, where loopnfs got by; nobody promises it."
	case loopback:
		f.Severity = Danger
		f.Why = "To free a page the kernel asks the server to write it, and the server needs pages for that: for its reply, which the socket takes, and for the journal of its disk. Then the host stops for good."
	case !high:
		f.Severity = Warning
		f.Why += " To hear of the replies, the driver of the network card needs pages for its receive ring; that of virtio waits in reclaim for them, which waits for the replies. Then the host stops for good."
	}
	if loopback {
		f.What = fmt.Sprintf("swap area %s lies on a loop-back NFS mount", Printable(s.Path))
	}
	if !high {
		f.Remedy = append(f.Remedy, fmt.Sprintf("sysctl -w vm.min_free_kbytes=%d vm.watermark_scale_factor=%d   # if it must stay there", swapMinFree>>10, swapScale))
	}
	if s.Through != s.Path {
		f.What += ", in " + Printable(s.Through)
		f.Why += " A loop device does not change that."
	}
	return f
}

func (r *Report) isLoopback(key string) bool {
	for i := range r.Mounts {
		if r.Mounts[i].Key() == key {
			return r.Mounts[i].Loopback
		}
	}
	return false
}
