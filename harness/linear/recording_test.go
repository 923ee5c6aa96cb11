package linear

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"loopnfs/internal/nfs3"
)

// A recording of a server that is killed is explained, if it is told when; and one in which
// a reply was changed is not.
func TestRecording(t *testing.T) {
	r := newRun(t, t.TempDir())
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		r.killNowAndThen(t, stop)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	file := filepath.Join(t.TempDir(), "calls")
	l := Load{Addr: r.addr, Export: "/e", Name: "load", Seed: *seed, Clients: 2, Think: 20 * time.Millisecond, Patience: time.Second}
	err := l.Run(ctx, file)
	close(stop)
	<-stopped
	if err != nil {
		t.Fatal(err)
	}
	rec, err := ReadRecording(file)
	if err != nil {
		t.Fatal(err)
	}
	n, err := rec.Check(*checkLimit)
	if err != nil || n < 20 {
		t.Fatalf("%d calls, %d kills: %v", n, r.kills, err)
	}
	for i := range rec.Groups[0] {
		c := &rec.Groups[0][i]
		if c.Proc == nfs3.ProcLookup && c.Status == nfs3.StatusOK {
			c.Made += 1000 // nobody has made that
			break
		}
	}
	if _, err := rec.Check(*checkLimit); err == nil || !strings.Contains(err.Error(), "not linearizable") {
		t.Errorf("a reply was changed, and Check says: %v", err)
	}
}
