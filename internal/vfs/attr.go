package vfs

import "time"

// FileType is the type of a file object, numbered as ftype3 of RFC 1813 §2.5.
type FileType uint32

// File types of RFC 1813 §2.5.
const (
	TypeRegular   FileType = 1
	TypeDirectory FileType = 2
	TypeBlock     FileType = 3
	TypeChar      FileType = 4
	TypeSymlink   FileType = 5
	TypeSocket    FileType = 6
	TypeFIFO      FileType = 7
)

// Time is a point in time with nanoseconds, the nfstime3 of RFC 1813 §2.5.
// Seconds are unsigned 32 bits on the wire; they are wider here so that dates
// past 2106 survive between two local parties.
type Time struct {
	Sec  int64
	Nsec uint32
}

// TimeOf converts t.
func TimeOf(t time.Time) Time { return Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())} }

// Attr holds the attributes of one file object, the fattr3 of RFC 1813 §2.5.
type Attr struct {
	Type  FileType
	Mode  uint32 // permission bits only, 0 to 07777
	Nlink uint32
	UID   uint32
	GID   uint32
	Size  uint64 // bytes
	Used  uint64 // bytes on disk
	Major uint32 // device numbers, for block and character devices
	Minor uint32
	FSID  uint64
	Ino   uint64 // fileid3
	Atime Time
	Mtime Time
	Ctime Time
}

// PreAttr holds what must be known of an object before it was changed, the
// wcc_attr of RFC 1813 §2.6.
type PreAttr struct {
	Size  uint64
	Mtime Time
	Ctime Time
}

// Pre returns the part of a that weak cache consistency compares.
func (a *Attr) Pre() PreAttr { return PreAttr{Size: a.Size, Mtime: a.Mtime, Ctime: a.Ctime} }

// WCC holds weak cache consistency data (RFC 1813 §2.6): the attributes before
// and after a change, both read under the lock that made the change atomic. A
// side that could not be had is marked absent.
type WCC struct {
	Pre     PreAttr
	Post    Attr
	HasPre  bool
	HasPost bool
}

// SetTime says what to do with a time stamp (time_how of RFC 1813 §3.3.2).
type SetTime uint32

// The ways to set a time stamp, numbered as in RFC 1813.
const (
	DontChange      SetTime = 0
	SetToServerTime SetTime = 1
	SetToClientTime SetTime = 2
)

// SetAttr says which attributes to change, the sattr3 of RFC 1813 §2.5. A nil
// field stays as it is in the file.
type SetAttr struct {
	SetMode, SetUID, SetGID, SetSize bool

	Mode     uint32
	UID      uint32
	GID      uint32
	Size     uint64
	SetAtime SetTime
	SetMtime SetTime
	Atime    Time
	Mtime    Time

	// HasGuard asks for the change only if the ctime is still Guard
	// (sattrguard3); otherwise the call fails with ErrNotSync.
	HasGuard bool
	Guard    Time
}

// StatFS describes the file system as a whole (FSSTAT, RFC 1813 §3.3.18).
type StatFS struct {
	TotalBytes, FreeBytes, AvailBytes uint64
	TotalFiles, FreeFiles, AvailFiles uint64
	BlockSize                         uint32
	NameMax                           uint32
	LinkMax                           uint32 // names that one file may have: 1 without hard links, 0 if nobody knows
	MaxFile                           uint64 // largest size of a file, in bytes, 0 if nobody knows (s_maxbytes)
}
