package nlm4

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"testing"

	"loopnfs/internal/xdr"
	"pgregory.net/rapid"
)

type message interface {
	Encode(*xdr.Encoder)
	Decode(*xdr.Decoder) error
}

func messages() []message {
	return []message{
		new(LockArgs), new(CancelArgs), new(TestArgs), new(UnlockArgs), new(Result), new(TestResult),
		new(ShareArgs), new(ShareResult), new(NotifyArgs), new(StatArgs), new(StatResult), new(MonArgs), new(ChangeArgs),
	}
}

// The wire form, as The Open Group's C702 has it.
func TestLockArgsOnTheWire(t *testing.T) {
	a := LockArgs{
		Cookie: []byte{1, 2}, Block: true, Reclaim: true, State: 5,
		Lock: Lock{Caller: []byte("host"), Handle: []byte{9, 9, 9}, Owner: []byte("o"), SVID: 7, Range: Range{1 << 40, 3}},
	}
	want := []byte("\x00\x00\x00\x02\x01\x02\x00\x00" + "\x00\x00\x00\x01" + "\x00\x00\x00\x00" +
		"\x00\x00\x00\x04host" + "\x00\x00\x00\x03\x09\x09\x09\x00" + "\x00\x00\x00\x01o\x00\x00\x00" + "\x00\x00\x00\x07" +
		"\x00\x00\x01\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00\x00\x00\x00\x03" + "\x00\x00\x00\x01" + "\x00\x00\x00\x05")
	var e xdr.Encoder
	a.Encode(&e)
	if !bytes.Equal(e.Buf, want) {
		t.Errorf("% x\nwant % x", e.Buf, want)
	}
}

func TestLimits(t *testing.T) {
	o := make([]byte, MaxObject)
	l := Lock{Caller: o, Handle: o, Owner: o}
	var e xdr.Encoder
	(&LockArgs{Cookie: o, Lock: l}).Encode(&e)
	if e.Len() != MaxArgs {
		t.Errorf("LOCK has %d bytes, MaxArgs is %d", e.Len(), MaxArgs)
	}
	e.Buf = nil
	(&TestResult{Cookie: o, Status: Denied, Holder: Holder{Owner: o}}).Encode(&e)
	if e.Len() != MaxResult {
		t.Errorf("the result of TEST has %d bytes, MaxResult is %d", e.Len(), MaxResult)
	}
	e.Buf = nil
	e.Opaque(make([]byte, MaxObject+1))
	for _, m := range messages() {
		d := xdr.NewDecoder(e.Buf)
		if _, plain := m.(*StatResult); !plain && !errors.Is(m.Decode(&d), xdr.ErrTooLong) {
			t.Errorf("%T takes %d bytes", m, MaxObject+1)
		}
	}
}

func TestRange(t *testing.T) {
	const top = math.MaxUint64
	for _, tt := range []struct {
		r    Range
		last uint64
		ok   bool
	}{
		{Range{0, 0}, top, true}, {Range{5, 0}, top, true}, {Range{0, 1}, 0, true}, {Range{5, 3}, 7, true},
		{Range{top, 1}, top, true}, {Range{top, 2}, 0, false}, {Range{1, top}, top, true}, {Range{2, top}, 0, false},
	} {
		if last, ok := tt.r.Last(); last != tt.last || ok != tt.ok {
			t.Errorf("%v: %d, %v", tt.r, last, ok)
		}
		if !tt.ok {
			continue
		}
		if last, ok := RangeOf(tt.r.Start, tt.last).Last(); last != tt.last || !ok {
			t.Errorf("%v comes back with the last byte %d", tt.r, last)
		}
	}
}

