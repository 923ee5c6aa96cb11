// Package nfsmount mounts and unmounts with the kernel's own NFSv3 client, so that
// a mount of a server on this same host does as little harm as can be when memory
// runs out.
//
//	options ─► reach the server ─► fsopen, fsconfig ─► fsmount ─► cap ─► move_mount
//	           which address?      the kernel talks    a mount    bdi   now it can
//	           this host?          to the server       nowhere          be seen
//
// It makes the system calls itself instead of running mount.nfs: NFS and MOUNT of
// a loopnfs server answer on one port and need no portmapper, so there is nothing
// to negotiate, and nothing has to be installed. The calls are those of Linux 5.2
// and later, because between them the mount exists and nobody can write to it yet,
// which is when its dirty pages are capped, and because the kernel says in words
// what it does not like.
//
// What it deliberately does not do: keep a process, retry in the background, speak
// NFSv4, start rpc.statd.
package nfsmount
