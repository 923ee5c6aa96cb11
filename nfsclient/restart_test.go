package nfsclient

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"
)

// The server is killed again and again, and loses what it had not committed:
// nobody notices, and nothing that was synced is lost.
func TestServerIsKilledUnderLoad(t *testing.T) {
	p := startProcess(t)
	b := newBed(t, 8<<20, p.addr, "/data", nil)
	kills := 0
	runModels(t, b, p.dir, 3, 4<<20, 8*time.Second, func(stop <-chan struct{}) {
		for {
			select {
			case <-stop:
				return
			case <-time.After(700 * time.Millisecond):
				p.kill()
				p.start()
				kills++
			}
		}
	})
	t.Logf("%d kills, %+v", kills, b.c.Stats())
	if kills < 5 || b.c.Stats().Resent == 0 {
		t.Fatal("the server was hardly killed, or nothing was in flight")
	}
}

// What Sync acknowledged is there after the server was killed.
func TestSyncedDataSurvivesKill(t *testing.T) {
	p := startProcess(t)
	b := newBed(t, 8<<20, p.addr, "/data", nil)
	for i := range 5 {
		name := fmt.Sprint("f", i)
		n := b.create(name)
		data := pattern(i, 300<<10)
		b.write(n, 0, data)
		b.sync(n)
		b.write(n, len(data), pattern(0, 100<<10)) // not synced: may be sent or not
		p.kill()
		onDisk, err := os.ReadFile(p.path(name))
		if err != nil || len(onDisk) < len(data) || !bytes.Equal(onDisk[:len(data)], data) {
			t.Fatalf("%s: synced data is gone: %d bytes, %v", name, len(onDisk), err)
		}
		p.start()
		b.sync(n)
	}
}
