package harness

import (
	"slices"
	"strings"
	"testing"

	"loopnfs/harness/vm/job"
)

// Tails of real stacks, innermost first.
const (
	allocates  = " shrink_one shrink_node do_try_to_free_pages try_to_free_pages __alloc_pages_slowpath.constprop.0 __alloc_pages_noprof"
	swapsOut   = "__schedule schedule schedule_timeout io_schedule_timeout mempool_alloc_noprof __swap_writepage swap_writepage pageout shrink_folio_list evict_folios try_to_shrink_lruvec"
	byFault    = " alloc_pages_mpol_noprof vma_alloc_folio_noprof do_wp_page __handle_mm_fault handle_mm_fault do_user_addr_fault exc_page_fault asm_exc_page_fault"
	systemCall = " do_syscall_64 entry_SYSCALL_64_after_hwframe"
	released   = "wait_on_commit __nfs_commit_inode nfs_wb_folio nfs_release_folio shrink_folio_list"
)

func TestExplainStack(t *testing.T) {
	for _, c := range []struct{ comm, frames, want string }{
		// stacked-xfs, 6.12.43
		{"nbdkit", "balance_dirty_pages balance_dirty_pages_ratelimited_flags generic_perform_write nfs_file_write vfs_write __x64_sys_pwrite64" + systemCall,
			"nbdkit waits for dirty pages to fall below the limit"},
		{"writer", "balance_dirty_pages balance_dirty_pages_ratelimited_flags iomap_file_buffered_write xfs_file_buffered_write vfs_write" + systemCall,
			"writer waits for dirty pages to fall below the limit"},
		// swap-loopback, 6.12.117
		{"kswapd0", swapsOut + " shrink_one shrink_node balance_pgdat kswapd kthread ret_from_fork ret_from_fork_asm",
			"kswapd0 waits to swap a page out, until earlier ones are out"},
		{"hog", swapsOut + allocates + byFault,
			"hog needs memory -> direct reclaim waits to swap a page out, until earlier ones are out"},
		{"hog", "__schedule schedule throttle_direct_reclaim try_to_free_pages __alloc_pages_slowpath.constprop.0" + byFault,
			"hog needs memory -> direct reclaim waits for kswapd to free pages"},
		// swap, 6.12.43
		{"kworker/0:1", swapsOut + allocates + " alloc_pages_mpol_noprof skb_page_frag_refill try_fill_recv refill_work process_one_work worker_thread",
			"kworker/0:1 needs memory for the receive ring of the network card -> direct reclaim waits to swap a page out, until earlier ones are out"},
		{"jbd2/vdb-8", "try_to_shrink_lruvec" + allocates + " __filemap_get_folio __getblk_slow jbd2_journal_get_descriptor_buffer jbd2_journal_commit_transaction kjournald2 kthread",
			"jbd2/vdb-8 needs memory -> direct reclaim waits for pages that can be freed"},
		{"loopnfs", "jbd2_log_wait_commit ext4_sync_file do_fsync __x64_sys_fsync" + systemCall, "loopnfs waits for the journal"},
		{"jbd2/vda-8", "__schedule schedule jbd2_journal_wait_updates jbd2_journal_commit_transaction kjournald2 kthread ret_from_fork", ""},
		{"loopnfs", "__schedule schedule __lock_sock lock_sock_nested tcp_recvmsg inet6_recvmsg sock_recvmsg" + systemCall, ""},
		// release-page, 6.12.43
		{"nfsd", released + allocates + " __filemap_get_folio ext4_da_write_begin nfsd_vfs_write",
			"nfsd needs memory -> direct reclaim -> nfs_release_folio waits for the reply to COMMIT"},
		{"writer", "wait_on_commit __nfs_commit_inode nfs_wb_all nfs4_file_flush filp_flush" + systemCall, "writer waits for the reply to COMMIT"},
		// What it was doing when it needed memory is not what it waits for.
		{"writer", "io_schedule folio_wait_writeback shrink_folio_list" + allocates + " nfs_wb_folio nfs_wb_all nfs_file_fsync",
			"writer needs memory -> direct reclaim waits until a page has been written"},
		{"idle", "", ""},
	} {
		stacks := []job.Stack{{Comm: c.comm, Frames: strings.Fields(c.frames)}}
		got := ExplainStacks(stacks)
		if strings.Join(got, "\n") != c.want {
			t.Errorf("%s: %q, want %q", c.comm, got, c.want)
		}
	}
}

func TestExplainStacks(t *testing.T) {
	writer := job.Stack{Comm: "writer", Frames: []string{"rpc_wait_bit_killable"}}
	nfsd := job.Stack{Comm: "nfsd", Frames: strings.Fields(released + allocates)}
	got := ExplainStacks([]job.Stack{writer, nfsd, {Comm: "x", Frames: []string{"f"}}, writer, nfsd})
	want := []string{
		"nfsd needs memory -> direct reclaim -> nfs_release_folio waits for the reply to COMMIT",
		"writer waits for a reply of the server",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if got := ExplainStacks(nil); got == nil || len(got) > 0 {
		t.Errorf("of nothing: %#v; JSON has a list there", got)
	}
}
