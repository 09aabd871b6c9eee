package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnhq/kiln/api/v1alpha1"
	"github.com/kilnhq/kiln/internal/progress"
	"github.com/kilnhq/kiln/machine/api/client"
)

func newNodeUpgrade(n *nodeFlags) *cobra.Command {
	var image string
	var stay bool
	c := &cobra.Command{
		Use:   "upgrade --image IMAGE",
		Short: "Install another system into the other slot, and restart",
		Long: `Install another system into the slot that is not in use, put it on trial, and
restart the node. If the new system does not come up the node returns to the
present one; so it does if anything fails, or this command is ended, before.

IMAGE is an installer image: the file that 'kiln build installer' or 'docker save'
writes, which is sent, or the reference of one in a registry, which the node
fetches. Its extensions and kernel arguments are those that the node will have;
machine configuration, data and platform stay.`,
		Example: `  kiln node upgrade --nodes 192.0.2.10 --image kiln.installer.tar
  kiln node upgrade --nodes 192.0.2.10 --image registry.example.com/kiln/installer:v1.2.3 --no-reboot`,
		Args: args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if image == "" {
				return usageError{errors.New("no image, want --image FILE or --image REFERENCE")}
			}
			format, err := n.format()
			if err != nil {
				return err
			}
			if err := n.named(); err != nil {
				return err
			}
			o := &v1alpha1.UpgradeOptions{Reboot: !stay}
			fi, err := os.Stat(image)
			switch {
			case err == nil && fi.Mode().IsRegular():
				if err := describe(o, image, fi.Size()); err != nil {
					return err
				}
			case err == nil && fi.IsDir():
				return usageError{fmt.Errorf("%s is a directory, want the file that 'kiln build installer' writes", image)}
			case strings.HasPrefix(image, "/") || strings.HasPrefix(image, "."):
				return &fs.PathError{Op: "open", Path: image, Err: fs.ErrNotExist}
			default:
				o.Reference = image
			}
			var mu sync.Mutex
			return n.each(c.Context(), func(ctx context.Context, _ int, t client.Target, nc v1alpha1.NodeClient) error {
				step := ""
				return sendUpgrade(ctx, nc, o, image, func(m *v1alpha1.UpgradeProgress) error {
					mu.Lock()
					defer mu.Unlock()
					return printMessage(c.OutOrStdout(), format, t.Node, true, m, func() []string {
						if step == m.GetStep() {
							return nil
						}
						step = m.GetStep()
						return []string{stepLine(m)}
					})
				})
			})
		},
	}
	c.Flags().StringVar(&image, "image", "", "file or reference of the installer image")
	c.Flags().BoolVar(&stay, "no-reboot", false, "leave the restart to somebody else")
	return c
}

// describe fills in size and digest of a file that is sent.
func describe(o *v1alpha1.UpgradeOptions, image string, size int64) error {
	if size == 0 {
		return usageError{fmt.Errorf("%s is empty", image)}
	}
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	o.Size, o.Sha256 = uint64(size), h.Sum(nil)
	return nil
}

// sendUpgrade asks for an upgrade, and says what becomes of it.
func sendUpgrade(ctx context.Context, nc v1alpha1.NodeClient, o *v1alpha1.UpgradeOptions, image string, say func(*v1alpha1.UpgradeProgress) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := nc.Upgrade(ctx)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() { sent <- sendImage(s, o, image) }()
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return <-sent
		}
		if err == nil {
			err = say(m)
		}
		if err != nil {
			cancel()
			// What could not be read here is more than that the node was told so.
			if e := <-sent; e != nil && !errors.Is(e, io.EOF) && status.Code(e) != codes.Canceled {
				return e
			}
			return err
		}
	}
}

// stepLine is what there is to say of a step when it begins.
func stepLine(m *v1alpha1.UpgradeProgress) string {
	line := m.GetStep()
	if m.GetTotal() > 0 {
		line += ", " + progress.Bytes(int64(m.GetTotal()))
	}
	if m.GetSlot() != "" {
		line += ": slot " + m.GetSlot() + " has the new system, and is tried at the next start"
	}
	return line
}

// sendImage sends options, and the file if they are of one.
func sendImage(s grpc.BidiStreamingClient[v1alpha1.UpgradeRequest, v1alpha1.UpgradeProgress], o *v1alpha1.UpgradeOptions, image string) error {
	if err := s.Send(&v1alpha1.UpgradeRequest{Part: &v1alpha1.UpgradeRequest_Options{Options: o}}); err != nil {
		return err
	}
	if o.GetReference() != "" {
		return s.CloseSend()
	}
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	for buf := make([]byte, 256<<10); ; {
		k, err := f.Read(buf)
		if errors.Is(err, io.EOF) {
			return s.CloseSend()
		}
		if err != nil {
			return err
		}
		if err := s.Send(&v1alpha1.UpgradeRequest{Part: &v1alpha1.UpgradeRequest_Data{Data: buf[:k]}}); err != nil {
			return err
		}
	}
}

// ending returns a command that ends what the node does.
func ending(n *nodeFlags, use, short string, f func(context.Context, v1alpha1.NodeClient) (string, error)) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: args(0, "no arguments"), Example: "  kiln node " + use + " --nodes 192.0.2.10",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := n.named(); err != nil {
				return err
			}
			return n.do(c, f)
		},
	}
}

func newNodeRollback(n *nodeFlags) *cobra.Command {
	var reboot bool
	c := ending(n, "rollback", "Make nodes boot the other slot", func(ctx context.Context, nc v1alpha1.NodeClient) (string, error) {
		m, err := nc.Rollback(ctx, &v1alpha1.RollbackRequest{Reboot: reboot})
		return "slot " + m.GetSlot() + " boots next", err
	})
	c.Flags().BoolVar(&reboot, "reboot", false, "restart when it is done")
	return c
}

func newNodeReset(n *nodeFlags) *cobra.Command {
	var r v1alpha1.ResetRequest
	c := ending(n, "reset", "Erase what nodes keep, and restart them", func(ctx context.Context, nc v1alpha1.NodeClient) (string, error) {
		_, err := nc.Reset(ctx, &r)
		return "erases what was asked for, and starts anew", err
	})
	c.Long = `Erase STATE (the machine configuration and what identifies the node), EPHEMERAL
(everything below /var), or both, and restart. One of them must be named.`
	c.Example = "  kiln node reset --ephemeral --nodes 192.0.2.10"
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if !r.State && !r.Ephemeral {
			return usageError{errors.New("nothing to erase, want --state, --ephemeral or both")}
		}
		return run(c, args)
	}
	c.Flags().BoolVar(&r.State, "state", false, "erase STATE")
	c.Flags().BoolVar(&r.Ephemeral, "ephemeral", false, "erase EPHEMERAL")
	c.Flags().BoolVar(&r.Shutdown, "shutdown", false, "turn off instead of starting again")
	return c
}

func newNodeReboot(n *nodeFlags) *cobra.Command {
	return ending(n, "reboot", "Restart nodes", func(ctx context.Context, nc v1alpha1.NodeClient) (string, error) {
		_, err := nc.Reboot(ctx, &v1alpha1.RebootRequest{})
		return "restarts", err
	})
}

func newNodeShutdown(n *nodeFlags) *cobra.Command {
	return ending(n, "shutdown", "Turn nodes off", func(ctx context.Context, nc v1alpha1.NodeClient) (string, error) {
		_, err := nc.Shutdown(ctx, &v1alpha1.ShutdownRequest{})
		return "turns off", err
	})
}
