//go:build linux

package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kilnhq/kiln/machine/blockdev"
	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/control"
	"github.com/kilnhq/kiln/machine/disk"
	"github.com/kilnhq/kiln/machine/meta"
	"github.com/kilnhq/kiln/machine/network"
	"github.com/kilnhq/kiln/machine/platform"
	"github.com/kilnhq/kiln/machine/platform/vmware"
	"github.com/kilnhq/kiln/machine/platform/volume"
)

// patience is how long the node is not ready because of a configuration that may
// come. What comes later is taken over then.
const patience = 10 * time.Second

// fromState is the source of a configuration that the node has kept.
const fromState = "STATE"

// retry is when all sources are asked again of which one may have a configuration.
const retry = time.Minute

// restore takes over the configuration that the node has kept. It comes before the
// API: a node that has one is never open to everybody, not for a moment.
func (n *Node) restore(ctx context.Context) {
	r, err := n.policy(func(platform.Event) {}).Acquire(ctx, platform.Saved(n.environment()))
	if err == nil {
		n.found(r)
	}
}

// configure asks all sources, unless there is a configuration, and starts what may
// need one.
func (n *Node) configure(ctx, asking context.Context, p *platform.Platform) {
	defer n.stopAsking()
	if c, _ := n.current(); c != nil {
		n.carryOut()
	} else {
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			n.awaitConfiguration(asking, p)
		}()
		select {
		case <-asked:
		case <-time.After(patience):
			n.remark("config", "there is none yet; the node goes on without it, and takes it over when there is one")
		}
		defer func() { <-asked }()
	}
	if err := n.prepareKubernetes(); err != nil {
		n.remark("kubelet", "%v", err)
	}
	n.harden()
	close(n.decided)
	if err := n.startServices(ctx); err != nil {
		n.remark("services", "%v", err)
	}
}

// policy returns how sources are asked, and who is told of it.
func (n *Node) policy(progress func(platform.Event)) platform.Policy {
	p := platform.DefaultPolicy()
	p.Jitter = rand.Float64
	p.Validate = func(data []byte) error {
		_, err := config.Parse("configuration", data)
		return err
	}
	p.Progress = progress
	return p
}

// awaitConfiguration asks the sources until there is a configuration, none has
// one, or somebody has given the node one.
func (n *Node) awaitConfiguration(ctx context.Context, p *platform.Platform) {
	told := map[string]string{} // by source
	policy := n.policy(func(e platform.Event) {
		if e.Err == nil || ctx.Err() != nil || errors.Is(e.Err, platform.ErrNone) && e.Again == 0 {
			return
		}
		n.doubt(e.String())
		if text := e.Err.Error(); told[e.Source] != text { // and not every minute
			told[e.Source] = text
			n.remark("config", "%v", e)
		}
	})
	for ctx.Err() == nil {
		result, err := policy.Acquire(ctx, p.Sources)
		if err == nil {
			n.found(result)
			n.carryOut()
			return
		}
		if errors.Is(err, platform.ErrNone) {
			n.options.Console.Stage("config", console.F("from", "none"))
			return
		}
		if c, _ := n.current(); c != nil || ctx.Err() != nil {
			return
		}
		if text := err.Error(); told[""] != text {
			told[""] = text
			n.remark("config", "%v; all sources are asked again, every %v", err, retry)
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
		}
	}
}

// found takes over a configuration that a source has. It is kept on STATE, but for
// one that stands in for a better one.
func (n *Node) found(r *platform.Result) {
	n.reconfigure.Lock()
	defer n.reconfigure.Unlock()
	if c, _ := n.current(); c != nil {
		return // somebody was faster
	}
	c, err := config.Parse(r.Source, r.Data)
	if err != nil { // it was valid a moment ago
		n.remark("config", "%v", err)
		return
	}
	var doubts []string
	for _, f := range r.Failed {
		doubts = append(doubts, f.Error())
	}
	if len(doubts) > 0 {
		doubts = append(doubts, "the one of "+r.Source+" stands in, and is not kept")
		n.remark("config", "%s", strings.Join(doubts, "; "))
	} else if r.Source != fromState {
		if err := n.save(r.Data); err != nil {
			doubts = append(doubts, "it is not kept: "+err.Error())
			n.remark("config", "is not kept: %v", err)
		}
	}
	n.doubt(strings.Join(doubts, "; "))
	n.adopt(c, r.Source)
}

// doubt says why there is no configuration, or not the right one, for the node's
// health.
func (n *Node) doubt(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fault = text
}

// save keeps a configuration on STATE.
func (n *Node) save(data []byte) error {
	if err := n.state.Save(data); err != nil {
		return err
	}
	if text, ok := n.options.Damaged[disk.State]; ok {
		return fmt.Errorf("%s is damaged, the configuration is lost with the next start: %s", disk.State, text)
	}
	return nil
}

// environment is what sources look for a configuration in.
func (n *Node) environment() *platform.Environment {
	host := blockdev.Local()
	return &platform.Environment{
		Args:       n.options.Args,
		Client:     platform.NewClient(&net.Dialer{}, nil, n.options.Epoch),
		LowPort:    platform.NewClient(platform.LowPort{}, nil, n.options.Epoch),
		Devices:    func() ([]volume.Device, error) { return volume.Devices(host) },
		Firmware:   os.DirFS("/sys/firmware"),
		Hypervisor: vmware.Local,
		State:      n.state,
		Meta:       n.metaValue,
		Image:      n.options.Image,
		MAC: func() string {
			n.mu.Lock()
			defer n.mu.Unlock()
			for _, l := range n.status.Links {
				if l.Permanent != nil {
					return l.Permanent.String()
				}
			}
			return ""
		},
		Hostname: func() string {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.status.Hostname
		},
	}
}

