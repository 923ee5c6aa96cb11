package main

import (
	"math/bits"
	"time"
)

// histogram counts latencies in steps of 1/16 of their size.
type histogram struct {
	count [64 * 16]uint64
	total uint64
	most  int64
}

func bucket(ns int64) int {
	v := uint64(max(ns, 1))
	top := bits.Len64(v) - 1
	if top < 4 {
		return int(v)
	}
	return (top-3)<<4 | int(v>>(top-4)&15)
}

// lower is the least latency of a bucket, in ns.
func lower(b int) int64 {
	if b < 16 {
		return int64(b)
	}
	top := b>>4 + 3
	return int64(16|b&15) << (top - 4)
}

func (h *histogram) note(ns int64) {
	h.count[bucket(ns)]++
	h.total++
	h.most = max(h.most, ns)
}

func (h *histogram) add(o *histogram) {
	for i, n := range o.count {
		h.count[i] += n
	}
	h.total += o.total
	h.most = max(h.most, o.most)
}

// quantile is the latency that the part q of all calls did not exceed.
func (h *histogram) quantile(q float64) time.Duration {
	left := uint64(q * float64(h.total))
	for b, n := range h.count {
		if n > left {
			return time.Duration(min(lower(b+1), h.most))
		}
		left -= n
	}
	return time.Duration(h.most)
}
