// Package sunrpc speaks the remote procedure call protocol version 2 (RFC 5531)
// over TCP: call and reply headers (§9), AUTH_NONE and AUTH_SYS credentials
// (§8.2, appendix A), and record marking (§11) with scatter/gather I/O.
//
// A Stream carries records over one connection. Its reading side is a small
// state machine:
//
//	          BeginRecord                  last fragment used up
//	between ──────────────► in a fragment ──────────────────────► at the end
//	   ▲                        │    ▲  fragment used up: next header   │
//	   │                        └────┘                                  │
//	   └────────────────────────────── EndRecord ───────────────────────┘
//
// Payload moves between the socket and the caller's pages with readv(2) and
// writev(2); only what arrived together with a header is copied once. Nothing
// is allocated after NewStream.
//
// Everything read is taken to be hostile: record size, fragment size and
// number, credential, verifier, machine name and groups all have limits.
//
// The allocation scope of a request travels in the stamp of AUTH_SYS, an
// arbitrary number of the client's by RFC 5531 appendix A: see StampScope.
//
// The package takes no locks: one goroutine may read a Stream while another
// writes it; several writers are the caller's to serialise. It deliberately has
// no UDP, no port mapper, no AUTH_DH or RPCSEC_GSS, no table of calls in flight
// and no dispatcher. It runs on Linux.
package sunrpc
