package main

import (
	"errors"
	"fmt"

	"loopnfs/internal/hostguard"
)

// Exit codes.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
	exitBusy  = 3
	exitLost  = 4
	// exitHeld and exitLeaseLost are those of serve --lease: another server has the
	// lease; it was lost.
	exitHeld      = hostguard.ExitFinal
	exitLeaseLost = hostguard.ExitAgain
)

const exitCodesHelp = `Exit codes:
  0  it is done
  1  it failed; what failed and what to do is on standard error;
     (doctor) there is a danger
  2  wrong usage: nothing was done
  3  (umount) the mount is in use: nothing was done
  4  (umount) it is unmounted, but data was lost or is not written yet
  5  (serve) another server has the lease: nothing was done
  6  (serve) the lease was lost: the server ended without writing, and nobody
     could start it again`

// usageError is an error in what the user typed.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() + " (see --help)" }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// codeError is an error with an exit code of its own.
type codeError struct {
	code int
	err  error
}

func (e codeError) Error() string { return e.err.Error() }
func (e codeError) Unwrap() error { return e.err }

// exitCode returns the code that tells err.
func exitCode(err error) int {
	var usage usageError
	var code codeError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &code):
		return code.code
	}
	return exitError
}
