package vm

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Kernel is a kernel that guests can boot.
type Kernel struct {
	// Version is that of the sources, like 6.12.43.
	Version string

	dir     string
	files   map[string]string // by module name
	builtin map[string]bool
}

// version returns that of the sources; empty for no kernel.
func (k *Kernel) version() string {
	if k == nil {
		return ""
	}
	return k.Version
}

func openKernel(dir string) (*Kernel, error) {
	version, err := os.ReadFile(filepath.Join(dir, "version"))
	if err != nil {
		return nil, err
	}
	k := &Kernel{Version: strings.TrimSpace(string(version)), dir: dir, files: map[string]string{}, builtin: map[string]bool{}}
	list, err := os.ReadFile(filepath.Join(dir, "modules", "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for path := range strings.FieldsSeq(string(list)) {
		k.builtin[moduleName(path)] = true
	}
	err = filepath.WalkDir(filepath.Join(dir, "modules"), func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".ko") {
			k.files[moduleName(path)] = path
		}
		return err
	})
	return k, err
}

// moduleName is the name by which the kernel knows the module in a file.
func moduleName(path string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), ".ko"), "-", "_")
}

func (k *Kernel) image() string { return filepath.Join(k.dir, "vmlinuz") }

// closure returns the files of the named modules and of those that they depend
// on, in the order in which they have to be loaded.
func (k *Kernel) closure(names []string) ([]string, error) {
	var order []string
	seen := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		if seen[name] || k.builtin[name] {
			return nil
		}
		seen[name] = true
		path, ok := k.files[name]
		if !ok {
			return fmt.Errorf("kernel %s has no module %s", k.Version, name)
		}
		depends, err := dependencies(path)
		if err != nil {
			return err
		}
		for _, d := range depends {
			if err := visit(d); err != nil {
				return err
			}
		}
		order = append(order, path)
		return nil
	}
	for _, name := range names {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// dependencies reads what a module says it needs.
func dependencies(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s is not a module", path)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(entry), "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}
