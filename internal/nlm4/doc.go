// Package nlm4 encodes and decodes the messages of the Network Lock Manager version 4
// (The Open Group, C702: XNFS version 3W, chapter 10; RFC 1813 appendix II) and
// of the Network Status Monitor version 1 (C702 chapter 11), for both ends.
//
// Byte slices in a decoded message are borrowed from the decoder's data. Nothing
// allocates. Objects (netobj), names of callers and of hosts have at most MaxObject
// bytes; more is xdr.ErrTooLong. A boolean or an enumeration out of range is
// xdr.ErrBadValue.
//
// The package deliberately knows nothing of transport, of what a range means and of
// versions 1 to 3, whose offsets have 32 bits. It holds no state and takes no locks.
package nlm4
