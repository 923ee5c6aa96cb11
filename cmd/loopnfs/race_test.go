//go:build race

package main

// raceDetector: sync.Pool drops things at random, so allocations cannot be
// counted.
const raceDetector = true
