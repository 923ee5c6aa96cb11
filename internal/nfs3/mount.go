package nfs3

import (
	"strings"

	"loopnfs/internal/xdr"

	client "github.com/vmware/go-nfs-client/nfs"
	gonfs "github.com/willscott/go-nfs"
)

// The MOUNT program of RFC 1813 appendix I.
const (
	MountProgram = client.MountProg // 100005
	MountVersion = client.MountVers // 3
)

// MOUNT procedure numbers of RFC 1813 appendix I.
const (
	MountProcNull    = uint32(gonfs.MountProcNull)
	MountProcMnt     = uint32(gonfs.MountProcMount)
	MountProcDump    = uint32(gonfs.MountProcDump)
	MountProcUmnt    = uint32(gonfs.MountProcUmnt)
	MountProcUmntAll = uint32(gonfs.MountProcUmntAll)
	MountProcExport  = uint32(gonfs.MountProcExport)
)

var mountProcNames = [...]string{"NULL", "MNT", "DUMP", "UMNT", "UMNTALL", "EXPORT"}

// MountProcName returns the name of a MOUNT procedure in RFC 1813, or "UNKNOWN".
func MountProcName(proc uint32) string {
	if proc >= uint32(len(mountProcNames)) {
		return "UNKNOWN"
	}
	return mountProcNames[proc]
}

// Limits of RFC 1813 appendix I, and this package's own for what it leaves open.
const (
	MaxMountPath = gonfs.MntPathLen // MNTPATHLEN, 1024
	MaxMountName = gonfs.MNTNameLen // MNTNAMLEN, 255
	MaxFlavors   = 16
	MaxGroups    = 256 // in one entry of EXPORT
)

// MountStatus is the outcome of MNT, the mountstat3 of RFC 1813 appendix I. Its
// values are those of Status; MountStatusOf makes one of an error.
type MountStatus uint32

// The values of mountstat3: MountPerm is MNT3ERR_PERM, and so on.
const (
	MountOK          = MountStatus(gonfs.MountStatusOk)
	MountPerm        = MountStatus(gonfs.MountStatusErrPerm)
	MountNoEnt       = MountStatus(gonfs.MountStatusErrNoEnt)
	MountIO          = MountStatus(gonfs.MountStatusErrIO)
	MountAcces       = MountStatus(gonfs.MountStatusErrAcces)
	MountNotDir      = MountStatus(gonfs.MountStatusErrNotDir)
	MountInval       = MountStatus(gonfs.MountStatusErrInval)
	MountNameTooLong = MountStatus(gonfs.MountStatusErrNameTooLong)
	MountNotSupp     = MountStatus(gonfs.MountStatusErrNotSupp)
	MountServerFault = MountStatus(gonfs.MountStatusErrServerFault)
)

// MountStatusOf returns the status that answers err: that of StatusOf if
// mountstat3 has it, otherwise MNT3ERR_SERVERFAULT.
func MountStatusOf(err error) MountStatus {
	switch s := MountStatus(StatusOf(err)); s {
	case MountOK, MountPerm, MountNoEnt, MountIO, MountAcces, MountNotDir,
		MountInval, MountNameTooLong, MountNotSupp:
		return s
	}
	return MountServerFault
}

// String returns the name in RFC 1813.
func (s MountStatus) String() string {
	return strings.Replace(Status(s).String(), "NFS3", "MNT3", 1)
}

// MntArgs are the arguments of MNT and of UMNT: a path of at most MaxMountPath
// bytes, or else ErrNameTooLong.
type MntArgs struct{ Path []byte }

// Encode appends a.
func (a *MntArgs) Encode(e *xdr.Encoder) { e.Opaque(a.Path) }

// Decode decodes a; the path is borrowed.
func (a *MntArgs) Decode(d *xdr.Decoder) error {
	a.Path = d.OpaqueMax(MaxMountPath, ErrNameTooLong)
	return d.Err()
}

// UmntArgs are the arguments of UMNT, which has no results. DUMP, UMNTALL and
// EXPORT have no arguments, UMNTALL has no results either.
type UmntArgs = MntArgs

// MntResult are the results of MNT; all but Status with success only.
type MntResult struct {
	Status  MountStatus
	Handle  FileHandle
	Flavors [MaxFlavors]uint32
	// NFlavors is how many of Flavors, the authentication flavours accepted,
	// are set.
	NFlavors int
}

// Encode appends r.
func (r *MntResult) Encode(e *xdr.Encoder) {
	e.Uint32(uint32(r.Status))
	if r.Status != MountOK {
		return
	}
	r.Handle.Encode(e)
	e.Uint32(uint32(r.NFlavors))
	for _, f := range r.Flavors[:r.NFlavors] {
		e.Uint32(f)
	}
}

// Decode decodes r; more than MaxFlavors flavours are xdr.ErrBadValue.
func (r *MntResult) Decode(d *xdr.Decoder) error {
	*r = MntResult{Status: MountStatus(d.Uint32())}
	if r.Status != MountOK {
		return d.Err()
	}
	r.Handle.Decode(d)
	r.NFlavors = int(d.Enum(MaxFlavors))
	for i := range r.NFlavors {
		r.Flavors[i] = d.Uint32()
	}
	return d.Err()
}

// MountEntry is an entry of DUMP: a host and what it has mounted.
type MountEntry struct {
	Host []byte // at most MaxMountName bytes
	Dir  []byte // at most MaxMountPath bytes
}

// Encode appends m; EndList ends the list.
func (m *MountEntry) Encode(e *xdr.Encoder) {
	e.Bool(true)
	e.Opaque(m.Host)
	e.Opaque(m.Dir)
}

// EndList appends the end of the list that DUMP or EXPORT return.
func EndList(e *xdr.Encoder) { e.Bool(false) }

// NextMount decodes the next entry of DUMP into m, borrowed. It returns false at
// the end of the list and on errors, which d.Err has.
func NextMount(d *xdr.Decoder, m *MountEntry) bool {
	*m = MountEntry{}
	if !d.Bool() {
		return false
	}
	m.Host = d.OpaqueMax(MaxMountName, ErrNameTooLong)
	m.Dir = d.OpaqueMax(MaxMountPath, ErrNameTooLong)
	return d.Err() == nil
}

// Export is an entry of EXPORT: a directory and the groups that may mount it.
type Export struct {
	Dir    []byte   // at most MaxMountPath bytes
	Groups [][]byte // at most MaxGroups of MaxMountName bytes; none: everyone
}

// Encode appends x; EndList ends the list.
func (x *Export) Encode(e *xdr.Encoder) {
	e.Bool(true)
	e.Opaque(x.Dir)
	for _, g := range x.Groups {
		e.Bool(true)
		e.Opaque(g)
	}
	e.Bool(false)
}

// NextExport decodes the next entry of EXPORT into x, borrowed; the array of
// x.Groups is used again. It returns false at the end of the list and on errors,
// which d.Err has.
func NextExport(d *xdr.Decoder, x *Export) bool {
	x.Dir, x.Groups = nil, x.Groups[:0]
	if !d.Bool() {
		return false
	}
	x.Dir = d.OpaqueMax(MaxMountPath, ErrNameTooLong)
	for d.Bool() {
		if len(x.Groups) == MaxGroups {
			d.Fail(xdr.ErrTooLong)
			break
		}
		x.Groups = append(x.Groups, d.OpaqueMax(MaxMountName, ErrNameTooLong))
	}
	return d.Err() == nil
}
