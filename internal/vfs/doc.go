// Package vfs is the contract between a door (FUSE, NFS) and the file system
// behind it (the store, the NFS client).
//
// A door turns a wire request into calls on FS and an error into a wire
// status. Errors are syscall.Errno values, possibly wrapped; each door
// translates them through one table of its own. File data crosses the contract
// as a Vec: byte ranges that stay valid until the receiver lets go of them, so
// that a door can send pages without copying them.
//
// The package holds no state and takes no locks.
package vfs
