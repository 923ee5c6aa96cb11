// Package gfp holds the flags of an allocation and the scope it is made in:
// plain values, with the names of the kernel's <linux/gfp_types.h> and
// <linux/sched/mm.h>.
//
// Flags say what an allocation may do to get memory. A Scope says what the
// request on whose behalf it is made forbids or allows, whatever the flags say.
// A Scope is immutable: inner := sc.NoFS() leaves sc alone, so there is no
// restore to forget or to nest wrongly (memalloc_nofs_save and its kin). It is
// part of the request and goes where the request goes.
package gfp
