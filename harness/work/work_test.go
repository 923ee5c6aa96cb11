package work

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func config(t *testing.T, mode Mode) Config {
	dir, err := os.MkdirTemp("/var/tmp", "loopnfs-work-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return Config{Mode: mode, Dir: dir, Log: filepath.Join(t.TempDir(), "log"), Jobs: 2, Blocks: 24, Rounds: 2, Seed: 7}
}

func run(t *testing.T, cfg Config) {
	t.Helper()
	if err := Run(context.Background(), cfg, io.Discard); err != nil {
		t.Fatal(err)
	}
}

func TestBlocks(t *testing.T) {
	cfg := config(t, Blocks)
	run(t, cfg)
	if n, err := Verify(cfg); err != nil || n != 48 {
		t.Fatalf("verified %d blocks of 48: %v", n, err)
	}
	f, _ := os.OpenFile(cfg.blocksFile(1), os.O_WRONLY, 0)
	f.WriteAt([]byte{0xff}, 5*BlockBytes+9000)
	f.Close()
	if n, err := Verify(cfg); err == nil || n != 47 {
		t.Errorf("a damaged byte was not noticed: %d blocks good, %v", n, err)
	}
}

func TestStream(t *testing.T) {
	cfg := config(t, Stream)
	run(t, cfg)
	if n, err := Verify(cfg); err != nil || n != 48 {
		t.Fatalf("verified %d blocks of 48: %v", n, err)
	}
	os.Truncate(cfg.blocksFile(0), 20*BlockBytes)
	if n, err := Verify(cfg); err == nil || n != 44 {
		t.Errorf("a lost tail was not noticed: %d blocks good, %v", n, err)
	}
}

func TestOldVersionIsNoticed(t *testing.T) {
	cfg := config(t, Blocks)
	run(t, cfg)
	f, _ := os.OpenFile(cfg.blocksFile(0), os.O_WRONLY, 0)
	old := make([]byte, BlockBytes)
	fillBlock(old, cfg.Seed, 0, 3, 1)
	f.WriteAt(old, 3*BlockBytes)
	f.Close()
	if _, err := Verify(cfg); err == nil {
		t.Error("a lost overwrite was not noticed")
	}
}

func TestFiles(t *testing.T) {
	cfg := config(t, Files)
	run(t, cfg)
	n, err := Verify(cfg)
	if err != nil || n == 0 {
		t.Fatalf("verified %d files: %v", n, err)
	}
	os.Remove(filepath.Join(cfg.filesDir(47), cfg.fileName(1, 47)))
	if m, err := Verify(cfg); err == nil || m != n-1 {
		t.Errorf("a lost file was not noticed: %d of %d, %v", m, n, err)
	}
}
