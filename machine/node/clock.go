//go:build linux

package node

import (
	"context"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/timesync"
)

// A clock is what keeps the node's right.
type clock struct {
	node   *Node
	syncer *timesync.Syncer
	faults []string // that were told of
	synced bool

	mu     sync.Mutex
	silent bool // nobody is asked
}

func newClock(n *Node) *clock {
	c := &clock{node: n, silent: true}
	rtc := timesync.RTC
	if _, err := os.Stat(rtc); err != nil {
		rtc = ""
	}
	c.syncer = timesync.New(timesync.Config{Clock: timesync.System{RTC: rtc}, Earliest: n.options.Epoch, Report: c.report})
	return c
}

// atLeast sets a clock that shows less than t, which is certainly past.
func (c *clock) atLeast(t time.Time) {
	now := time.Now()
	if !now.Before(t) {
		return
	}
	if err := (timesync.System{}).Step(t.Sub(now)); err != nil {
		c.node.remark("time", "the clock shows %s, which is past, and cannot be set: %v", now.UTC().Format(time.DateTime), err)
		return
	}
	c.node.remark("time", "the clock showed %s, which is past; it is set to %s", now.UTC().Format(time.DateTime), t.UTC().Format(time.DateTime))
}

func (c *clock) run(ctx context.Context) { c.syncer.Run(ctx) }

// servers asks those that the configuration or DHCP names.
func (c *clock) servers() {
	c.node.mu.Lock()
	cfg, status := c.node.config, c.node.status
	c.node.mu.Unlock()
	var servers []string
	switch {
	case cfg != nil && cfg.Time != nil && cfg.Time.Disabled:
	case cfg != nil && cfg.Time != nil && len(cfg.Time.Servers) > 0:
		servers = cfg.Time.Servers
	default:
		for _, a := range status.NTP {
			servers = append(servers, a.String())
		}
	}
	c.mu.Lock()
	c.silent = len(servers) == 0 // which is seen in the node's health, and is no news
	c.mu.Unlock()
	c.syncer.SetServers(servers)
}

func (c *clock) report(s timesync.Status) {
	c.mu.Lock()
	silent := c.silent
	c.mu.Unlock()
	for _, f := range s.Faults {
		if !silent && !slices.Contains(c.faults, f) {
			c.node.remark("time", "%s", f)
		}
	}
	c.faults = slices.Clone(s.Faults)
	if s.Synced {
		c.node.event("time", s.Server, "the clock is right", map[string]string{"offset": s.Offset.String()})
	}
	if s.Synced && !c.synced {
		c.synced = true
		if err := c.node.issue(); err != nil {
			c.node.remark("api", "%v", err)
		}
	}
}

// settled reports whether the time is right, or nobody knows better, or it was
// waited for long enough.
func (c *clock) settled(cfg *config.Config) bool {
	c.mu.Lock()
	silent := c.silent
	c.mu.Unlock()
	wait := defaultBootWait
	if cfg.Time != nil {
		wait = time.Duration(cfg.Time.BootWait)
	}
	return silent || c.syncer.Status().Synced || console.SinceKernelStart() > wait
}

const defaultBootWait = 30 * time.Second
