package failover

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Hog takes n bytes of memory, and keeps touching them, until it is killed. It asks the OOM
// killer to take it before all others.
func Hog(ctx context.Context, n int64) error {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		return err
	}
	mem, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		for i := 0; i < len(mem); i += os.Getpagesize() {
			mem[i]++
		}
		time.Sleep(10 * time.Millisecond)
	}
	return ctx.Err()
}
