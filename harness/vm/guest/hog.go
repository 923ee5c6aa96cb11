package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// hog takes kb of anonymous memory and keeps all of it in use.
func hog(kb int) error {
	mem, err := unix.Mmap(-1, 0, kb<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("hog of %d KiB: %w", kb, err)
	}
	page := os.Getpagesize()
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
