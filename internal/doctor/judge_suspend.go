package doctor

import (
	"fmt"
	"slices"
	"strings"
)

func (r *Report) judgeSuspend() {
	s := &r.Suspend
	for i := range s.Hooks {
		if h := &s.Hooks[i]; h.StopsServer && !h.UnmountsFirst && r.Loopbacks() > 0 {
			r.add(Finding{
				ID: "suspend-order", Severity: Warning, Subject: SubjectSuspend,
				What:   fmt.Sprintf("%s stops an NFS server and does not unmount its loop-back mount before", Printable(h.Path)),
				Why:    "That is the wrong way round: whoever still writes to the mount waits for the server that is gone, and cannot be frozen.",
				Remedy: []string{"# put before the line that stops the server: umount " + r.loopPaths()},
			})
		}
	}
	if !r.userServed() {
		return
	}
	f := Finding{
		ID: "suspend-freeze", Subject: SubjectSuspend,
		What: "the host cannot be suspended", Why: "Nothing freezes the server before its clients.",
	}
	unmounts := slices.ContainsFunc(s.Hooks, func(h Hook) bool { return h.Unmounts && (!h.StopsServer || h.UnmountsFirst) })
	switch {
	case !s.Possible():
	case unmounts:
		f.What = "the host can be suspended, and a hook unmounts something before"
	default:
		f.Severity = Warning
		f.What = fmt.Sprintf("the host can be suspended (%s), and nothing unmounts the loop-back mount before", strings.Join(s.States, ", "))
		f.Why = "A suspend freezes the server, which is a process like any other, while others wait for it in the kernel, where they cannot be frozen: the suspend can fail, or hang."
		f.Remedy = []string{
			"systemctl mask sleep.target   # a server has no need to sleep",
			`# or put a script into /etc/systemd/system-sleep: [ "$1" = pre ] && umount ` + r.loopPaths(),
		}
	}
	r.add(f)
}

// userServed reports whether a process serves a loop-back mount. Threads of the
// kernel are frozen after the processes that wait for them.
func (r *Report) userServed() bool {
	return slices.ContainsFunc(r.Servers, func(s Server) bool { return s.Loopback && !s.Kernel() })
}
