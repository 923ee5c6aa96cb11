package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"loopnfs/harness/vm/job"
)

// Kinds of kernel functions that matter, as names in the style sheet.
const (
	waits    = "waits"    // here the task sleeps
	reclaims = "reclaims" // here it looks for memory
	works    = "works"    // this is what it wanted to do
)

// function is what one function of the kernel does for this story.
type function struct{ kind, means string }

// functions are those that matter, without the suffixes that compilers and build
// options give them.
var functions = map[string]function{
	"wait_on_commit":          {waits, "sleeps until the server has answered COMMIT"},
	"nfs_commit_inode":        {waits, "asks the server to put a file's data on its disk: COMMIT"},
	"nfs_wb_folio":            {waits, "has a page of the mount written and committed, and waits for it"},
	"nfs_wb_page":             {waits, "has a page of the mount written and committed, and waits for it"},
	"nfs_wb_all":              {waits, "has all of a file written and committed, and waits for it"},
	"rpc_wait_bit_killable":   {waits, "sleeps until the server has answered"},
	"folio_wait_writeback":    {waits, "waits until a page is on the disk, or with the server"},
	"folio_wait_bit_common":   {waits, "sleeps until a page is no longer in use"},
	"balance_dirty_pages":     {waits, "sleeps until less of memory is dirty"},
	"reclaim_throttle":        {waits, "sleeps, since reclaim finds nothing to free"},
	"throttle_direct_reclaim": {waits, "sleeps until the kernel has freed pages in the background"},
	"jbd2_log_wait_commit":    {waits, "sleeps until the journal of ext4 is on the disk"},
	"wait_transaction_locked": {waits, "sleeps until the journal of ext4 takes more"},
	"percpu_rwsem_wait":       {waits, "sleeps until the file system is no longer frozen"},
	"nfs_start_io_write":      {waits, "waits for its turn to write to this file: another writer has it"},
	"io_schedule":             {waits, "sleeps until the disk has answered"},

	"nfs_release_folio":    {reclaims, "the NFS client is asked to give up a page of the mount"},
	"shrink_folio_list":    {reclaims, "looks at pages one by one, to free them"},
	"shrink_node":          {reclaims, "goes through memory for pages to free"},
	"try_to_free_pages":    {reclaims, "direct reclaim: no page is free, so this task must free one itself"},
	"alloc_pages_slowpath": {reclaims, "no page is free"},
	"alloc_pages_bulk":     {reclaims, "needs pages"},
	"filemap_get_folio":    {reclaims, "needs a page for data of a file"},
	"compact_zone":         {reclaims, "moves pages together"},
	"migrate_pages":        {reclaims, "moves pages elsewhere"},
	"swap_writepage":       {reclaims, "writes a page to the swap file"},
	"do_swap_page":         {reclaims, "must get a page back from the swap file"},
	"filemap_fault":        {reclaims, "must get a page of a file back, perhaps of its own code"},
	"do_anonymous_page":    {reclaims, "touched memory of its own that is not there yet"},

	"svc_recv":                 {works, "the NFS server receives the next request"},
	"nfsd_vfs_write":           {works, "the NFS server stores the data of a WRITE"},
	"nfsd_commit":              {works, "the NFS server carries out a COMMIT"},
	"nfs_file_write":           {works, "writes to a file of the NFS mount"},
	"nfs_write_begin":          {works, "writes to a page of the NFS mount"},
	"ext4_da_write_begin":      {works, "ext4, in which the server stores, wants a page for the data"},
	"ext4_buffered_write_iter": {works, "ext4, in which the server stores, writes to a file"},
	"xfs_file_buffered_write":  {works, "XFS writes to a file"},
	"x64_sys_pwrite64":         {works, "a program has called pwrite(2)"},
	"x64_sys_write":            {works, "a program has called write(2)"},
	"x64_sys_fsync":            {works, "a program has called fsync(2)"},
}

// locked are functions that take a lock without a function of its own to show
// for it: a stack that begins with one waits for the lock.
var locked = map[string]string{
	"ext4_buffered_write_iter": "waits for the lock of a file, which another writer has",
	"xfs_ilock":                "waits for the lock of a file",
}

// lookUp finds what is known of a function.
func lookUp(frame string) (function, bool) {
	name, _, _ := strings.Cut(frame, ".") // .constprop.0, .isra.0, .part.0
	name = strings.TrimSuffix(strings.TrimLeft(name, "_"), "_noprof")
	f, ok := functions[name]
	return f, ok
}

// stackGroup is tasks of one name that stand in the same place.
type stackGroup struct {
	Comm, Role string
	PIDs       []int
	Frames     []frame // innermost first
}

// frame is a line of a stack; Kind is empty if it does not matter.
type frame struct{ Name, Kind, Means string }

// Stacks returns the stacks, those that say most first.
func (r *run) StackGroups() []stackGroup {
	var groups []stackGroup
	index := map[string]int{}
	for _, s := range r.Stacks {
		key := s.Comm + "\n" + strings.Join(s.Frames, "\n")
		i, ok := index[key]
		if !ok {
			i = len(groups)
			index[key] = i
			groups = append(groups, stackGroup{Comm: s.Comm, Role: roleOf(s.Comm, r.Server), Frames: frames(s)})
		}
		groups[i].PIDs = append(groups[i].PIDs, s.PID)
	}
	slices.SortStableFunc(groups, func(a, b stackGroup) int {
		return cmp.Compare(b.said(), a.said())
	})
	return groups
}

func frames(s job.Stack) []frame {
	var all []frame
	for i, name := range s.Frames {
		f := frame{Name: name}
		if known, ok := lookUp(name); ok {
			f.Kind, f.Means = known.kind, known.means
		}
		if means := locked[name]; i == 0 && means != "" {
			f.Kind, f.Means = waits, means
		}
		all = append(all, f)
	}
	return all
}

// said is how many of the frames are explained.
func (g *stackGroup) said() int {
	n := 0
	for _, f := range g.Frames {
		if f.Kind != "" {
			n++
		}
	}
	return n
}

// Tasks says whose stack it is.
func (g *stackGroup) Tasks() string {
	if len(g.PIDs) == 1 {
		return g.Comm
	}
	return fmt.Sprintf("%s × %d", g.Comm, len(g.PIDs))
}

// Means says where the tasks have got stuck, and on the way to what.
func (g *stackGroup) Means() string {
	var said []string
	for i, f := range g.Frames {
		switch {
		case f.Kind == "":
		case len(said) == 0:
			said = append(said, f.Means+".")
		case f.Kind == works && i > 0:
			return said[0] + " Its work: " + f.Means + "."
		}
	}
	return strings.Join(said, "")
}
