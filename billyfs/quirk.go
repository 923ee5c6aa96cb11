package billyfs

import (
	"errors"
	"io"
	"os"
	"reflect"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/memfs"
	"github.com/go-git/go-billy/v5/osfs"
	gonfsmem "github.com/willscott/go-nfs/helpers/memfs"

	"loopnfs/internal/vfs"
)

// maxWrappers is how many file systems around each other are looked through.
const maxWrappers = 16

// innermost returns the file system that is under helpers and wrappers.
func innermost(fs billy.Basic) billy.Basic {
	for range maxWrappers {
		next := wrapped(fs)
		if next == nil {
			break
		}
		fs = next
	}
	return fs
}

// wrapped returns what fs is made of, nil if that cannot be seen: what a helper
// of billy tells, or the billy.Filesystem that is embedded.
func wrapped(fs billy.Basic) billy.Basic {
	if u, ok := fs.(interface{ Underlying() billy.Basic }); ok {
		return u.Underlying()
	}
	v := reflect.Indirect(reflect.ValueOf(fs))
	if v.Kind() != reflect.Struct {
		return nil
	}
	for _, name := range []string{"Filesystem", "Basic"} {
		if f := v.FieldByName(name); f.IsValid() && f.CanInterface() {
			inner, _ := f.Interface().(billy.Basic)
			return inner
		}
	}
	return nil
}

// quirks tells what must be done differently for file systems that are known to
// lose files otherwise.
func quirks(fs billy.Basic) (copies, derefs bool) {
	switch innermost(fs).(type) {
	case *memfs.Memory, *gonfsmem.Memory:
		copies = true
	case *osfs.BoundOS:
		derefs = true
	}
	return copies, derefs
}

// copyTree renames by copying. The Rename of memfs takes "ab" to be below "a" and
// loses it, loses what is two directories deep as the order of a map has it, and
// leaves a nil map where a directory may be made later.
func (fs *fileSystem) copyTree(from, to string) error {
	fi, err := fs.fs.Lstat(from)
	if err != nil {
		return err
	}
	switch typeOf(fi.Mode()) {
	case vfs.TypeDirectory:
		err = fs.copyDir(from, to, fi.Mode())
	case vfs.TypeSymlink:
		err = fs.copyLink(from, to)
	default:
		err = fs.copyFile(from, to, fi.Mode())
	}
	if err != nil {
		return err
	}
	return fs.fs.Remove(from)
}

func (fs *fileSystem) copyDir(from, to string, mode os.FileMode) error {
	if err := fs.fs.MkdirAll(to, mode&^os.ModeType); err != nil {
		return err
	}
	list, err := fs.fs.ReadDir(from)
	if err != nil {
		return err
	}
	for _, fi := range list {
		if err := fs.copyTree(fs.fs.Join(from, fi.Name()), fs.fs.Join(to, fi.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (fs *fileSystem) copyLink(from, to string) error {
	target, err := fs.fs.Readlink(from)
	if err != nil {
		return err
	}
	return fs.fs.Symlink(target, to)
}

func (fs *fileSystem) copyFile(from, to string, mode os.FileMode) error {
	src, err := fs.fs.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := fs.fs.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
