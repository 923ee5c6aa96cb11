package vfs

import (
	"errors"
	"testing"
)

func TestWbErr(t *testing.T) {
	var e WbErr
	first, second := errors.New("first"), errors.New("second")
	want := func(what string, got, want error) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	var writer, reader, late, later File
	e.Open(&writer)
	e.Open(&reader)
	want("before", e.Advance(&writer, e.Count()), nil)
	e.Set(first)
	e.Open(&late)
	want("write", e.Refuse(&writer), first)
	want("the next write", e.Refuse(&writer), nil)
	want("fsync of the reader", e.Advance(&reader, e.Count()), first)
	want("close of a child", e.Check(&writer, e.Count()), first)
	want("fsync", e.Advance(&writer, e.Count()), first)
	want("the next fsync", e.Advance(&writer, e.Count()), nil)
	want("opened before anybody was told", e.Advance(&late, e.Count()), first)
	e.Open(&later)
	want("opened after that", e.Advance(&later, e.Count()), nil)
	want("who has not opened it", e.Advance(nil, e.Count()), nil)

	since := e.Count()
	e.Set(second)
	want("fsync", e.Advance(&writer, since), second)
	want("fsync that waited for the same write", e.Advance(&writer, since), second)
	want("write after fsync", e.Refuse(&writer), nil)
	want("who has not opened it, after somebody was told", e.Advance(nil, e.Count()), nil)
	want("the same, if it waited", e.Advance(nil, since), second)
}
