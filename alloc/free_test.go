package alloc

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"
)

// The map against a plain set: nothing is given out twice or lost, and the lowest come first.
func TestFreeMap(t *testing.T) {
	const size = 3*64*64 + 17
	rng := rand.New(rand.NewPCG(1, 2))
	m := newFreeMap(size)
	var free, taken []uint32
	for n := uint32(1); n < size; n++ {
		taken = append(taken, n)
	}
	for range 2000 {
		if n := rng.IntN(300); len(free) < n || rng.IntN(2) == 0 {
			rng.Shuffle(len(taken), func(i, j int) { taken[i], taken[j] = taken[j], taken[i] })
			n = min(n, len(taken))
			for _, num := range taken[:n] {
				m.put(num)
			}
			free, taken = append(free, taken[:n]...), taken[n:]
			slices.Sort(free)
			continue
		}
		limit := 1 + rng.IntN(len(free)+1)
		w, got := m.take(limit)
		n := bits.OnesCount64(got)
		if n == 0 || n > limit {
			t.Fatalf("%d folios of at most %d", n, limit)
		}
		for _, want := range free[:n] {
			if num := uint32(w*64 + bits.TrailingZeros64(got)); num != want {
				t.Fatalf("got folio %d, the lowest is %d", num, want)
			}
			got &= got - 1
		}
		taken, free = append(taken, free[:n]...), free[n:]
	}
}

// What was given back in any order is taken side by side.
func TestNeighboursStay(t *testing.T) {
	a, _ := newArena(t, DefaultPolicy())
	fs := fill(t, a, 0)
	rand.Shuffle(len(fs), func(i, j int) { fs[i], fs[j] = fs[j], fs[i] })
	a.PutAll(fs)
	for i, f := range fill(t, a, 0) {
		if f.Num() != uint32(i+1) {
			t.Fatalf("folio %d is number %d", i, f.Num())
		}
	}
}
