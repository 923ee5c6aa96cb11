package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// What checks file handles and names stays in memory.
func TestHandlesAreNotCold(t *testing.T) {
	names := []string{"crypto/internal/fips140/sha256.block", "crypto/internal/fips140/hmac.(*HMAC).Sum", "crypto/internal/fips140/subtle.ConstantTimeCompare"}
	for _, f := range []any{sha256.Sum256, sha256.New().Write, hmac.Equal, hmac.New} {
		names = append(names, runtime.FuncForPC(reflect.ValueOf(f).Pointer()).Name())
	}
	for _, name := range names {
		if i := slices.IndexFunc(coldCode, func(cold string) bool { return strings.HasPrefix(name, cold) }); i >= 0 {
			t.Errorf("%s is cold, for %s is", name, coldCode[i])
		}
	}
}
