// Package pagecache keeps the folios of files: which page of which file is in
// memory, and in what state. It models struct address_space and mm/filemap.c.
//
// A Cache holds the folios of every file of every file system that shares an
// arena; a Backing is one such file system; a Mapping is one file.
//
//	          write              WritePages           reply UNSTABLE
//	Clean ───────────► Dirty ───────────► Writeback ─────────────────► Unstable
//	  ▲                  ▲                  │   │ write error,            │   │
//	  │                  └──────────────────┼───┘ written again meanwhile │   │
//	  └─────────────────────────────────────┴─ stable ◄────── COMMIT ─────┘   │
//	                     ▲                                                    │
//	                     └── verifier changed, written again ─────────────────┘
//
// A folio is in exactly one state and on the list of its mapping for that
// state, in the order in which it got there; Seq counts arrivals. So "all that
// was dirty when fsync began" is a prefix of a list, and fsync cannot be kept
// from finishing by those who go on writing.
//
// Only Clean folios are freed. For Unstable and for Private ones, reclaim asks
// the file system (Ops.ReleaseFolio), and only if the allocation may enter one.
//
// Lock order:
//
//	Mapping.mu
//	  hash shard, Backing.mu, LRU lock, Arena.mu, wait queues (leaves)
//
// Neither is held while Ops are called. Folios are found through one hash table
// of fixed size: cost does not depend on how many files there are, nor on their
// sizes, and nothing is allocated.
package pagecache
