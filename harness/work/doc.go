// Package work is the load of a drill that remembers what it was promised: it
// writes through a mount, and records outside of it what was about to be
// changed and what was acknowledged (by fsync, or by the close of a
// close-to-open file system). Verify compares the record with what is there,
// after a crash, a hang or a remount.
//
// A worker is a process of its own: whoever serves the mount must not wait for
// it.
package work
