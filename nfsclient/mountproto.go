package nfsclient

import (
	"context"
	"fmt"
	"time"

	"loopnfs/internal/nfs3"
	"loopnfs/internal/sunrpc"
	"loopnfs/internal/xdr"
)

// mountTimeout limits the calls of the MOUNT protocol when the context does not.
const mountTimeout = 30 * time.Second

// mountExport is MNT: it returns the handle of the export's root. MOUNT has its
// own connection for each call. (The MOUNT calls of go-nfs-client trust the
// server: they allocate whatever a record mark says and panic when the call is
// denied. Hence one of our own.)
func mountExport(ctx context.Context, cfg *Config) (*nfs3.FileHandle, error) {
	var res nfs3.MntResult
	err := mountCall(ctx, cfg, nfs3.MountProcMnt, func(d *xdr.Decoder) error { return res.Decode(d) })
	if err != nil {
		return nil, err
	}
	if res.Status != nfs3.MountOK {
		return nil, fmt.Errorf("%w (%s): does the server export that path to this host?", nfs3.Errno(nfs3.Status(res.Status)), res.Status)
	}
	return &res.Handle, nil
}

// unmountExport is UMNT: it only tidies up the server's list of mounts.
func (c *Client) unmountExport(ctx context.Context) error {
	if ctx.Err() != nil {
		return nil
	}
	err := mountCall(ctx, &c.cfg, nfs3.MountProcUmnt, func(*xdr.Decoder) error { return nil })
	if err != nil {
		c.cfg.Logger.Debug("UMNT failed", "server", c.cfg.MountAddr, "err", err)
	}
	return nil
}

// mountCall makes one call to the MOUNT service.
func mountCall(ctx context.Context, cfg *Config, proc uint32, decode func(*xdr.Decoder) error) error {
	addr, err := resolve(ctx, cfg.MountAddr)
	if err != nil {
		return err
	}
	c, err := dial(addr, 0, connectTimeout, make([]byte, recvBuffer), func(closer) {})
	if err != nil {
		return err
	}
	defer c.Close()
	deadline := time.Now().Add(mountTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	reply, err := exchange(c.stream, encodeMount(cfg, proc))
	if err != nil {
		return fmt.Errorf("%s: %w", nfs3.MountProcName(proc), err)
	}
	d := xdr.NewDecoder(reply)
	if _, err := sunrpc.DecodeReply(&d); err != nil {
		return fmt.Errorf("%s: %w", nfs3.MountProcName(proc), err)
	}
	if err := decode(&d); err != nil {
		return fmt.Errorf("%s: %w", nfs3.MountProcName(proc), err)
	}
	return nil
}

func encodeMount(cfg *Config, proc uint32) []byte {
	call := sunrpc.Call{XID: uint32(time.Now().UnixNano()), Prog: nfs3.MountProgram, Vers: nfs3.MountVersion, Proc: proc}
	call.Cred.Flavor = sunrpc.AuthSys
	call.Cred.Sys = sunrpc.AuthSysCred{Machine: []byte(cfg.Machine), UID: cfg.UID, GID: cfg.GID}
	var e xdr.Encoder
	mark := sunrpc.BeginRecord(&e)
	sunrpc.EncodeCall(&e, &call)
	args := nfs3.MntArgs{Path: []byte(cfg.Export)}
	args.Encode(&e)
	sunrpc.EndRecord(&e, mark, 0)
	return e.Buf
}

// exchange sends a record and returns the next one received.
func exchange(st *sunrpc.Stream, call []byte) ([]byte, error) {
	if err := st.WriteVec([][]byte{call}); err != nil {
		return nil, err
	}
	if err := st.BeginRecord(recvBuffer); err != nil {
		return nil, err
	}
	reply, err := st.Peek(recvBuffer - 4)
	if err == sunrpc.ErrRecordEnd {
		err = nil
	}
	return reply, err
}
