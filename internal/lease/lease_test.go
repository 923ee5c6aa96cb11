package lease

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const short = time.Second

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// onDisk returns the path of a lease that is not there, on a disk.
func onDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "lease")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "lease")
}

func config(path string) Config {
	return Config{Path: path, Duration: short, Lost: func(error) {}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
}

func take(t *testing.T, path string) *Lease {
	t.Helper()
	l, err := Take(t.Context(), config(path))
	check(t, err)
	return l
}

// die ends a holder as SIGKILL does, which gives nothing back.
func (l *Lease) die() {
	l.stopping.Do(func() { close(l.stop) })
	l.renewing.Wait()
	l.disk.close()
}

func TestTakeAndRelease(t *testing.T) {
	path := onDisk(t)
	for epoch := uint64(1); epoch < 4; epoch++ {
		l := take(t, path)
		if !l.Valid() || l.Stats().Epoch != epoch {
			t.Fatalf("valid %v, epoch %d, want %d", l.Valid(), l.Stats().Epoch, epoch)
		}
		_, err := Take(t.Context(), config(path))
		var held *HeldError
		if !errors.As(err, &held) || held.PID != os.Getpid() || !strings.Contains(err.Error(), "stop the server") {
			t.Fatalf("taken from a live holder: %v", err)
		}
		time.Sleep(2 * short)
		if !l.Valid() || l.Stats().Renewals < 4 {
			t.Errorf("after twice its duration: valid %v, %d renewals", l.Valid(), l.Stats().Renewals)
		}
		check(t, l.Release())
		if l.Valid() {
			t.Error("valid after it was given back")
		}
	}
	r, err := Show(path)
	check(t, err)
	if r.Record.State != Released || r.Record.Epoch != 3 || len(r.Events) != 6 || r.Doubts != nil {
		t.Errorf("on the disk: %+v, %d events, doubts %v", r.Record, len(r.Events), r.Doubts)
	}
	if (*Lease)(nil).Release() != nil || !(*Lease)(nil).Valid() {
		t.Error("without a lease one serves")
	}
}

// A holder that is gone is waited for, unless it is known to be dead.
func TestTakeFromTheDead(t *testing.T) {
	path := onDisk(t)
	take(t, path).die()
	began := time.Now()
	l := take(t, path)
	if took := time.Since(began); took < short || l.own.How != WasExpired || l.own.Watched < short {
		t.Errorf("taken after %v, %v, watched for %v", took, l.own.How, l.own.Watched)
	}
	l.die()
	d, err := openDisk(path, os.O_RDWR)
	check(t, err)
	defer d.close()
	r, err := d.readRecord()
	check(t, err)
	sleep := exec.Command("sleep", "60")
	check(t, sleep.Start())
	r.PID = sleep.Process.Pid
	if r.Started, _, err = startOf(r.PID); err != nil {
		t.Fatal(err)
	}
	check(t, d.write(0, &r))
	us, err := thisProcess()
	check(t, err)
	if r.isDead(&us) {
		t.Error("a process that runs is dead")
	}
	for _, change := range []func(p *Process){func(p *Process) { p.BootID[3]++ }, func(p *Process) { p.PIDSpace++ }} {
		p := r.Process
		change(&p)
		p.PID = 1 << 30
		if p.isDead(&us) {
			t.Errorf("%+v is known to be dead", p)
		}
	}
	check(t, sleep.Process.Kill())
	for _, state, _ := startOf(r.PID); state != 'Z'; _, state, _ = startOf(r.PID) {
		time.Sleep(time.Millisecond)
	}
	if !r.isDead(&us) {
		t.Error("a zombie lives")
	}
	_ = sleep.Wait()
	l = take(t, path)
	if l.own.How != WasDead || l.own.Watched != 0 {
		t.Errorf("taken from a dead process: %v, watched for %v", l.own.How, l.own.Watched)
	}
	other := r.Process
	other.PID, other.Started = os.Getpid(), other.Started+1
	if !other.isDead(&us) {
		t.Error("another process with its number is taken for it")
	}
	check(t, l.Release())
}

// What is on the disk and is no lease is not written to.
func TestForeignDisk(t *testing.T) {
	path := onDisk(t)
	take(t, path).die()
	whole, err := os.ReadFile(path)
	check(t, err)
	for what, c := range map[string]struct {
		at   int
		with string
		want string
	}{
		"damaged":   {200, "x", "bs=4096 count=1 "},
		"foreign":   {0, "something", "something else"},
		"in a ring": {3 * blockLen, "something", "something else"},
		"a version": {8, "\x00\x00\x00\x09", "damaged"},
	} {
		b := slices.Clone(whole)
		copy(b[c.at:], c.with)
		check(t, os.WriteFile(path, b, 0o600))
		if _, err := Take(t.Context(), config(path)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", what, err)
		}
		if after, _ := os.ReadFile(path); !slices.Equal(after, b) {
			t.Errorf("%s: it was written to", what)
		}
	}
	b := slices.Clone(whole)
	clear(b[:blockLen]) // as the remedy has it: the holder may be there
	check(t, os.WriteFile(path, b, 0o600))
	l := take(t, path)
	if l.own.How != WasExpired || l.epoch != 2 {
		t.Errorf("after the record was cleared: %v, epoch %d", l.own.How, l.epoch)
	}
	l.die()
	check(t, os.WriteFile(path, make([]byte, blockLen), 0o600))
	for _, c := range []struct{ path, want string }{
		{path, "remove this one"}, {filepath.Dir(path), "directory"}, {"/dev/null", "invalid"}, {"/dev/none", "no such"},
		{"/proc/version", ""}, {path + "/sub", "not a directory"},
	} {
		cfg := config(c.path)
		if _, err := Take(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.path, err)
		}
	}
	for _, d := range []time.Duration{-1, time.Millisecond, time.Hour} {
		cfg := config(path)
		cfg.Duration = d
		if _, err := Take(t.Context(), cfg); err == nil {
			t.Errorf("a lease of %v", d)
		}
	}
}

