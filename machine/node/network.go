//go:build linux

package node

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/network"
)

// etcDir is where the files are that are bind-mounted over those of the same names
// in /etc, which cannot be written to.
const etcDir = "/run/kiln/etc"

// etcFiles are the names; the root file system has all of them.
func etcFiles() []string { return []string{"hostname", "hosts"} }

// resolvConf is what /etc/resolv.conf is a link to.
const resolvConf = "/run/resolv.conf"

// startNetwork brings up the network that there is without a configuration.
func (n *Node) startNetwork() error {
	if err := bindEtc(); err != nil {
		n.remark("etc", "%v", err)
	}
	o := network.Options{Report: n.reportNetwork, Log: func(text string) { n.event("network", "", text, nil) }}
	if n.lasting {
		o.MachineID = n.machineID
	}
	net, err := network.Start(o)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.network = net
	n.mu.Unlock()
	return net.Apply(context.Background(), network.Spec{})
}

// bindEtc makes files of etcDir appear in /etc.
func bindEtc() error {
	if err := os.MkdirAll(etcDir, 0o755); err != nil {
		return err
	}
	for _, name := range etcFiles() {
		from, to := filepath.Join(etcDir, name), filepath.Join("/etc", name)
		data, err := os.ReadFile(to)
		if err != nil {
			return err
		}
		if err := os.WriteFile(from, data, 0o644); err != nil {
			return err
		}
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s over %s: %w", from, to, err)
		}
	}
	return nil
}

// reportNetwork takes over a new state of the network.
func (n *Node) reportNetwork(s network.Status) {
	n.mu.Lock()
	old := n.status
	n.status = s
	cfg := n.config
	n.mu.Unlock()
	s = n.named(s)
	n.setHostname(s.Hostname)
	var more []network.Host
	if cfg != nil {
		more = network.HostsOf(cfg)
	}
	for name, text := range map[string][]byte{
		filepath.Join(etcDir, "hostname"): s.HostnameFile(), filepath.Join(etcDir, "hosts"): s.Hosts(more), resolvConf: s.ResolvConf(),
	} {
		// In place: these are the files that are mounted over others.
		if err := os.WriteFile(name, text, 0o644); err != nil {
			n.remark("etc", "%v", err)
		}
	}
	for _, f := range s.Faults {
		if !slices.Contains(old.Faults, f) {
			n.remark("network", "%s", f.Text)
		}
	}
	if now := s.Addresses(); !slices.Equal(now, old.Addresses()) {
		n.event("network", "addresses", fmt.Sprint(now), nil)
		time.AfterFunc(settling, func() { n.tellAddresses(now) })
		if err := n.issue(); err != nil {
			n.remark("api", "%v", err)
		}
	}
	n.clock.servers()
	n.wakeKubelet()
}

// settling is how long addresses must have been the node's to be told of: one soon
// follows another.
const settling = 5 * time.Second

// tellAddresses says which addresses the node has, if they are still the same.
func (n *Node) tellAddresses(list []netip.Addr) {
	n.mu.Lock()
	still := slices.Equal(list, n.status.Addresses()) && !slices.Equal(list, n.told)
	if still {
		n.told = list
	}
	n.mu.Unlock()
	if !still {
		return
	}
	var words []string
	for _, a := range list {
		words = append(words, a.String())
	}
	n.options.Console.Stage("network", console.F("addresses", strings.Join(words, ",")))
}
