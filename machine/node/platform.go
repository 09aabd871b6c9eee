//go:build linux

package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/network"
	"github.com/kilnhq/kiln/machine/network/domain"
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
	n.event("platform", m.InstanceID, "has told about the machine", map[string]string{"hostname": m.Hostname, "region": m.Region, "zone": m.Zone})
	n.reconfigure.Lock()
	defer n.reconfigure.Unlock()
	n.mu.Lock()
	n.metadata = m
	n.mu.Unlock()
	n.applyNetwork()
}

// applyNetwork makes the network what configuration and platform say. The caller holds
// reconfigure.
func (n *Node) applyNetwork() {
	n.mu.Lock()
	c, m, running := n.config, n.metadata, n.network
	n.mu.Unlock()
	if running == nil {
		return
	}
	spec, err := wantedNetwork(c, m)
	if err == nil {
		err = running.Apply(context.Background(), spec)
	}
	if err != nil {
		n.remark("network", "%v", err)
	}
}

// wantedNetwork returns the network of a configuration, completed with what the platform
// says. Either may be nil.
func wantedNetwork(c *config.Config, m *platform.Metadata) (spec network.Spec, err error) {
	if c != nil {
		if spec, err = network.FromConfig(c); err != nil {
			return spec, err
		}
	}
	if m != nil && spec.Hostname == "" {
		spec.Hostname = m.Hostname
	}
	return spec, nil
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
