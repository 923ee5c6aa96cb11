package sunrpc

// scopeMagic marks a stamp that carries a scope; 24 bits, "LNF".
const scopeMagic = 0x4c4e46

// StampScope returns the AUTH_SYS stamp that carries wire, the wire form of an
// allocation scope, to the server.
func StampScope(wire uint8) uint32 { return scopeMagic<<8 | uint32(wire) }

// ScopeFromStamp returns the scope that a stamp carries, and whether it carries
// one. It is what the client says and nothing more: the stamp of another kind of
// client has the magic by chance once in 2^24, so a server heeds it only from
// clients that it trusts with its reserve of memory.
func ScopeFromStamp(stamp uint32) (uint8, bool) {
	return uint8(stamp), stamp>>8 == scopeMagic
}