func (n *Node) metaValue(k meta.Key) (string, bool, error) {
	values, err := n.readMeta()
	if errors.Is(err, control.ErrState) { // no disk
		return "", false, nil
	}
	v, ok := values[k]
	return string(v), ok, err
}

// adopt makes c the configuration, and the API know its clients: all else, see
// carryOut, may take long or fail. The caller holds reconfigure.
func (n *Node) adopt(c *config.Config, source string) {
	digest, err := config.Digest(c)
	if err != nil {
		n.remark("config", "%v", err)
	}
	n.mu.Lock()
	first := n.config == nil
	n.config, n.source = c, source
	n.mu.Unlock()
	n.event("config", source, digest, nil)
	n.options.Console.Stage("config", console.F("from", source), console.F("digest", digest))
	if c.API != nil {
		n.clock.atLeast(notBefore(c.API.Issuer))
	}
	n.clock.servers()
	if c.API == nil {
		return
	}
	if err := n.issue(); err != nil {
		n.remark("api", "%v", err)
	}
	if first {
		n.options.Console.Stage("api", console.F("mode", "mutual TLS"), console.F("port", c.API.Port))
	}
}

// carryOut makes the node what its configuration says. What it cannot is a remark.
func (n *Node) carryOut() {
	n.carrying.Lock()
	defer n.carrying.Unlock()
	c, _ := n.current()
	if c == nil {
		return
	}
	n.loadModules(c) // first: some bring kernel parameters
	n.setSysctls()
	n.writeFiles(c)
	n.setRegistries(c)
	n.applyNetwork()
	n.wakeKubelet()
	n.workloads.change()
}

// writeFiles writes the files below /var.
func (n *Node) writeFiles(c *config.Config) {
	for i := range c.Files {
		if err := writeFile(&c.Files[i]); err != nil {
			n.remark("file", "%v", err)
		}
	}
}

// varDir is the root of what files a configuration may have.
const varDir = "/var"

func writeFile(f *config.File) error {
	data, err := f.Data()
	if err != nil {
		return fmt.Errorf("%s: %w", f.Path, err)
	}
	root, err := os.OpenRoot(varDir) // links do not lead out of it
	if err != nil {
		return err
	}
	defer root.Close()
	name := strings.TrimPrefix(f.Path, varDir+"/")
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("%s: %w", f.Path, err)
	}
	temporary := name + ".kiln-new"
	defer func() { _ = root.Remove(temporary) }()
	out, err := root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Path, err)
	}
	_, err = out.Write(data)
	if err == nil {
		err = out.Chown(f.User, f.Group)
	}
	if err == nil {
		err = out.Chmod(os.FileMode(f.Mode))
	}
	if err == nil {
		err = out.Sync()
	}
	if e := out.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = root.Rename(temporary, name)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.Path, err)
	}
	return nil
}

// Config is a verb of control.Node.
func (n *Node) Config(_ context.Context, r control.ConfigRequest) (control.Config, error) {
	c, source := n.current()
	if c == nil {
		return control.Config{}, fmt.Errorf("%w: the node has no configuration", control.ErrState)
	}
	encode := config.Redacted
	if r.Secrets {
		encode = config.Encode
	}
	data, err := encode(c)
	return control.Config{Config: data, Source: source, Redacted: !r.Secrets}, err
}

// ApplyConfig is a verb of control.Node.
func (n *Node) ApplyConfig(_ context.Context, r control.ConfigChange) (control.ConfigResult, error) {
	c, err := config.Parse("configuration", r.Config)
	if err != nil {
		return control.ConfigResult{}, fmt.Errorf("%w: %w", control.ErrInvalid, err)
	}
	if _, err := network.FromConfig(c); err != nil {
		return control.ConfigResult{}, fmt.Errorf("%w: %w", control.ErrInvalid, err)
	}
	n.reconfigure.Lock()
	defer n.reconfigure.Unlock()
	before, _ := n.current()
	if before == nil {
		before = &config.Config{}
	}
	result := control.ConfigResult{}
	var lines []string
	for _, change := range config.Diff(before, c) {
		lines = append(lines, change.String()+"\n")
	}
	result.Diff = strings.Join(lines, "")
	if c.API == nil {
		if before.API != nil {
			return result, fmt.Errorf("%w: kind API is missing: nobody could manage the node any more", control.ErrInvalid)
		}
		result.Warnings = append(result.Warnings, "kind API is missing: the node stays in maintenance mode")
	}
	if r.DryRun {
		return result, nil
	}
	source := fromState
	if err := n.save(r.Config); err != nil {
		if n.options.Damaged[disk.State] == "" {
			return result, err
		}
		// The only way to manage this node until somebody has looked at its disk.
		result.Warnings = append(result.Warnings, err.Error())
		source = "memory"
	}
	n.stopAsking()
	n.doubt(strings.Join(result.Warnings, "; "))
	n.adopt(c, source)
	n.carryOut()
	result.Applied = true
	return result, nil
}
