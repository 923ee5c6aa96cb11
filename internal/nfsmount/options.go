package nfsmount

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Param is one parameter of fsconfig(2); a flag has no Value.
type Param struct{ Key, Value string }

// Options are what -o says, sorted by who acts on it.
type Options struct {
	params []Param           // for the kernel's NFS, in the order given
	given  map[string]string // the same, by key
	attrs  int               // MOUNT_ATTR_*, for the mount
}

const (
	// maxValue is the longest value that fsconfig(2) takes, in bytes.
	maxValue = 255
	// maxOptions is more than there are.
	maxOptions = 128
)

// attributes are the options that belong to the mount and not to the file system:
// what is set, and what that takes the place of.
var attributes = map[string]struct{ set, of int }{
	"ro":          {unix.MOUNT_ATTR_RDONLY, unix.MOUNT_ATTR_RDONLY},
	"rw":          {0, unix.MOUNT_ATTR_RDONLY},
	"nosuid":      {unix.MOUNT_ATTR_NOSUID, unix.MOUNT_ATTR_NOSUID},
	"suid":        {0, unix.MOUNT_ATTR_NOSUID},
	"nodev":       {unix.MOUNT_ATTR_NODEV, unix.MOUNT_ATTR_NODEV},
	"dev":         {0, unix.MOUNT_ATTR_NODEV},
	"noexec":      {unix.MOUNT_ATTR_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
	"exec":        {0, unix.MOUNT_ATTR_NOEXEC},
	"relatime":    {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
	"noatime":     {unix.MOUNT_ATTR_NOATIME, unix.MOUNT_ATTR__ATIME},
	"strictatime": {unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME},
	"nodiratime":  {unix.MOUNT_ATTR_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME},
	"diratime":    {0, unix.MOUNT_ATTR_NODIRATIME},
}

// flags and values are the options that the kernel's NFS or its superblock takes
// as they are, without and with a value (nfs(5)).
var (
	flags = words(`sync async dirsync hard soft softerr softreval nosoftreval
		ac noac cto nocto lock nolock acl noacl rdirplus nordirplus
		sharecache nosharecache resvport noresvport fsc nofsc`)
	values = words(`rsize wsize timeo retrans acregmin acregmax acdirmin acdirmax actimeo
		nconnect port mountport lookupcache local_lock sec write context vers nfsvers proto mountproto`)
	numbers = words(`rsize wsize timeo retrans acregmin acregmax acdirmin acdirmax actimeo
		nconnect port mountport vers nfsvers`)
	// idle is what only mount(8), fstab and systemd look at.
	idle = words("defaults auto noauto nofail _netdev intr nointr")
)

// refused are options that this command cannot carry out.
var refused = map[string]string{
	"bg":      "this command does not go on in the background; give it --timeout",
	"fg":      "the command waits for as long as --timeout says",
	"retry":   "give --timeout",
	"remount": "a mount cannot be changed: unmount it and mount it again",
	"addr":    "name the server before the colon",
	"udp":     "only TCP is spoken",
	"rdma":    "only TCP is spoken",
}

func words(s string) map[string]bool {
	m := map[string]bool{}
	for _, w := range strings.Fields(s) {
		m[w] = true
	}
	return m
}

// ParseOptions sorts the options of -o; sizes are in bytes. Of those that are
// repeated, the last one counts. An error is one of usage.
func ParseOptions(list []string) (*Options, error) {
	o := &Options{given: map[string]string{}}
	if len(list) > maxOptions {
		return nil, fmt.Errorf("-o: more than %d options", maxOptions)
	}
	for _, opt := range list {
		if err := o.add(opt); err != nil {
			return nil, fmt.Errorf("-o %s: %w", opt, err)
		}
	}
	return o, nil
}

func (o *Options) add(opt string) error {
	key, value, hasValue := strings.Cut(opt, "=")
	attr, isAttr := attributes[key]
	switch {
	case refused[key] != "":
		return fmt.Errorf("not with the kernel's client: %s", refused[key])
	case idle[key] || strings.HasPrefix(key, "x-"):
		return nil
	case isAttr && !hasValue:
		o.attrs = o.attrs&^attr.of | attr.set
		return nil
	case flags[key] && !hasValue:
		return o.pass(key, "")
	case values[key]:
		return o.addValue(key, value)
	}
	return fmt.Errorf("no such option of the kernel's client; nfs(5) lists those of NFSv3")
}

func (o *Options) addValue(key, value string) error {
	switch {
	case value == "" || len(value) > maxValue:
		return fmt.Errorf("give a value of 1 to %d bytes", maxValue)
	case (key == "vers" || key == "nfsvers") && value != "3":
		return fmt.Errorf("only NFSv3 is spoken")
	case strings.HasSuffix(key, "proto") && value != "tcp" && value != "tcp6":
		return fmt.Errorf("only TCP is spoken")
	case key == "vers" || key == "nfsvers" || strings.HasSuffix(key, "proto"):
		return nil // it is so anyway
	}
	if numbers[key] {
		if _, err := strconv.ParseUint(value, 10, 31); err != nil {
			return fmt.Errorf("%q is not a number", value)
		}
	}
	return o.pass(key, value)
}

func (o *Options) pass(key, value string) error {
	o.params = append(o.params, Param{key, value})
	o.given[key] = value
	return nil
}

// gives reports whether any of keys is given.
func (o *Options) gives(keys ...string) bool {
	for _, k := range keys {
		if _, ok := o.given[k]; ok {
			return true
		}
	}
	return false
}
