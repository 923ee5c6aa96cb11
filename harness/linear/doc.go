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
//   - A call that was answered gets the same reply if it is sent again, also by the next
//     server.
//   - If the server is killed meanwhile, a call may have been carried out without its reply
//     being on record. It is then carried out again by the next server, and is answered as a
//     second try: CREATE with NFS3ERR_EXIST, REMOVE with NFS3ERR_NOENT. So there is up to
//     one more execution for each time that the server is killed between call and reply, and
//     none if it is not. An EXCLUSIVE CREATE succeeds again, for it knows its verifier.
//   - Who uses a directory or a file that is gone is told so: NFS3ERR_STALE.
//
// Not modelled: the attributes that come with replies, which may be later than the call, and
// READDIR, which takes several calls.
package linear
