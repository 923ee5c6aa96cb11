// Package fslog says what log a file system keeps of its changes: with one log for all of
// them, what was changed first is on stable storage first, and a sync of what was changed
// last covers all.
package fslog

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Log is the log of a file system.
type Log int

const (
	// None: there is none, or nothing is known of it.
	None Log = iota
	// Ext4 has a journal: what one system call changes is one entry of it.
	Ext4
	// XFS has a log: what is made in a directory that has a default ACL or a security
	// label gets its own in an entry after that of the name.
	XFS
)

// Of returns the log of the file system that fd is in.
func Of(fd int) Log {
	var sf unix.Statfs_t
	if unix.Fstatfs(fd, &sf) != nil {
		return None
	}
	switch {
	case sf.Type == unix.XFS_SUPER_MAGIC:
		return XFS
	case sf.Type == unix.EXT4_SUPER_MAGIC && hasJournal(fd):
		return Ext4
	}
	return None
}

// hasJournal reports whether an ext4 has a journal: then there is a thread for it.
func hasJournal(fd int) bool {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return false
	}
	dev := strconv.Itoa(int(unix.Major(st.Dev))) + ":" + strconv.Itoa(int(unix.Minor(st.Dev)))
	disk, err := os.Readlink("/sys/dev/block/" + dev)
	if err != nil {
		return false
	}
	thread, err := os.ReadFile(filepath.Join("/sys/fs/ext4", filepath.Base(disk), "journal_task"))
	_, notOne := strconv.Atoi(strings.TrimSpace(string(thread)))
	return err == nil && notOne == nil
}
