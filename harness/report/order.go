package report

import (
	"cmp"
	"slices"
	"strings"
)

// ordered is an order of names; those that are not in it come after, in the order
// in which they appear.
type ordered []string

// of returns the different names of runs, in this order.
func (o ordered) of(runs []*run, name func(*run) string) []string {
	var names []string
	for _, r := range runs {
		if n := name(r); !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(o.rank(a), o.rank(b)) })
	return names
}

func (o ordered) rank(name string) int {
	if i := slices.Index(o, name); i >= 0 {
		return i
	}
	return len(o)
}

// compareVersions orders 6.1.192 before 6.12.43.
func compareVersions(a, b string) int {
	as, bs := strings.FieldsFunc(a, isDot), strings.FieldsFunc(b, isDot)
	return slices.CompareFunc(as, bs, func(x, y string) int {
		// Of two numbers without leading zeros the longer one is larger.
		return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y))
	})
}

func isDot(r rune) bool { return r == '.' || r == '-' || r == '+' }
