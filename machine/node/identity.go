//go:build linux

package node

import (
	"context"
	"crypto/rand"
	"net/netip"
	"os"
	"time"

	"github.com/kilnhq/kiln/machine/api/selfsigned"
	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/config/identity"
	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/control"
)

// certificateLife is how long the API's certificate is valid. It is made anew with
// every start, whenever the node's addresses change, and in time.
const certificateLife = 365 * 24 * time.Hour

// renew makes the API's certificate anew before it ends.
func (n *Node) renew(ctx context.Context) {
	again := time.NewTicker(certificateLife / 4)
	defer again.Stop()
	for {
		select {
		case <-again.C:
			if err := n.issue(); err != nil {
				n.remark("api", "%v", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// notBefore is from when a certificate is valid: a time that is certainly past.
func notBefore(pair config.KeyPair) time.Time {
	certs, err := config.Certificates(pair.Certificate)
	if err != nil {
		return time.Time{}
	}
	return certs[0].NotBefore
}

// validity returns when the API's certificate begins and how long it is valid. As
// long as nobody has told the node the time it is valid as long as its issuer's,
// whatever the clock of who looks at it says.
func (n *Node) validity() (time.Time, time.Duration) {
	if !n.clock.syncer.Status().Synced {
		return time.Unix(0, 0), identity.AuthorityLife
	}
	return time.Now(), certificateLife
}

// maintain gives the API the identity of a node without a configuration, and
// returns its fingerprint.
func (n *Node) maintain() (selfsigned.Fingerprint, error) {
	name, _ := os.Hostname()
	cert, key, fingerprint, err := selfsigned.New(rand.Reader, name)
	if err != nil {
		return fingerprint, err
	}
	n.identify(control.Identity{Maintenance: true, Certificate: cert, Key: key})
	return fingerprint, nil
}

// announce shows the fingerprint of a node that waits for a configuration.
func (n *Node) announce(f selfsigned.Fingerprint) {
	if c, _ := n.current(); c != nil && c.API != nil {
		return
	}
	n.event("api", "maintenance", f.String(), nil)
	n.options.Console.Stage("api", console.F("mode", "maintenance"), console.F("fingerprint", f))
}

// issue makes the API's certificate for the addresses that the node has, if it has
// a configuration that says with what.
func (n *Node) issue() error {
	n.mu.Lock()
	c, status, hostname := n.config, n.status, n.hostname
	n.mu.Unlock()
	if c == nil || c.API == nil {
		return nil
	}
	issuer, err := identity.Load(c.API.Issuer)
	if err != nil {
		return err
	}
	names, addresses := namesOf(c, hostname), status.Addresses()
	for _, name := range c.API.Names {
		if a, err := netip.ParseAddr(name); err == nil {
			addresses = append(addresses, a)
		} else {
			names = append(names, name)
		}
	}
	addresses = append(addresses, netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback())
	now, life := n.validity()
	pair, err := issuer.NewServer(rand.Reader, now, life, names, addresses)
	if err != nil {
		return err
	}
	n.identify(control.Identity{CA: []byte(c.API.ClientCAs), Certificate: []byte(pair.Certificate), Key: []byte(pair.Key.Reveal())})
	return nil
}

// namesOf returns what the node is called.
func namesOf(c *config.Config, hostname string) []string {
	names := []string{"localhost"}
	if c.Hostname != nil {
		hostname = c.Hostname.Hostname // the network may not have it yet
	}
	if hostname != "" {
		names = append(names, hostname)
	}
	return names
}

func (n *Node) identify(id control.Identity) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.identity = id
	close(n.changed)
	n.changed = make(chan struct{})
}

// Identities is a verb of control.Node.
func (n *Node) Identities(ctx context.Context, send func(control.Identity) error) error {
	for {
		n.mu.Lock()
		id, changed := n.identity, n.changed
		n.mu.Unlock()
		if err := send(id); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
