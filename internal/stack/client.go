package stack

import (
	"context"
	"errors"
	"log/slog"

	"loopnfs/fusefs"
	"loopnfs/nfsclient"
	"loopnfs/reclaim/writeback"
)

// ClientConfig says what to mount where.
type ClientConfig struct {
	// NFS is the client's own configuration; what belongs to Memory is filled
	// in.
	NFS nfsclient.Config
	// Door is where it is mounted; without a Mountpoint it is not. The file
	// system is filled in.
	Door fusefs.DoorConfig

	Logger *slog.Logger // nil: slog.Default
}

// Client is a running client and its mount.
type Client struct {
	NFS  *nfsclient.Client
	Door *fusefs.Door // nil if it is not mounted

	log *slog.Logger
}

// StartClient connects to a server and mounts what it exports. The client takes
// its pages from mem. ctx bounds the start only.
func StartClient(ctx context.Context, mem *Memory, cfg ClientConfig) (*Client, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	cfg.NFS.Cache, cfg.NFS.Domain, cfg.NFS.Graph, cfg.NFS.Logger = mem.Cache, mem.Domain, mem.Graph, cfg.Logger
	nfs, err := nfsclient.Mount(ctx, cfg.NFS)
	if err != nil {
		return nil, err
	}
	c := &Client{NFS: nfs, log: cfg.Logger}
	mem.Reclaim.AddDevice(nfs.BDI())
	if cfg.Door.Mountpoint == "" {
		return c, nil
	}
	cfg.Door.FS, cfg.Door.Graph, cfg.Door.Logger = nfs, mem.Graph, cfg.Logger
	if c.Door, err = fusefs.MountFS(cfg.Door); err != nil {
		return nil, errors.Join(err, nfs.Unmount(ctx))
	}
	return c, nil
}

// BDI returns the backing device: the server.
func (c *Client) BDI() *writeback.BDI { return c.NFS.BDI() }

// Stop unmounts, by force if the mount is in use, and writes everything that is
// dirty to the server, until ctx ends; then it tells what is lost.
func (c *Client) Stop(ctx context.Context) error {
	if c.Door != nil {
		closeDoor(c.Door, c.log)
	}
	err := c.NFS.Unmount(ctx)
	if c.Door != nil {
		select {
		case <-c.Door.Done(): // with the client gone, no request waits for it
		case <-ctx.Done():
			err = errors.Join(err, ctx.Err())
		}
	}
	return err
}
