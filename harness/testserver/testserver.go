// Package testserver runs a server in a process of its own, for tests that kill it. The
// process is the test's own program, started again:
//
//	func TestMain(m *testing.M) {
//		testserver.Main()
//		os.Exit(m.Run())
//	}
package testserver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"loopnfs/internal/stack"
	"loopnfs/nfsserver"
)

// Config says what to serve.
type Config struct {
	// Dir has what is exported as /e in the directory "export", which is there, and
	// the server's state in "state".
	Dir string
	// Buffered has the server write through the kernel's page cache.
	Buffered bool
	// Listener is where clients connect, if not nil. It stays the caller's, so that
	// those who connect between two servers come to the second.
	Listener *net.TCPListener `json:"-"`
}

// configEnv has the configuration of a process that serves.
const configEnv = "LOOPNFS_TESTSERVER"

// Main serves if this process was started for that, and does not return then.
func Main() {
	text := os.Getenv(configEnv)
	if text == "" {
		return
	}
	var cfg Config
	err := json.Unmarshal([]byte(text), &cfg)
	if err == nil {
		err = cfg.serveUntilEOF()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serveUntilEOF serves until standard input ends.
func (c *Config) serveUntilEOF() error {
	mem, err := stack.NewMemory(stack.DefaultMemory(8 << 20))
	if err != nil {
		return err
	}
	mem.Start()
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	s, err := stack.StartServer(mem, stack.ServerConfig{
		Exports:  []stack.ExportConfig{{Dir: filepath.Join(c.Dir, "export"), Name: "/e", Squash: nfsserver.SquashNone}},
		StateDir: filepath.Join(c.Dir, "state"), Listener: l, Buffered: c.Buffered,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if err != nil {
		return err
	}
	fmt.Println("serving")
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, s.Stop(context.Background()))
}

// Listen listens on any port.
func Listen() (*net.TCPListener, error) {
	return net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
}

// Server is a server in another process.
type Server struct {
	Addr string // where clients connect

	cmd *exec.Cmd
	in  io.Closer
}

// Start starts a server. It ends with this process at the latest.
func Start(cfg Config) (*Server, error) {
	l := cfg.Listener
	if l == nil {
		var err error
		if l, err = Listen(); err != nil {
			return nil, err
		}
		defer l.Close()
	}
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := json.Marshal(&cfg)
	if err != nil {
		return nil, err
	}
	s := &Server{Addr: l.Addr().String(), cmd: exec.Command(os.Args[0])}
	// The race detector lets processes sleep for a second at their end.
	s.cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", configEnv+"="+string(text))
	s.cmd.Stderr = os.Stderr
	s.cmd.ExtraFiles = []*os.File{f}
	return s, s.start()
}

func (s *Server) start() error {
	in, inErr := s.cmd.StdinPipe() // ends with this process
	out, outErr := s.cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr, s.cmd.Start()); err != nil {
		return err
	}
	s.in = in
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		s.Kill()
		return fmt.Errorf("the server did not start: %w", err)
	}
	return nil
}

// Kill ends the server with SIGKILL. It is gone when Kill returns.
func (s *Server) Kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

// Stop ends the server in order.
func (s *Server) Stop() error {
	s.in.Close()
	return s.cmd.Wait()
}
