package sunrpc

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"loopnfs/internal/xdr"
	"pgregory.net/rapid"
)

func sysCall() *Call {
	c := &Call{XID: 7, Prog: 100003, Vers: 3, Proc: 6}
	c.Cred.Flavor = AuthSys
	c.Cred.Sys = AuthSysCred{Stamp: StampScope(5), Machine: []byte("host"), UID: 1, GID: 2, NGIDs: 2}
	c.Cred.Sys.GIDs = [MaxGIDs]uint32{3, 4}
	return c
}

func encoded(c *Call) []byte {
	var e xdr.Encoder
	EncodeCall(&e, c)
	return e.Buf
}

func words(ws ...uint32) []byte {
	var e xdr.Encoder
	for _, w := range ws {
		e.Uint32(w)
	}
	return e.Buf
}

func TestEncodeCall(t *testing.T) {
	want := words(7, 0, 2, 100003, 3, 6, 1, 32, 0x4c4e4605, 4)
	want = append(want, "host"...)
	want = append(want, words(1, 2, 2, 3, 4, 0, 0)...)
	if got := encoded(sysCall()); !bytes.Equal(got, want) {
		t.Errorf("% x\nwant % x", got, want)
	}
}

func TestDecodeCallErrors(t *testing.T) {
	cred := func(flavor uint32, body []byte, verf int) []byte {
		e := xdr.Encoder{Buf: words(7, 0, 2, 1, 1, 1, flavor)}
		e.Opaque(body)
		e.Uint32(0)
		e.Opaque(make([]byte, verf))
		return e.Buf
	}
	tests := []struct {
		name string
		in   []byte
		want error
	}{
		{"empty", nil, ErrNotCall},
		{"reply", words(7, 1, 2), ErrNotCall},
		{"no type", words(7), ErrNotCall},
		{"no version", words(7, 0), xdr.ErrShort},
		{"version 3", words(7, 0, 3), ErrRPCMismatch},
		{"cut in the header", words(7, 0, 2, 1), xdr.ErrShort},
		{"no verifier", words(7, 0, 2, 1, 1, 1, 0, 0), xdr.ErrShort},
		{"none", cred(0, nil, 0), nil},
		{"none with a body", cred(0, words(1), 0), AuthBadCred},
		{"sys", cred(1, words(1, 0, 0, 0, 0), 0), nil},
		{"sys too short", cred(1, words(1, 0, 0, 0), 0), AuthBadCred},
		{"sys too long", cred(1, words(1, 0, 0, 0, 0, 0), 0), AuthBadCred},
		{"17 groups", cred(1, append(words(1, 0, 0, 0, 17), make([]byte, 68)...), 0), AuthBadCred},
		{"long machine", cred(1, append(words(1, 256), make([]byte, 268)...), 0), AuthBadCred},
		{"short", cred(2, nil, 0), AuthRejectedCred},
		{"gss", cred(6, nil, 0), AuthTooWeak},
		{"long credential", cred(0, make([]byte, 404), 0), AuthBadCred},
		{"longest verifier", cred(0, nil, 400), nil},
		{"long verifier", cred(0, nil, 401), AuthBadVerf},
	}
	for _, tt := range tests {
		var c Call
		d := xdr.NewDecoder(tt.in)
		err := DecodeCall(&d, &c)
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if err != ErrNotCall && c.XID != 7 {
			t.Errorf("%s: xid %d", tt.name, c.XID)
		}
	}
}

