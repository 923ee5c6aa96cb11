// Package crash proves the server's promises by cutting the power, in its tests:
//
//	clients ──NFS──► server ──► ext4 ──► loop device ──► disk, which records
//	                                                       │
//	   what was promised, and when ──────────┐             │ every write and flush
//	                                         ▼             ▼
//	                        check ◄── another server ◄── the disk as it was left
//
// A disk that loses power has everything that was written before its last flush, and
// of what came after any part. So each crash is a point in the record and a choice
// among the blocks written since the flush before it. The disk is mounted again, another
// server started on it, and what was acknowledged before that point has to be there, by
// the file handles of then; and the file system has to be sound.
package crash
