package main

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"loopnfs/internal/nfsmount"
)

func TestChoose(t *testing.T) {
	none := &nfsmount.Unavailable{Why: "there is none", Remedy: "get one"}
	for _, x := range []struct {
		via, given string // the flags that are given
		probe      error
		want       string // the way, or what the error says
	}{
		{viaAuto, "", nil, viaKernel},
		{viaAuto, "", none, viaFuse},
		{viaAuto, "memory", nil, viaFuse},
		{viaAuto, "log", nil, viaFuse},
		{viaAuto, "foreground", nil, viaFuse},
		{viaAuto, "loop-back", nil, viaKernel},
		{viaAuto, "loop-back", none, "--loop-back: --via fuse has no such flag"},
		{viaAuto, "loop-back memory", nil, "--loop-back: --via fuse has no such flag"},
		{viaAuto, "", errors.New("out of files"), "out of files"},
		{viaKernel, "", none, viaKernel}, // it says so when it mounts
		{viaKernel, "memory", nil, "--memory: --via kernel has no such flag"},
		{viaKernel, "foreground", nil, "--foreground: --via kernel has no such flag"},
		{viaFuse, "memory", nil, viaFuse},
		{viaFuse, "loop-back", nil, "--loop-back: --via fuse has no such flag"},
		{"pigeon", "", nil, "give kernel, fuse or auto"},
	} {
		o := mountOptions{via: x.via, given: func(f string) bool { return slices.Contains(strings.Fields(x.given), f) }}
		err := o.choose(func() error { return x.probe })
		got := o.via
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, x.want) {
			t.Errorf("--via %s, %q, %v: %s, want %s", x.via, x.given, x.probe, got, x.want)
		}
	}
}

func TestKernelConfig(t *testing.T) {
	o := mountOptions{source: "[::1]:20490:/a/b", mountpoint: "/mnt/.", options: []string{"rsize=64KiB", "noatime"}, loopBack: true}
	c, err := o.kernelConfig()
	if err != nil || c.Host != "::1" || c.Port != "20490" || c.Export != "/a/b" || c.Mountpoint != "/mnt" || !c.LoopBack || c.Options == nil {
		t.Errorf("%+v, %v", c, err)
	}
	if got, err := kernelOption("rsize=64KiB", ""); got != "rsize=65536" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	for opt, want := range map[string]string{
		"port=1": "given as 20490 too", "mountport=0": "not a port", "wsize=2MiB": "give 4KiB to 1MiB", "bg": "background",
	} {
		o.options = []string{opt}
		_, err := o.kernelConfig()
		var usage usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", opt, err)
		}
	}
}
