// Package xdr encodes and decodes the external data representation of RFC 4506
// in caller-owned byte slices: integers, booleans, opaque data and strings
// (RFC 4506 §4.1 to §4.11), which is all that SunRPC and NFSv3 need.
//
// A Decoder never reads outside its slice, never allocates and never copies:
// what it returns is borrowed from the slice. Its error is sticky, so a message
// is decoded field by field and checked once at the end. Every variable-length
// item is decoded under a limit that the caller names.
//
// The package deliberately has no reflection, no floating point, no generic
// arrays or unions (the caller spells them out), and it accepts any value in
// padding bytes, as other implementations do. It holds no state and takes no
// locks; an Encoder or a Decoder belongs to one goroutine at a time.
package xdr
