// Package nfs3 encodes and decodes the NFS version 3 protocol and its MOUNT
// protocol (RFC 1813 §2, §3 and appendix I), for the server and for the client.
//
// Each procedure has one file with an Args and a Result type; both have Encode
// and Decode. A Result starts with its Status; what else is in it depends on
// that, as in the unions of the RFC, and Decode leaves everything absent zero.
// Types of internal/vfs stand for fattr3, wcc_attr, wcc_data and sattr3.
//
// The payload of READ and WRITE is not in the messages: the codec stops behind
// its length word, and the caller moves DataLen bytes and their padding between
// pages and socket. Directory listings are encoded entry by entry into a buffer
// with an exact bound (DirWriter) and decoded entry by entry (NextEntry).
//
// Byte slices in a decoded message are borrowed from the decoder's data. Nothing
// allocates. Every length has a limit: handles 64 bytes, names 255, paths 1024,
// symbolic links 4096. Two of them have errors of their own, ErrBadHandle and
// ErrNameTooLong, because a server answers them with a status and not with
// GARBAGE_ARGS. Enumerations and nanoseconds out of range are xdr.ErrBadValue.
//
// Times before 1970 and after 2106 do not exist in NFSv3; they are clamped.
//
// The package deliberately knows nothing of transport, of what makes a valid
// name ("." or "a/b" pass), of portmap, NLM or NSM. It holds no state and takes
// no locks. Status values and procedure numbers are those of
// github.com/willscott/go-nfs and github.com/vmware/go-nfs-client, so that code
// written against these meets the same numbers.
package nfs3
