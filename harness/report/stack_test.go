package report

import (
	"testing"

	"loopnfs/harness"
	"loopnfs/harness/vm/job"
)

func TestStacksAreGroupedAndExplained(t *testing.T) {
	waiting := []string{"wait_on_commit", "shrink_one", "try_to_free_pages", "__alloc_pages_slowpath.constprop.0", "alloc_pages_bulk_noprof", "nfsd_vfs_write"}
	locked := []string{"ext4_buffered_write_iter", "vfs_iter_write", "nfsd_vfs_write"}
	r := &run{Result: &harness.Result{Server: "knfsd", Stacks: []job.Stack{
		{PID: 2, Comm: "nfsd", Frames: locked}, {PID: 3, Comm: "nfsd", Frames: waiting},
		{PID: 4, Comm: "nfsd", Frames: locked}, {PID: 5, Comm: "cat", Frames: []string{"pipe_read"}},
	}}}
	groups := r.StackGroups()
	var got []string
	for _, g := range groups {
		got = append(got, g.Tasks()+" | "+g.Role+" | "+g.Means())
	}
	want := []string{
		"nfsd | the NFS server | sleeps until the server has answered COMMIT. Its work: the NFS server stores the data of a WRITE.",
		"nfsd × 2 | the NFS server | waits for the lock of a file, which another writer has. Its work: the NFS server stores the data of a WRITE.",
		"cat |  | ",
	}
	if len(got) != len(want) {
		t.Fatalf("got %q", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %q, want %q", got[i], want[i])
		}
	}
	kinds := ""
	for _, f := range groups[0].Frames {
		kinds += f.Kind + ","
	}
	if kinds != "waits,,reclaims,reclaims,reclaims,works," {
		t.Errorf("marked are %s", kinds)
	}
}
