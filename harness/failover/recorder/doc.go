// Package recorder keeps what a server has promised, and looks whether it was kept.
//
// A client makes changes of names through a mount, and writes two lines for each to a log
// outside of the cluster: one before the call, one after its answer. What was answered is
// a promise, whoever dies after that; what was called and not answered may or may not have
// happened, once.
//
//	called ──► mount ──► server          log:  {"op":"create","name":"token-3","id":"c1.1-17",…}
//	answered ◄──                               {…,"done":true}
//
// Every file carries an ID that no other ever has, so Check can follow each through its
// life: created EXCLUSIVE, renamed, removed. It is wrong if a file is not where the last
// promise put it, is in two places, or is there although it was removed; if two clients
// both were told to have made the same name while it was there; and if a call failed at
// all, for NFS clients wait for a server that is away.
//
// Locks are followed the same way, without a mount: package rawnfs speaks NLM. A lock that
// was granted must be given back to its owner by the next server, and to nobody else.
package recorder
