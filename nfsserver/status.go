package nfsserver

import "loopnfs/internal/nfs3"

// statusError is an error that has a status but no errno of its own.
type statusError nfs3.Status

// Error implements error.
func (e statusError) Error() string { return "nfsserver: " + nfs3.Status(e).String() }

var (
	errTooSmall error = statusError(nfs3.StatusTooSmall)
	errBadType  error = statusError(nfs3.StatusBadType)
)

// statusOf returns the status that answers err.
func statusOf(err error) nfs3.Status {
	if s, ok := err.(statusError); ok {
		return nfs3.Status(s)
	}
	return nfs3.StatusOf(err)
}
