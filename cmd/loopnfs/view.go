package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// A server can be looked at through a socket in the abstract name space, by root and by
// who it runs as: it tells its metrics there, and who waits for what.

const (
	viewPrefix  = "@loopnfs-server-"
	metricsPath = "/metrics"
	waitsPath   = "/waits"
	// viewTime is how long a server may take to answer.
	viewTime = 5 * time.Second
	// maxView is the most that is read of an answer, in bytes.
	maxView = 1 << 20
)

// listenView makes the socket of this process.
func listenView() (net.Listener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: viewPrefix + strconv.Itoa(os.Getpid()), Net: "unix"})
	return trustedListener{l}, err
}

// trustedListener closes connections of others.
type trustedListener struct{ *net.UnixListener }

// Accept implements net.Listener.
func (l trustedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil || trustedPeer(c) {
			return c, err
		}
		c.Close()
	}
}

// viewable returns the processes that can be looked at, in order.
func viewable() ([]int, error) {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var pids []int
	for lines := bufio.NewScanner(f); lines.Scan(); {
		_, name, _ := strings.Cut(lines.Text(), viewPrefix)
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil // connections have the name, too
}

// viewer looks at a server.
type viewer struct {
	pid  int
	http http.Client
}

func newViewer(pid int) *viewer {
	v := &viewer{pid: pid}
	v.http.Timeout = viewTime
	v.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return v.dial(ctx)
	}}
	return v
}

// dial connects to the server, if it is one: anybody can have a socket of that name.
func (v *viewer) dial(ctx context.Context) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", viewPrefix+strconv.Itoa(v.pid))
	if err != nil {
		return nil, err
	}
	cred, err := peerCred(c.(*net.UnixConn))
	if err == nil && cred.Uid != 0 && (int(cred.Pid) != v.pid || os.Geteuid() != 0 && int(cred.Uid) != os.Geteuid()) {
		err = fmt.Errorf("process %d of user %d pretends to be it", cred.Pid, cred.Uid)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// view is what a server said.
type view struct {
	at      time.Time
	metrics map[string]*dto.MetricFamily
	waits   []string
}

func (v *viewer) look(ctx context.Context) (*view, error) {
	w := &view{}
	err := v.get(ctx, metricsPath, func(r io.Reader) (err error) {
		parser := expfmt.NewTextParser(model.LegacyValidation)
		w.at = time.Now()
		w.metrics, err = parser.TextToMetricFamilies(r)
		return err
	})
	if err == nil {
		err = v.get(ctx, waitsPath, func(r io.Reader) error {
			text, err := io.ReadAll(r)
			w.waits = strings.Split(strings.TrimSpace(string(text)), "\n")
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("process %d does not tell about itself: %w", v.pid, err)
	}
	return w, nil
}

func (v *viewer) get(ctx context.Context, path string, read func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://server"+path, nil)
	if err != nil {
		return err
	}
	res, err := v.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, res.Status)
	}
	return read(io.LimitReader(res.Body, maxView))
}

// all calls yield with each value of a metric, and its labels.
func (w *view) all(name string, yield func(labels map[string]string, value float64)) {
	for _, m := range w.metrics["loopnfs_"+name].GetMetric() {
		labels := map[string]string{}
		for _, l := range m.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		yield(labels, m.GetGauge().GetValue()+m.GetCounter().GetValue())
	}
}

// value returns that of a metric whose labels have the given values, in any order; 0 if
// there is none.
func (w *view) value(name string, want ...string) (sum float64) {
	w.all(name, func(labels map[string]string, v float64) {
		for _, l := range labels {
			if !slices.Contains(want, l) {
				return
			}
		}
		sum += v
	})
	return sum
}

func (w *view) has(name string) bool { return w.metrics["loopnfs_"+name] != nil }
