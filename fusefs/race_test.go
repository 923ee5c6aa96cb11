//go:build race

package fusefs

// raceDetector: sync.Pool drops things at random, so allocations cannot be
// counted.
const raceDetector = true