// Every message comes back as it was sent, and no part of it is one.
func TestRoundTrip(t *testing.T) {
	obj := rapid.SliceOfN(rapid.Byte(), 1, 40)
	lock := rapid.Custom(func(t *rapid.T) Lock {
		return Lock{obj.Draw(t, "caller"), obj.Draw(t, "fh"), obj.Draw(t, "oh"), rapid.Uint32().Draw(t, "svid"),
			Range{rapid.Uint64().Draw(t, "start"), rapid.Uint64().Draw(t, "len")}}
	})
	rapid.Check(t, func(t *rapid.T) {
		o, l, b := obj.Draw(t, "cookie"), lock.Draw(t, "lock"), rapid.Bool()
		u, s := rapid.Uint32(), Status(rapid.Uint32Range(0, uint32(Failed)).Draw(t, "status"))
		test := TestResult{Cookie: o, Status: s}
		if s == Denied {
			test.Holder = Holder{b.Draw(t, "exclusive"), l.SVID, l.Owner, l.Range}
		}
		for _, m := range []message{
			&LockArgs{o, b.Draw(t, "block"), b.Draw(t, "exclusive"), l, b.Draw(t, "reclaim"), u.Draw(t, "state")},
			&CancelArgs{o, b.Draw(t, "block"), b.Draw(t, "exclusive"), l},
			&TestArgs{o, b.Draw(t, "exclusive"), l}, &UnlockArgs{o, l}, &Result{o, s}, &test,
			&ShareArgs{o, l.Caller, l.Handle, l.Owner, u.Draw(t, "deny") % 4, u.Draw(t, "access") % 4, b.Draw(t, "reclaim")},
			&ShareResult{o, s}, &NotifyArgs{o, u.Draw(t, "state")}, &StatArgs{o}, &StatResult{b.Draw(t, "failed"), u.Draw(t, "state")},
			&MonArgs{o, l.Caller, u.Draw(t, "prog"), u.Draw(t, "vers"), u.Draw(t, "proc"), [PrivSize]byte(rapid.SliceOfN(rapid.Byte(), PrivSize, PrivSize).Draw(t, "priv"))},
			&ChangeArgs{NotifyArgs{o, u.Draw(t, "state")}, [PrivSize]byte{1}},
		} {
			var e xdr.Encoder
			m.Encode(&e)
			got := reflect.New(reflect.TypeOf(m).Elem()).Interface().(message)
			d := xdr.NewDecoder(e.Buf)
			if err := got.Decode(&d); err != nil || d.Remaining() != 0 || !reflect.DeepEqual(got, m) {
				t.Fatalf("%T: %v, %d bytes left\n%+v\nwant %+v", m, err, d.Remaining(), got, m)
			}
			d = xdr.NewDecoder(e.Buf[:rapid.IntRange(0, e.Len()-1).Draw(t, "cut")])
			if err := got.Decode(&d); !errors.Is(err, xdr.ErrShort) {
				t.Fatalf("%T cut short: %v", m, err)
			}
		}
	})
}

func TestNames(t *testing.T) {
	for _, tt := range [][2]string{
		{ProcName(ProcLock), "LOCK"}, {ProcName(ProcFreeAll), "FREE_ALL"}, {ProcName(17), "UNKNOWN"}, {ProcName(99), "UNKNOWN"},
		{StatusProcName(StatusProcNotify), "SM_NOTIFY"}, {StatusProcName(7), "UNKNOWN"},
		{Deadlock.String(), "NLM4_DEADLCK"}, {Status(77).String(), "nlm4_stats 77"},
	} {
		if tt[0] != tt[1] {
			t.Errorf("%q, want %q", tt[0], tt[1])
		}
	}
}

// Whatever decodes is encoded to something that decodes to the same, within the limits.
func FuzzDecode(f *testing.F) {
	for i := range messages() {
		f.Add(uint8(i), make([]byte, 64))
	}
	f.Add(uint8(5), []byte("\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00aaaaaaaabbbbbbbb"))
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		all := messages()
		m := all[int(which)%len(all)]
		d := xdr.NewDecoder(b)
		if m.Decode(&d) != nil {
			return
		}
		var e, again xdr.Encoder
		m.Encode(&e)
		if e.Len() > MaxArgs {
			t.Fatalf("%T has %d bytes", m, e.Len())
		}
		d = xdr.NewDecoder(e.Buf)
		if err := m.Decode(&d); err != nil {
			t.Fatalf("%T: %v", m, err)
		}
		if m.Encode(&again); !bytes.Equal(e.Buf, again.Buf) {
			t.Fatalf("%T is encoded in two ways", m)
		}
	})
}
