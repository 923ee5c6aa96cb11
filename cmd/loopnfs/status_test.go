package main

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// everyUser believes whoever has the socket.
func everyUser(int) bool { return true }

// Who hears that a mount has ended can mount again, while its process still ends.
func TestNameIsFreeAtTheEnd(t *testing.T) {
	mnt := fmt.Sprintf("/mnt/%s-%d", t.Name(), os.Getpid())
	st, err := listenStatus(mnt)
	if err != nil {
		t.Fatal(err)
	}
	defer st.close() // as late as that of serveMount
	go st.serve(func() int64 { return 4096 })
	daemon, err := dialStatus(mnt, everyUser)
	if err != nil || daemon == nil {
		t.Fatal(daemon, err)
	}
	defer daemon.close()
	go st.finish(nil)
	if err := await(daemon, time.Now().Add(10*time.Second)); err != nil {
		t.Fatal(err)
	}
	next, err := listenStatus(mnt)
	if err != nil {
		t.Fatal(err)
	}
	next.close()
}

// Who comes as the mount ends is no worse off than who comes later.
func TestAskedAtTheEnd(t *testing.T) {
	mnt := fmt.Sprintf("/mnt/%s-%d", t.Name(), os.Getpid())
	st, err := listenStatus(mnt)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(200*time.Millisecond, st.close) // nobody accepts before
	if d, err := dialStatus(mnt, everyUser); d != nil || err != nil {
		t.Errorf("somebody answers: %v %v", d, err)
	}
}