func TestReplies(t *testing.T) {
	tests := []struct {
		name  string
		enc   func(*xdr.Encoder)
		wire  []byte
		reply Reply
		err   error
	}{
		{"success", func(e *xdr.Encoder) { ReplySuccess(e, 7) }, words(7, 1, 0, 0, 0, 0), Reply{XID: 7}, nil},
		{"prog unavail", func(e *xdr.Encoder) { ReplyProgUnavail(e, 7) }, words(7, 1, 0, 0, 0, 1), Reply{XID: 7}, ProgUnavail},
		{"prog mismatch", func(e *xdr.Encoder) { ReplyProgMismatch(e, 7, 3, 4) }, words(7, 1, 0, 0, 0, 2, 3, 4), Reply{7, 3, 4}, ProgMismatch},
		{"proc unavail", func(e *xdr.Encoder) { ReplyProcUnavail(e, 7) }, words(7, 1, 0, 0, 0, 3), Reply{XID: 7}, ProcUnavail},
		{"garbage", func(e *xdr.Encoder) { ReplyGarbageArgs(e, 7) }, words(7, 1, 0, 0, 0, 4), Reply{XID: 7}, GarbageArgs},
		{"system", func(e *xdr.Encoder) { ReplySystemErr(e, 7) }, words(7, 1, 0, 0, 0, 5), Reply{XID: 7}, SystemErr},
		{"rpc mismatch", func(e *xdr.Encoder) { ReplyRPCMismatch(e, 7) }, words(7, 1, 1, 0, 2, 2), Reply{7, 2, 2}, ErrRPCMismatch},
		{"auth", func(e *xdr.Encoder) { ReplyAuthError(e, 7, AuthTooWeak) }, words(7, 1, 1, 1, 5), Reply{XID: 7}, AuthTooWeak},
	}
	for _, tt := range tests {
		var e xdr.Encoder
		tt.enc(&e)
		if !bytes.Equal(e.Buf, tt.wire) {
			t.Errorf("%s: % x, want % x", tt.name, e.Buf, tt.wire)
		}
		for n := range e.Buf { // no prefix of it is a reply
			d := xdr.NewDecoder(e.Buf[:n])
			if _, err := DecodeReply(&d); !errors.Is(err, ErrNotReply) && !errors.Is(err, xdr.ErrShort) {
				t.Errorf("%s: %d bytes: %v", tt.name, n, err)
			}
		}
		d := xdr.NewDecoder(e.Buf)
		r, err := DecodeReply(&d)
		if r != tt.reply || !errors.Is(err, tt.err) || d.Remaining() != 0 {
			t.Errorf("%s: %+v, %v", tt.name, r, err)
		}
	}
}

func TestReplyDecodeError(t *testing.T) {
	tests := []struct{ in, want error }{
		{ErrRPCMismatch, ErrRPCMismatch},
		{AuthBadVerf, AuthBadVerf},
		{xdr.ErrShort, GarbageArgs},
	}
	for _, tt := range tests {
		var e xdr.Encoder
		if !ReplyDecodeError(&e, 7, tt.in) {
			t.Errorf("%v: no reply", tt.in)
		}
		d := xdr.NewDecoder(e.Buf)
		if r, err := DecodeReply(&d); r.XID != 7 || !errors.Is(err, tt.want) {
			t.Errorf("%v: %v", tt.in, err)
		}
	}
	if ReplyDecodeError(new(xdr.Encoder), 7, ErrNotCall) {
		t.Error("something that is no call got a reply")
	}
}

func genCall(t *rapid.T) *Call {
	u := rapid.Uint32()
	c := &Call{XID: u.Draw(t, "xid"), Prog: u.Draw(t, "prog"), Vers: u.Draw(t, "vers"), Proc: u.Draw(t, "proc")}
	if rapid.Bool().Draw(t, "none") {
		return c
	}
	c.Cred.Flavor = AuthSys
	s := &c.Cred.Sys
	s.Stamp, s.UID, s.GID = u.Draw(t, "stamp"), u.Draw(t, "uid"), u.Draw(t, "gid")
	s.Machine = rapid.SliceOfN(rapid.Byte(), 0, MaxMachine).Draw(t, "machine")
	s.NGIDs = copy(s.GIDs[:], rapid.SliceOfN(u, 0, MaxGIDs).Draw(t, "gids"))
	return c
}

func TestCallRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want, got := genCall(t), new(Call)
		b := encoded(want)
		d := xdr.NewDecoder(b)
		if err := DecodeCall(&d, got); err != nil || d.Remaining() != 0 {
			t.Fatalf("%v, %d bytes left", err, d.Remaining())
		}
		if !reflect.DeepEqual(got, want) || len(b) > MaxCallHeader {
			t.Fatalf("%+v, want %+v", got, want)
		}
	})
}

