package nfsserver

import (
	"loopnfs/alloc"
	"loopnfs/internal/vfs"
)

// receipt is what a call is received into, before it has a slot. A connection has one
// while a record arrives: most connections are idle, and need none.
type receipt struct {
	args   []byte
	folios []*alloc.Folio
	data   vfs.Vec
}

// spares are things of one kind that nobody uses: as many as are used at once as a rule.
// More are made when they are needed, and given up.
type spares[T any] struct {
	free chan T
	make func() T
}

func newSpares[T any](n int, make1 func() T) spares[T] {
	s := spares[T]{free: make(chan T, n), make: make1}
	for range n {
		s.free <- make1()
	}
	return s
}

func (s *spares[T]) take() T {
	select {
	case v := <-s.free:
		return v
	default:
		return s.make()
	}
}

func (s *spares[T]) put(v T) {
	select {
	case s.free <- v:
	default:
	}
}

func (s *Server) newReceipt() *receipt {
	in := &receipt{args: touched[byte](headLimit), folios: make([]*alloc.Folio, s.ioPages)}
	reserveVec(&in.data, s.ioPages+1)
	return in
}

// newRanges returns room for the largest reply, or many small ones.
func (s *Server) newRanges() [][]byte { return touched[[]byte](s.ioPages + 3)[:0] }