// A holder whose disk does not answer stops before anybody else can begin.
func TestStall(t *testing.T) {
	path := onDisk(t)
	var mu sync.Mutex
	lost := make(chan int64, 1)
	cfg := config(path)
	cfg.late = func() { mu.Lock(); defer mu.Unlock() }
	cfg.Lost = func(err error) {
		if !errors.Is(err, ErrLost) {
			t.Error(err)
		}
		lost <- bootNow()
	}
	l, err := Take(t.Context(), cfg)
	check(t, err)
	mu.Lock()
	var when int64
	select {
	case when = <-lost:
	case <-time.After(2 * short):
		t.Fatal("a lease that cannot be renewed is not lost")
	}
	if l.Valid() || l.Release() == nil {
		t.Error("it is valid, or was given back")
	}
	next := take(t, path)
	if next.own.TakenBoot <= when {
		t.Error("somebody else has taken it before it was lost")
	}
	mu.Unlock() // what was on its way to the disk comes late
	time.Sleep(short)
	if !next.Valid() {
		t.Error("a late write takes the lease away")
	}
	check(t, next.Release())
}

// lostBy returns the renewal that a holder, who has lost the lease and is dead, had on its way
// to the disk. It is of this host.
func lostBy(t *testing.T, cfg Config) (d *disk, late Record) {
	l, err := Take(t.Context(), cfg)
	check(t, err)
	l.die()
	d, err = openDisk(cfg.Path, os.O_RDWR)
	check(t, err)
	t.Cleanup(d.close)
	late, err = d.readRecord()
	check(t, err)
	late.PID, late.Renewal = 1<<22, late.Renewal+1
	return d, late
}

// A renewal of who has lost the lease may come when somebody else has it, or had it, and so may
// a claim that was too slow. That says nothing of who may have it now, and how often it was
// taken.
func TestLateWrite(t *testing.T) {
	path := onDisk(t)
	d, late := lostBy(t, config(path))
	take(t, path).die()
	check(t, d.write(0, &late))
	l := take(t, path)
	if l.epoch != 3 || l.own.How != WasExpired {
		t.Errorf("epoch %d, %v", l.epoch, l.own.How)
	}
	l.stopping.Do(func() { close(l.stop) })
	l.renewing.Wait()
	claim := late
	claim.State, claim.Epoch = Claimed, l.epoch
	for _, r := range []Record{late, claim} {
		check(t, l.renewOnce())
		check(t, d.write(0, &r))
		renewed := make(chan error)
		go func() {
			time.Sleep(short / 4)
			renewed <- l.renewOnce()
		}()
		_, err := Take(t.Context(), config(path))
		var held *HeldError
		if !errors.As(err, &held) {
			t.Errorf("taken from a live holder, before it writes over what is %v: %v", r.State, err)
		}
		check(t, <-renewed)
	}
	l.disk.close()
	r, err := Show(path)
	check(t, err)
	if len(r.Doubts) > 0 || len(r.Events) != 3 {
		t.Error(r.Doubts, len(r.Events))
	}
}

