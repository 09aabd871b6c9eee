//go:build linux

package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/network"
	"github.com/kilnhq/kiln/machine/network/domain"
	"github.com/kilnhq/kiln/machine/network/netdata"
	"github.com/kilnhq/kiln/machine/platform"
)

// askPlatform asks the platform about the machine until it has an answer, and takes that
// over: what the configuration does not say, the platform does.
func (n *Node) askPlatform(ctx context.Context, p *platform.Platform) {
	var said string
	for ctx.Err() == nil {
		m, err := platform.DefaultPolicy().Metadata(ctx, p)
		if err == nil {
			n.heard(m)
			return
		}
		if errors.Is(err, platform.ErrNone) || ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != said {
			n.remark("platform", "%v; it is asked again every %v", err, retry)
			said = text
		}
		wait(ctx, retry)
	}
}

// heard takes over what the platform says about the machine.
func (n *Node) heard(m *platform.Metadata) {
	if m.Hostname != "" && !domain.Valid(m.Hostname) {
		n.remark("platform", "the host name %q is none, and is not taken", m.Hostname)
		m.Hostname = ""
	}
	var described network.Spec
	if len(m.Network) > 0 {
		var err error
		if described, err = netdata.Parse(m.Network, n.linkNamed); err != nil && !errors.Is(err, netdata.ErrNone) {
			n.remark("platform", "%v; it is not taken", err)
		}
	}
	described.Hostname = m.Hostname
	n.event("platform", m.InstanceID, "has told about the machine", map[string]string{"hostname": m.Hostname, "region": m.Region, "zone": m.Zone})
	n.reconfigure.Lock()
	defer n.reconfigure.Unlock()
	n.mu.Lock()
	n.described = described
	n.mu.Unlock()
	n.applyNetwork()
}

// applyNetwork makes the network what configuration and platform say. The caller holds
// reconfigure.
func (n *Node) applyNetwork() {
	n.mu.Lock()
	c, described, running := n.config, n.described, n.network
	n.mu.Unlock()
	if running == nil {
		return
	}
	spec, err := wantedNetwork(c, described)
	if err == nil {
		err = running.Apply(context.Background(), spec)
	}
	if err != nil {
		n.remark("network", "%v", err)
	}
}

// wantedNetwork returns the network of a configuration, nil for none, completed with
// what the platform describes. A configuration with links is not mixed with others.
func wantedNetwork(c *config.Config, described network.Spec) (network.Spec, error) {
	if c == nil {
		return described, nil
	}
	spec, err := network.FromConfig(c)
	if err != nil {
		return spec, err
	}
	if spec.Hostname == "" {
		spec.Hostname = described.Hostname
	}
	if len(spec.Links) == 0 {
		spec.Links = described.Links
		if len(spec.Resolvers) == 0 && len(spec.Search) == 0 {
			spec.Resolvers, spec.Search = described.Resolvers, described.Search
		}
	}
	return spec, nil
}

// linkNamed returns the name of the interface with a hardware address, "" if there is
// none.
func (n *Node) linkNamed(a net.HardwareAddr) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.status.Links {
		if l.Permanent != nil && bytes.Equal(l.Permanent, a) {
			return l.Name
		}
	}
	return ""
}

// reportReady tells the platform that the node is up when it is, for as long as it takes:
// a platform that wants to know gives up machines that do not say so.
func (n *Node) reportReady(ctx context.Context, p *platform.Platform, policy platform.Policy, again time.Duration) {
	if p.Ready == nil {
		return
	}
	select {
	case <-n.up:
	case <-ctx.Done():
		return
	}
	var said string
	for ctx.Err() == nil {
		err := policy.Ready(ctx, p)
		if err == nil {
			n.event("platform", p.Name, "knows that the node is ready", nil)
			return
		}
		if text := err.Error(); ctx.Err() == nil && text != said {
			n.remark("platform", "does not know that the node is ready: %v; it is told again every %v", fmt.Errorf("%s: %w", p.Name, err), again)
			said = text
		}
		wait(ctx, again)
	}
}

// wait returns after the time, or when ctx is done.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
