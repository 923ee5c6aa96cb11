// Package stack puts the parts of loopnfs together: it is the only place where
// all of them meet. A command says what it wants in a Config; what it gets can
// be started, watched and stopped as a whole.
package stack