func TestEncodeCallCutsToLimits(t *testing.T) {
	c := sysCall()
	c.Cred.Sys.Machine, c.Cred.Sys.NGIDs = make([]byte, 300), 99
	d := xdr.NewDecoder(encoded(c))
	if err := DecodeCall(&d, c); err != nil || len(c.Cred.Sys.Machine) != MaxMachine || len(c.Cred.Sys.Groups()) != MaxGIDs {
		t.Errorf("%v, %d, %d", err, len(c.Cred.Sys.Machine), c.Cred.Sys.NGIDs)
	}
}

func TestScopeStamp(t *testing.T) {
	for w := range 256 {
		if got, ok := ScopeFromStamp(StampScope(uint8(w))); !ok || got != uint8(w) {
			t.Errorf("%d came back as %d, %v", w, got, ok)
		}
	}
	for _, stamp := range []uint32{0, 5, 0x4c4e4705, 0xffffffff} {
		if _, ok := ScopeFromStamp(stamp); ok {
			t.Errorf("stamp %#x carries a scope", stamp)
		}
	}
}

func TestNames(t *testing.T) {
	tests := []struct {
		got  error
		want string
	}{
		{GarbageArgs, "sunrpc: GARBAGE_ARGS"},
		{AcceptStat(99), "sunrpc: accept_stat 99"},
		{AuthTooWeak, "sunrpc: AUTH_TOOWEAK"},
		{AuthStat(1 << 31), "sunrpc: auth_stat 2147483648"},
	}
	for _, tt := range tests {
		if tt.got.Error() != tt.want {
			t.Errorf("%q, want %q", tt.got, tt.want)
		}
	}
}

func FuzzDecodeCall(f *testing.F) {
	f.Add(encoded(sysCall()))
	f.Add(encoded(new(Call)))
	f.Add(words(7, 0, 2, 1, 1, 1, 1, 0xffffffff))
	f.Fuzz(func(t *testing.T, b []byte) {
		var c Call
		d := xdr.NewDecoder(b)
		err := DecodeCall(&d, &c)
		if c.Cred.Sys.NGIDs > MaxGIDs || len(c.Cred.Sys.Machine) > MaxMachine {
			t.Fatalf("limits: %+v", c)
		}
		if err == nil && d.Offset() > MaxCallHeader {
			t.Fatalf("header of %d bytes", d.Offset())
		}
		ReplyDecodeError(new(xdr.Encoder), c.XID, err)
	})
}

func FuzzDecodeReply(f *testing.F) {
	f.Add(words(7, 1, 0, 0, 0, 0))
	f.Add(words(7, 1, 0, 0, 0, 2, 3, 4))
	f.Add(words(7, 1, 1, 1, 5))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := xdr.NewDecoder(b)
		if _, err := DecodeReply(&d); err == nil && d.Offset() > MaxReplyHeader {
			t.Fatalf("header of %d bytes", d.Offset())
		}
	})
}

func headers(e *xdr.Encoder, d *xdr.Decoder, c *Call) error {
	e.Buf = e.Buf[:0]
	EncodeCall(e, c)
	d.Reset(e.Buf)
	if err := DecodeCall(d, c); err != nil {
		return err
	}
	e.Buf = e.Buf[:0]
	ReplySuccess(e, c.XID)
	d.Reset(e.Buf)
	_, err := DecodeReply(d)
	return err
}

func TestHeadersDoNotAllocate(t *testing.T) {
	e, c := xdr.Encoder{Buf: make([]byte, 0, MaxCallHeader)}, sysCall()
	var d xdr.Decoder
	n := testing.AllocsPerRun(100, func() {
		if err := headers(&e, &d, c); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkHeaders(b *testing.B) {
	e, c := xdr.Encoder{Buf: make([]byte, 0, MaxCallHeader)}, sysCall()
	var d xdr.Decoder
	b.ReportAllocs()
	for b.Loop() {
		if err := headers(&e, &d, c); err != nil {
			b.Fatal(err)
		}
	}
}
