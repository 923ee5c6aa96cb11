package portmap

import (
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

var programs = []Program{{Number: nfs3.Program, Version: 3}, {Number: nfs3.MountProgram, Version: 3}}

// mapper is a portmapper.
type mapper struct {
	mu    sync.Mutex
	ports map[uint32]uint32
	say   []byte // instead of a reply
}

func startMapper(t *testing.T) (*mapper, string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	m := &mapper{ports: map[uint32]uint32{}}
	go func() {
		for nc, err := l.Accept(); err == nil; nc, err = l.Accept() {
			m.answer(nc)
			nc.Close()
		}
	}()
	return m, l.Addr().String()
}

func (m *mapper) answer(nc net.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := make([]byte, 4+56)
	if _, err := io.ReadFull(nc, b); err != nil {
		return
	}
	d := xdr.NewDecoder(b[4:])
	var c sunrpc.Call
	if err := sunrpc.DecodeCall(&d, &c); err != nil || c.Prog != 100000 || c.Vers != 2 {
		return
	}
	prog, vers, proto, port := d.Uint32(), d.Uint32(), d.Uint32(), d.Uint32()
	if vers != 3 || proto != 6 {
		return
	}
	var result uint32
	there := m.ports[prog]
	switch c.Proc {
	case 1:
		if there == 0 {
			m.ports[prog], result = port, 1
		}
	case 2:
		delete(m.ports, prog)
		result = 1
	case 3:
		result = there
	}
	var e xdr.Encoder
	mark := sunrpc.BeginRecord(&e)
	sunrpc.ReplySuccess(&e, c.XID)
	e.Uint32(result)
	sunrpc.EndRecord(&e, mark, 0)
	if m.say != nil {
		e.Buf = m.say
	}
	nc.Write(e.Buf)
}

func (m *mapper) has(t *testing.T, want map[uint32]uint32) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !maps.Equal(m.ports, want) {
		t.Errorf("registered: %v, want %v", m.ports, want)
	}
}

func TestRegister(t *testing.T) {
	m, addr := startMapper(t)
	r, err := Register(addr, 2049, programs)
	if err != nil {
		t.Fatal(err)
	}
	all := map[uint32]uint32{nfs3.Program: 2049, nfs3.MountProgram: 2049}
	m.has(t, all)
	if _, err := Register(addr, 2049, programs); err != nil {
		t.Errorf("once more, after a crash: %v", err)
	}
	if _, err := Register(addr, 2050, programs); err == nil || !strings.Contains(err.Error(), "port 2049") || !strings.Contains(err.Error(), "rpcinfo -d 100003 3") {
		t.Errorf("another port: %v", err)
	}
	m.has(t, all)
	m.mu.Lock()
	m.ports[nfs3.MountProgram] = 20048 // by somebody else, meanwhile
	m.mu.Unlock()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	m.has(t, map[uint32]uint32{nfs3.MountProgram: 20048})
	if err := (*Registration)(nil).Close(); err != nil {
		t.Error(err)
	}
}

// What was registered before something went wrong is taken back.
func TestRegisterTakesBack(t *testing.T) {
	m, addr := startMapper(t)
	m.ports[nfs3.MountProgram] = 20048
	if _, err := Register(addr, 2049, programs); err == nil || !strings.Contains(err.Error(), "20048") {
		t.Errorf("got %v", err)
	}
	m.has(t, map[uint32]uint32{nfs3.MountProgram: 20048})
}

func TestNoPortmapper(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := Register(l.Addr().String(), 2049, programs); err == nil || !strings.Contains(err.Error(), "start rpcbind") {
		t.Errorf("got %v", err)
	}
	m, addr := startMapper(t)
	for _, say := range [][]byte{{}, {0x80, 0, 0}, {0xff, 0xff, 0xff, 0xff}, {0, 0, 0, 4, 1, 2, 3, 4}, make([]byte, 64), []byte("\x80\x00\x00\x1c0123456789012345678901234567")} {
		m.mu.Lock()
		m.say = say
		m.mu.Unlock()
		if _, err := Register(addr, 2049, programs); err == nil {
			t.Errorf("%q is a reply", say)
		}
	}
}

func TestPort(t *testing.T) {
	m, addr := startMapper(t)
	m.ports[100021] = 4045
	at, buf := netip.MustParseAddrPort(addr), make([]byte, maxReply)
	if port, err := Port(t.Context(), &net.Dialer{}, at, Program{Number: 100021, Version: 3}, buf); port != 4045 || err != nil {
		t.Errorf("%d, %v", port, err)
	}
	if _, err := Port(t.Context(), &net.Dialer{}, at, Program{Number: 100024, Version: 3}, buf); !errors.Is(err, ErrNotRegistered) {
		t.Errorf("what is not there: %v", err)
	}
	m.mu.Lock()
	m.ports[100021] = 1 << 16
	m.mu.Unlock()
	if port, err := Port(t.Context(), &net.Dialer{}, at, Program{Number: 100021, Version: 3}, buf); err == nil {
		t.Errorf("port %d", port)
	}
}

func TestUniversalAddress(t *testing.T) {
	for _, tt := range []struct {
		in   string
		port uint16
		ok   bool
	}{
		{"::1.8.1", 2049, true}, {"fe80::1.0.111", 111, true}, {"127.0.0.1.15.205", 4045, true},
		{"", 0, false}, {"8.1", 0, false}, {"::1.256.1", 0, false}, {"::1.8.-1", 0, false}, {"::1..", 0, false},
	} {
		if port, err := portOf(tt.in); port != tt.port || (err == nil) != tt.ok {
			t.Errorf("%q: %d, %v", tt.in, port, err)
		}
	}
}
