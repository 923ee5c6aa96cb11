package main

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// hog takes kb of anonymous memory and keeps all of it in use.
func hog(kb int) error {
	mem, err := unix.Mmap(-1, 0, kb<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("hog of %d KiB: %w", kb, err)
	}
	page := unix.Getpagesize()
	for first := true; ; first = false {
		for i := 0; i < len(mem); i += page {
			mem[i]++
		}
		if first {
			fmt.Println("ready")
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// churn takes huge pages and gives them back, for ever: each needs memory in one
// piece, and for that the kernel moves pages.
func churn(mib int) error {
	const huge = 2 << 20
	for ; ; time.Sleep(20 * time.Millisecond) {
		mem, err := unix.Mmap(-1, 0, mib<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return fmt.Errorf("churn of %d MiB: %w", mib, err)
		}
		if err := unix.Madvise(mem, unix.MADV_HUGEPAGE); err != nil {
			return fmt.Errorf("churn: MADV_HUGEPAGE: %w", err)
		}
		for i := 0; i < len(mem); i += huge {
			mem[i]++
		}
		if err := unix.Munmap(mem); err != nil {
			return fmt.Errorf("churn: munmap: %w", err)
		}
	}
}
