// Program mapper leaves pages of a file dirty and no file open: it writes to a memory
// map once /tmp/go is there, and ends. Closing a file would wait for the server.
package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const size = 100 << 10

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "mapper:", err)
		os.Exit(1)
	}
}

func run(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.WriteFile("/tmp/mapped", nil, 0o644); err != nil {
		return err
	}
	for {
		if _, err := os.Stat("/tmp/go"); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	for i := range data {
		data[i] = 'x'
	}
	return nil
}
