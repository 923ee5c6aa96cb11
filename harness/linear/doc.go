// Package linear proves, in its tests and in drills that take the server away (Load), that
// changes of the name space are linearizable: that each of them happens at one moment
// between its call and its reply, whatever other clients do meanwhile.
//
//	clients ──NFS──► server, which is killed
//	   │
//	   what was called when, and what was replied ──► porcupine ◄── model: what a name
//	                                                                space replies if one
//	                                                                call comes after another
//
// A few clients work on a handful of names in two directories, and in those that they make
// there. The model knows what each name stands for, by file handle. porcupine looks for an
// order of the calls that explains all replies and agrees with their times. Groups of
// clients with directories of their own are checked one by one.
//
// What is promised, and modelled:
//
//   - A call that is sent again with the same XID, on the same connection or another, is
//     carried out once.
//   - A call that was answered gets the same reply if it is sent again, or from the next
//     server one that leaves attributes and handle out.
//   - All of that holds whenever servers are killed. The next one finds out what the last
//     one has done. It may then answer CREATE, MKDIR and SYMLINK without a file handle, as
//     RFC 1813 lets it.
//   - Who uses a directory or a file that is gone is told so: NFS3ERR_STALE.
//
// Not modelled: the attributes that come with replies, which may be later than the call, and
// READDIR, which takes several calls.
package linear
