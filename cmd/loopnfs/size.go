package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// byteSize is a flag value in bytes, written with a unit: 64MiB, 1G.
type byteSize int64

var sizeUnits = []struct {
	name  string
	bytes float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"K", 1 << 10}, {"k", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"T", 1 << 40},
	{"B", 1}, {"", 1},
}

func parseSize(s string) (byteSize, error) {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(digits, 64)
		// Not a number, infinite, negative or more than fits are all no size.
		if err != nil || !(v >= 0) || v*u.bytes > math.MaxInt64/2 || strings.ContainsAny(digits, "xXpPeE+_") {
			break
		}
		return byteSize(v * u.bytes), nil
	}
	return 0, fmt.Errorf("%q is not a size: write a number and a unit, like 64MiB or 1GiB", s)
}

// Set implements pflag.Value.
func (b *byteSize) Set(s string) (err error) {
	*b, err = parseSize(s)
	return err
}

// Type implements pflag.Value.
func (*byteSize) Type() string { return "size" }

// String implements pflag.Value.
func (b *byteSize) String() string { return formatSize(int64(*b)) }

// formatSize writes n with the largest unit that divides it, or with one digit.
func formatSize(n int64) string {
	for _, u := range []string{"TiB", "GiB", "MiB", "KiB"} {
		for _, unit := range sizeUnits {
			if unit.name == u && n >= int64(unit.bytes) {
				s := strconv.FormatFloat(float64(n)/unit.bytes, 'f', 1, 64)
				return strings.TrimSuffix(s, ".0") + u
			}
		}
	}
	return fmt.Sprintf("%dB", n)
}
