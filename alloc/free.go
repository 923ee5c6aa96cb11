package alloc

import "math/bits"

// freeMap is which folios are free: a bit for each number, and a bit for each word of
// these that is not zero. It gives out the lowest first, so that what is taken or given
// back together lies side by side as far as that goes: a run of pages is then one range for
// a system call, instead of hundreds.
type freeMap struct {
	bits, words []uint64
	first       int // all of words before are zero
}

func newFreeMap(n int) freeMap {
	nbits := (n + 63) / 64
	return freeMap{bits: make([]uint64, nbits), words: make([]uint64, (nbits+63)/64)}
}

// put adds folio num, which is not there.
func (m *freeMap) put(num uint32) {
	w := num / 64
	m.bits[w] |= 1 << (num % 64)
	m.words[w/64] |= 1 << (w % 64)
	m.first = min(m.first, int(w/64))
}

// take removes the lowest folios that are there, at most limit and from one word, and returns
// them as bits of word w. There is one.
func (m *freeMap) take(limit int) (w int, got uint64) {
	for m.words[m.first] == 0 {
		m.first++
	}
	w = m.first*64 + bits.TrailingZeros64(m.words[m.first])
	rest := m.bits[w]
	if bits.OnesCount64(rest) <= limit {
		rest = 0
	} else {
		for range limit {
			rest &= rest - 1
		}
	}
	got = m.bits[w] &^ rest
	m.bits[w] = rest
	if rest == 0 {
		m.words[w/64] &^= 1 << (w % 64)
	}
	return w, got
}
