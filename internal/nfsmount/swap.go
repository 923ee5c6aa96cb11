package nfsmount

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// What loop-back swap was seen to work with, on a host of 192 MiB. To swap a page
// out, the kernel needs the server's reply; tcp_sendmsg takes a page for it while
// it holds the socket, and the journal of the server's disk needs pages, too.
// Neither may use the reserve that swapping itself uses up. With higher
// watermarks kswapd begins while there are pages for everybody.
const (
	SwapMinFree        = 24 << 20 // vm.min_free_kbytes, in bytes
	SwapWatermarkScale = 1000     // vm.watermark_scale_factor
)

// checkNoSwap refuses a loop-back mount that /etc/fstab puts swap on, if the
// watermarks are too low for that.
func (h *Host) checkNoSwap(mountpoint string) error {
	area, err := h.swapBelow(mountpoint)
	if area == "" || err != nil {
		return err
	}
	if h.sysctl("min_free_kbytes") >= SwapMinFree>>10 && h.sysctl("watermark_scale_factor") >= SwapWatermarkScale {
		return nil
	}
	return fmt.Errorf("/etc/fstab puts swap on %s: the server is on this host, and to have a page swapped out it needs pages itself, "+
		"so that the host can stop for good; put swap elsewhere, or type: sysctl -w vm.min_free_kbytes=%d vm.watermark_scale_factor=%d",
		area, SwapMinFree>>10, SwapWatermarkScale)
}

// swapBelow returns the first swap area of /etc/fstab below dir; empty if there
// is none.
func (h *Host) swapBelow(dir string) (string, error) {
	f, err := os.Open(h.path("/etc/fstab"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		field := strings.Fields(lines.Text())
		if len(field) >= 3 && field[2] == "swap" && strings.HasPrefix(unescape(field[0]), dir+"/") {
			return unescape(field[0]), nil
		}
	}
	return "", nil
}

// unescape resolves what fstab(5) writes for spaces and tabs.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\134`, `\`).Replace(s)
}

// sysctl reads a setting of the memory management; 0 if it cannot be read.
func (h *Host) sysctl(name string) int64 {
	text, _ := os.ReadFile(h.path("/proc/sys/vm", name))
	n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n
}