// The last renewal of who has lost the lease comes over the claim of who is about to have it,
// and a server on the host of the first, which it has seen end, takes it at once.
func TestLateRenewalOverAClaim(t *testing.T) {
	path := onDisk(t)
	cfg := config(path)
	cfg.Duration = 3 * short // the writes of both are to be in time on a busy machine, too
	d, late := lostBy(t, cfg)
	settle := cfg.Duration / settlePart
	slow := cfg
	other := make(chan error, 1)
	var ours, theirs int // looks at the disk, before and after each I/O
	cfg.late = func() {
		r, err := d.readRecord()
		if err != nil || r.State != Claimed || r.Epoch != 2 {
			return
		}
		if ours++; ours != 3 { // the claim is written, and was seen
			return
		}
		check(t, d.write(0, &late))
		go func() {
			l, err := Take(t.Context(), slow)
			if err == nil {
				l.die()
			}
			other <- err
		}()
		time.Sleep(settle / 6)
	}
	slow.late = func() {
		if theirs++; theirs == 7 { // the claim is to be written
			time.Sleep(settle / 3)
		}
	}
	l, err := Take(t.Context(), cfg)
	check(t, err)
	var held *HeldError
	if err := <-other; !errors.As(err, &held) {
		t.Errorf("somebody else takes it, too: %v", err)
	}
	if !l.Valid() {
		t.Error("the first has lost it")
	}
	check(t, l.Release())
	if r, err := Show(path); err != nil || len(r.Doubts) > 0 {
		t.Error(err, r.Doubts)
	}
}

