//go:build linux

package containers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnhq/kiln/machine/containers/cni"
	"github.com/kilnhq/kiln/machine/containers/static"
)

// Bridge is the Network of a node: CNI plugins put containers behind it.
type Bridge struct {
	Config  string   // file with the network's plugins
	Plugins []string // directories with the programs
	Dir     string   // static.Dir

	// Loopback brings the interface lo up for a process.
	Loopback func(pid int) error
}

// Local returns the Bridge of a node.
func Local() Bridge {
	return Bridge{Config: "/etc/cni/net.d/10-kiln.conflist", Plugins: []string{"/usr/lib/cni", "/opt/cni/bin"}, Dir: static.Dir, Loopback: loopback}
}

// attached is what is kept of a container that has been attached, outside of its
// own directory, which is gone with the container.
type attached struct {
	Ports  []cni.PortMapping `json:"ports"`
	Result json.RawMessage   `json:"result"`
}

func (b Bridge) file(c *static.Container) string { return filepath.Join(b.Dir, c.Name+".network") }

func (b Bridge) attachment(c *static.Container) cni.Attachment {
	a := cni.Attachment{Container: "kiln-" + c.Name, Interface: "eth0"}
	for _, p := range c.Ports {
		a.Ports = append(a.Ports, cni.PortMapping{HostPort: p.Host, ContainerPort: p.Container, Protocol: p.Protocol})
	}
	return a
}

// Attach is that of a Network.
func (b Bridge) Attach(ctx context.Context, c *static.Container, pid int) error {
	a := b.attachment(c)
	a.Namespace = fmt.Sprintf("/proc/%d/ns/net", pid)
	if err := b.Loopback(pid); err != nil {
		return err
	}
	if c.Network != static.NetworkBridge {
		return nil
	}
	n, err := cni.Load(b.Config, b.Plugins...)
	if err != nil {
		return err
	}
	// Known before it is done: what is cut short is undone as well.
	if err := b.keep(c, attached{Ports: a.Ports}); err != nil {
		return err
	}
	result, err := n.Add(ctx, a)
	if err != nil {
		return err
	}
	return b.keep(c, attached{Ports: a.Ports, Result: result})
}

func (b Bridge) keep(c *static.Container, a attached) error {
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return os.WriteFile(b.file(c), data, 0o600)
}

// Detach is that of a Network.
func (b Bridge) Detach(ctx context.Context, c *static.Container) error {
	var kept attached
	data, err := os.ReadFile(b.file(c))
	switch {
	case err == nil:
		if err := json.Unmarshal(data, &kept); err != nil {
			return fmt.Errorf("%s: %w", b.file(c), err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case c.Network != static.NetworkBridge:
		return nil
	}
	// Without the file too: addresses are kept on the disk, also by a machine that
	// was turned off.
	n, err := cni.Load(b.Config, b.Plugins...)
	if err != nil {
		return err
	}
	a := b.attachment(c)
	if len(kept.Ports) > 0 {
		a.Ports = kept.Ports
	}
	if err := n.Delete(ctx, a, kept.Result); err != nil {
		return err
	}
	if err := os.Remove(b.file(c)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
