package linear

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// history returns calls for porcupine.
func history(calls []call) []porcupine.Operation {
	h := make([]porcupine.Operation, len(calls))
	for i := range calls {
		c := &calls[i]
		c.in.number = i
		h[i] = porcupine.Operation{ClientId: c.client, Input: &c.in, Call: c.sent, Output: &c.out, Return: c.done}
	}
	return h
}

// ErrUnknown is the error of a check that took too long.
var ErrUnknown = errors.New("no order of the calls was found, and none excluded, in time")

// Check looks whether the calls of all groups of a recording are linearizable, whatever
// became of the servers meanwhile. It returns how many calls there were.
func (r *Recording) Check(limit time.Duration) (calls int, err error) {
	for _, group := range r.Groups {
		all := make([]call, len(group))
		for i := range group {
			all[i] = group[i].call()
		}
		calls += len(all)
		h := history(all)
		switch porcupine.CheckOperationsTimeout(model, h, limit) {
		case porcupine.Ok:
		case porcupine.Unknown:
			return calls, fmt.Errorf("%d calls of a group: %w (%v)", len(all), ErrUnknown, limit)
		default:
			_, info := porcupine.CheckOperationsVerbose(model, h, limit)
			return calls, fmt.Errorf("the calls are not linearizable:\n%s", excerpt(h, info))
		}
	}
	return calls, nil
}

// excerpt shows the calls around the first that no order explains: those that the longest
// order ends with, and those that were in progress then.
func excerpt(h []porcupine.Operation, info porcupine.LinearizationInfo) string {
	var best []porcupine.Operation
	for _, order := range info.PartialLinearizationsOperations()[0] {
		if len(order) > len(best) {
			best = order
		}
	}
	placed := map[any]bool{}
	for _, op := range best {
		placed[op.Input] = true
	}
	rest := slices.DeleteFunc(slices.Clone(h), func(op porcupine.Operation) bool { return placed[op.Input] })
	slices.SortFunc(rest, func(a, b porcupine.Operation) int { return int(a.Return - b.Return) })
	var b strings.Builder
	show := func(what string, ops []porcupine.Operation) {
		fmt.Fprintf(&b, "%s:\n", what)
		for _, op := range ops {
			fmt.Fprintf(&b, "  client %2d  %12.6f to %12.6f ms  %s\n", op.ClientId, float64(op.Call)/1e6, float64(op.Return)/1e6,
				describe(op.Input.(*input), op.Output.(*output)))
		}
	}
	show("the longest order that explains replies ends with", best[max(0, len(best)-12):])
	show("it explains none of these", slices.DeleteFunc(rest, func(op porcupine.Operation) bool { return op.Call > rest[0].Return }))
	return b.String()
}