// Somebody else's record ends a holder at once, as does a record that was cleared.
func TestTakenAway(t *testing.T) {
	for what, write := range map[string]func(d *disk, r Record) error{
		"by another": func(d *disk, r Record) error {
			r.Holder[0]++
			r.Epoch++
			return d.write(0, &r)
		},
		"cleared": func(d *disk, _ Record) error {
			_, err := os.ReadFile(d.path)
			clear(d.in)
			clear(d.out)
			f, err2 := os.OpenFile(d.path, os.O_WRONLY, 0)
			_, err3 := f.WriteAt(d.in, 0)
			return errors.Join(err, err2, err3, f.Sync(), f.Close())
		},
	} {
		path := onDisk(t)
		lost := make(chan error, 1)
		cfg := config(path)
		cfg.Lost = func(err error) { lost <- err }
		l, err := Take(t.Context(), cfg)
		check(t, err)
		d, err := openDisk(path, os.O_RDWR)
		check(t, err)
		r, err := d.readRecord()
		check(t, err)
		check(t, write(d, r))
		d.close()
		select {
		case err := <-lost:
			if !errors.Is(err, ErrLost) {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(short):
			t.Errorf("%s: not noticed", what)
		}
		l.die()
	}
}

// span is when a holder relied on its lease.
type span struct {
	epoch    uint64
	from, to int64
}

// However slow the disk is, and whoever dies, no two rely on the lease at the same time.
func TestContention(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	path := onDisk(t)
	rounds, contenders := 40, 4
	if testing.Short() {
		rounds = 10
	}
	var mu sync.Mutex
	var spans []span
	var done sync.WaitGroup
	for n := range contenders {
		rnd := rand.New(rand.NewPCG(seed, uint64(n)))
		done.Go(func() {
			for range rounds {
				for _, s := range contend(t, path, rnd) {
					mu.Lock()
					spans = append(spans, s)
					mu.Unlock()
				}
			}
		})
	}
	done.Wait()
	slices.SortFunc(spans, func(a, b span) int { return int(a.from - b.from) })
	for i := 1; i < len(spans); i++ {
		if a, b := spans[i-1], spans[i]; b.from < a.to || b.epoch <= a.epoch {
			t.Errorf("epoch %d until %d, epoch %d from %d", a.epoch, a.to, b.epoch, b.from)
		}
	}
	if len(spans) < rounds/4 {
		t.Errorf("only %d were taken", len(spans))
	}
	r, err := Show(path)
	check(t, err)
	if len(r.Doubts) > 0 {
		t.Error(r.Doubts)
	}
	t.Logf("%d taken, %d events", len(spans), len(r.Events))
}

// contend tries to take the lease once, on a disk that is slow now and then.
func contend(t *testing.T, path string, rnd *rand.Rand) []span {
	cfg := config(path)
	cfg.Duration = MinDuration
	lost := make(chan int64, 1)
	cfg.Lost = func(error) { lost <- bootNow() }
	var mu sync.Mutex
	cfg.late = func() {
		mu.Lock()
		slow := rnd.IntN(20) == 0
		d := time.Duration(rnd.Int64N(int64(MinDuration)))
		mu.Unlock()
		if slow {
			time.Sleep(d)
		}
	}
	l, err := Take(context.Background(), cfg)
	var held *HeldError
	switch {
	case errors.As(err, &held), errors.Is(err, errSlow):
		mu.Lock()
		d := time.Duration(rnd.Int64N(int64(MinDuration)))
		mu.Unlock()
		time.Sleep(d)
		return nil
	case err != nil:
		t.Error(err)
		return nil
	}
	s := span{epoch: l.epoch, from: bootNow()}
	mu.Lock()
	d := time.Duration(rnd.Int64N(int64(2 * MinDuration)))
	die := rnd.IntN(2) == 0
	mu.Unlock()
	select {
	case s.to = <-lost:
		l.die()
	case <-time.After(d):
		if die {
			l.die()
			s.to = l.until.Load() // in its memory, and its requests may still go by that
		} else if s.to = bootNow(); l.Release() != nil {
			l.die2()
		}
	}
	if s.to < s.from { // lost as soon as it was taken
		return nil
	}
	return []span{s}
}

// die2 is die for a holder whose lease was lost while it was given back.
func (l *Lease) die2() { l.renewing.Wait() }

func TestRenewalsDoNotAllocate(t *testing.T) {
	l := take(t, onDisk(t))
	l.stopping.Do(func() { close(l.stop) })
	l.renewing.Wait()
	l.until.Store(1 << 62)
	if n := testing.AllocsPerRun(50, func() {
		if err := l.renewOnce(); err != nil {
			t.Error(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations for each renewal", n)
	}
	if n := testing.AllocsPerRun(100, func() { l.Valid() }); n > 0 {
		t.Errorf("%v allocations for each look", n)
	}
	l.disk.close()
}

func BenchmarkValid(b *testing.B) {
	var l Lease
	l.until.Store(1 << 62)
	for range b.N {
		if !l.Valid() {
			b.Fatal("not valid")
		}
	}
}

func TestRecord(t *testing.T) {
	r := Record{State: Held, Epoch: 1 << 40, Renewal: 2, Seq: 3, Holder: ID{4}, Duration: 5 * time.Second,
		Process: Process{Host: strings.Repeat("h", hostLen), BootID: ID{6}, PID: 7, PIDSpace: 8, Started: 9},
		Wall:    10, Boot: 11, TakenWall: 12, TakenBoot: 13, How: WasExpired, Watched: 14 * time.Second,
		PrevEpoch: 15, PrevRenewal: 16, PrevHost: "before"}
	var b [blockLen]byte
	r.encode(b[:])
	if got, ok := decode(b[:]); !ok || got != r {
		t.Errorf("got %+v, want %+v", got, r)
	}
	for i := range recordLen {
		b[i] ^= 1
		if got, ok := decode(b[:]); ok {
			t.Fatalf("byte %d changed: %+v", i, got)
		}
		b[i] ^= 1
	}
}

func TestDoubts(t *testing.T) {
	taken := func(epoch, prev uint64, how How, watched time.Duration) Record {
		return Record{State: Held, Epoch: epoch, PrevEpoch: prev, How: how, Watched: watched, Duration: short, Process: Process{Host: fmt.Sprint("host", epoch)}}
	}
	given := func(epoch uint64) Record { return Record{State: Released, Epoch: epoch} }
	for i, c := range []struct {
		events []Record
		want   string
	}{
		{[]Record{taken(1, 0, WasFree, 0), given(1), taken(2, 1, WasReleased, 0), taken(3, 2, WasExpired, short)}, ""},
		{[]Record{taken(1, 0, WasFree, 0), taken(2, 1, WasReleased, 0)}, "released"},
		{[]Record{taken(1, 0, WasFree, 0), taken(2, 1, WasExpired, short-1)}, "without renewal"},
		{[]Record{taken(2, 0, WasFree, 0), taken(1, 0, WasFree, 0)}, "after epoch 2"},
		{[]Record{taken(1, 0, WasFree, 0), taken(1, 0, WasFree, 0)}, "after epoch 1"},
		{[]Record{taken(1, 0, WasFree, 0), taken(2, 1, WasFree, 0)}, "free"},
	} {
		got := strings.Join(doubts(c.events), "; ")
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%d: %q, want something about %q", i, got, c.want)
		}
	}
}

// That a lease was given back is not believed if somebody has taken it since: the disk may
// have been late with it.
func TestLateRelease(t *testing.T) {
	path := onDisk(t)
	first := take(t, path)
	late := first.own
	first.die()
	second := take(t, path)
	d, err := openDisk(path, os.O_RDWR)
	check(t, err)
	defer d.close()
	late.State, late.Renewal = Released, late.Renewal+1
	check(t, d.write(0, &late))
	third, err := Take(t.Context(), config(path))
	if err == nil {
		t.Fatalf("taken with epoch %d, and valid with epoch %d: %v", third.epoch, second.epoch, second.Valid())
	}
	var held *HeldError
	if !errors.As(err, &held) || !second.Valid() {
		t.Errorf("%v; the holder's is valid: %v", err, second.Valid())
	}
	check(t, second.Release())
}

// Who claims and then stands still, or whose event hangs in the disk, for longer than the lease
// does not put that event over the one of who has taken the lease meanwhile.
func TestLateEvent(t *testing.T) {
	path := onDisk(t)
	cfg := config(path)
	cfg.Duration = 3 * short
	first, err := Take(t.Context(), cfg)
	check(t, err)
	check(t, first.Release())

	d, err := openDisk(path, unix.O_RDWR)
	check(t, err)
	defer d.close()
	y := &taking{disk: d, cfg: cfg}
	y.own.Process, err = thisProcess()
	check(t, err)
	y.own.PID, y.own.Holder = 1<<22, ID{9} // of this host, and dead once it has written
	old, err := y.takeable(t.Context())
	check(t, err)
	check(t, y.claim(t.Context(), old))

	z, err := Take(t.Context(), cfg) // from y, which stands still
	check(t, err)
	for n := z.renewals.Load(); z.renewals.Load() == n; {
		time.Sleep(time.Millisecond)
	}
	if err := y.confirm(&old); !errors.Is(err, errSlow) { // it goes on, and is killed
		t.Fatal(err)
	}
	if events, err := d.readEvents(); err != nil || newest(events).Holder != z.own.Holder {
		t.Errorf("the last event is not that of the holder (%v)", err)
	}
	w, err := Take(t.Context(), cfg)
	var held *HeldError
	if !errors.As(err, &held) {
		t.Errorf("taken as %q from a live holder: %v; epoch %d is valid: %v, and epoch %d is valid: %v", w.own.How, err,
			z.epoch, z.Valid(), w.epoch, w.Valid())
		w.die()
	}
	z.die()
}

// Numbers that were left out have events of the lap before in the ring, without what came next.
func TestEventsOfTheLapBefore(t *testing.T) {
	taken := func(seq, epoch uint64) Record {
		return Record{State: Held, Seq: seq, Epoch: epoch, PrevEpoch: epoch - 1, How: WasReleased}
	}
	ring := []Record{taken(10+Events, 40), taken(9, 8), {State: Released, Seq: 9 + Events, Epoch: 39}, taken(8+Events, 39), taken(10, 9)}
	got := inOrder(ring)
	if len(got) != 3 || got[0].Epoch != 39 || got[2].Epoch != 40 || len(doubts(got)) > 0 {
		t.Errorf("%d events, doubts: %v", len(got), doubts(got))
	}
}
