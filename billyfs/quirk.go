package billyfs

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/memfs"
	"github.com/go-git/go-billy/v5/osfs"
	gonfsmem "github.com/willscott/go-nfs/helpers/memfs"
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
func quirks(fs billy.Basic) (moves, derefs bool) {
	switch innermost(fs).(type) {
	case *memfs.Memory, *gonfsmem.Memory:
		moves = true
	case *osfs.BoundOS:
		derefs = true
	}
	return moves, derefs
}

// moveAside runs f, which renames n, with all siblings of n out of the way whose
// names begin with that of n: memfs takes "ab" to be below "a", and loses it.
func (fs *fileSystem) moveAside(n *node, f func() error) (err error) {
	dir, err := fs.path(n.parent)
	if err != nil {
		return err
	}
	aside, err := fs.asides(dir, n.name)
	if err != nil {
		return err
	}
	for i, a := range aside {
		if err := fs.fs.Rename(a.path, a.aside); err != nil {
			return errors.Join(err, fs.moveBack(aside[:i]))
		}
	}
	err = f()
	return errors.Join(err, fs.moveBack(aside))
}

type aside struct{ path, aside string }

// asides lists what is in the way of a rename of name, longest name first, and
// where it can be in the meantime.
func (fs *fileSystem) asides(dir, name string) ([]aside, error) {
	list, err := fs.fs.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, fi := range list {
		if len(fi.Name()) > len(name) && strings.HasPrefix(fi.Name(), name) {
			names = append(names, fi.Name())
		}
	}
	slices.SortFunc(names, func(a, b string) int { return len(b) - len(a) })
	first := "r"
	if strings.HasPrefix(name, first) {
		first = "s"
	}
	var all []aside
	for i, s := range names {
		tmp := fmt.Sprintf("%s-%016x-%08d", first, fs.life, i)
		all = append(all, aside{fs.fs.Join(dir, s), fs.fs.Join(dir, tmp)})
	}
	return all, nil
}

// moveBack undoes what was moved aside, last first.
func (fs *fileSystem) moveBack(all []aside) error {
	var errs []error
	for _, a := range slices.Backward(all) {
		errs = append(errs, fs.fs.Rename(a.aside, a.path))
	}
	return errors.Join(errs...)
}
