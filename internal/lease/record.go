package lease

import (
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"strings"
	"time"
)

// State says who has the disk.
type State uint32

// The values of State.
const (
	Free     State = iota // nobody ever had it
	Claimed               // somebody is about to have it, or not
	Held                  // its holder renews it, or is gone
	Released              // its holder has given it back
)

var stateNames = [...]string{"free", "claimed", "held", "released"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "unknown"
}

// How says why a lease could be taken.
type How uint32

// The values of How.
const (
	WasFree     How = iota + 1
	WasReleased     // by the holder before
	WasDead         // its holder's process, on the same host
	WasExpired      // it was not renewed for its duration
)

var howNames = [...]string{"", "was free", "was released", "holder dead", "expired"}

func (h How) String() string {
	if int(h) < len(howNames) {
		return howNames[h]
	}
	return "unknown"
}

// ID tells processes, or boots, apart.
type ID [16]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Record is what is on the disk. Times are in nanoseconds: Wall since 1970, Boot since
// the start of the host (CLOCK_BOOTTIME). They are for people.
type Record struct {
	State    State
	Epoch    uint64 // of this holder; higher than that of all before
	Renewal  uint64 // how often the holder has written
	Seq      uint64 // events so far; of an event, its number
	Holder   ID     // drawn by the process
	Duration time.Duration

	Process
	Wall, Boot           int64 // of this write
	TakenWall, TakenBoot int64

	How     How
	Watched time.Duration // for how long the one before was seen not to be renewed
	// What was replaced.
	PrevEpoch, PrevRenewal uint64
	PrevHost               string
}

const (
	recordLen   = 512
	namesAt     = 256
	hostLen     = 64
	version     = 1
	recordMagic = "loopnfsL"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode writes r to the first recordLen bytes of b, all in big endian.
func (r *Record) encode(b []byte) {
	b = b[:recordLen]
	clear(b)
	e := binary.BigEndian
	p := append(b[:0], recordMagic...)
	p = e.AppendUint32(e.AppendUint32(p, version), uint32(r.State))
	for _, v := range [...]uint64{r.Epoch, r.Renewal, r.Seq} {
		p = e.AppendUint64(p, v)
	}
	p = append(append(p, r.Holder[:]...), r.BootID[:]...)
	p = e.AppendUint32(e.AppendUint32(p, uint32(r.PID)), uint32(r.Duration/time.Millisecond))
	for _, v := range [...]uint64{
		r.PIDSpace, r.Started, uint64(r.Wall), uint64(r.Boot), uint64(r.TakenWall), uint64(r.TakenBoot),
		r.PrevEpoch, r.PrevRenewal,
	} {
		p = e.AppendUint64(p, v)
	}
	_ = e.AppendUint32(e.AppendUint32(p, uint32(r.How)), uint32(r.Watched/time.Millisecond))
	copy(b[namesAt:][:hostLen], r.Host)
	copy(b[namesAt+hostLen:][:hostLen], r.PrevHost)
	e.PutUint32(b[recordLen-4:], crc32.Checksum(b[:recordLen-4], castagnoli))
}

// decode reads what encode wrote; ok is false for anything else.
func decode(b []byte) (r Record, ok bool) {
	r, ok = decodeNumbers(b)
	names := b[namesAt:][:2*hostLen]
	r.Host, r.PrevHost = text(names[:hostLen]), text(names[hostLen:])
	return r, ok
}

// decodeNumbers is decode without names, for which it would have to allocate.
func decodeNumbers(b []byte) (r Record, ok bool) {
	e := binary.BigEndian
	if b = b[:recordLen]; !isRecord(b) || e.Uint32(b[8:]) != version {
		return r, false
	}
	if e.Uint32(b[recordLen-4:]) != crc32.Checksum(b[:recordLen-4], castagnoli) {
		return r, false
	}
	r.State = State(e.Uint32(b[12:]))
	p := b[16:]
	for _, v := range [...]*uint64{&r.Epoch, &r.Renewal, &r.Seq} {
		*v, p = e.Uint64(p), p[8:]
	}
	p = p[copy(r.Holder[:], p):]
	p = p[copy(r.BootID[:], p):]
	r.PID, r.Duration, p = int(e.Uint32(p)), time.Duration(e.Uint32(p[4:]))*time.Millisecond, p[8:]
	var wall, boot, takenWall, takenBoot uint64
	for _, v := range [...]*uint64{
		&r.PIDSpace, &r.Started, &wall, &boot, &takenWall, &takenBoot, &r.PrevEpoch, &r.PrevRenewal,
	} {
		*v, p = e.Uint64(p), p[8:]
	}
	r.Wall, r.Boot, r.TakenWall, r.TakenBoot = int64(wall), int64(boot), int64(takenWall), int64(takenBoot)
	r.How, r.Watched = How(e.Uint32(p)), time.Duration(e.Uint32(p[4:]))*time.Millisecond
	return r, r.State >= Claimed && r.State <= Released && r.Duration >= MinDuration && r.Duration <= MaxDuration
}

func isRecord(b []byte) bool { return string(b[:len(recordMagic)]) == recordMagic }

func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }
