//go:build linux

package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/control"
	"github.com/kilnhq/kiln/machine/control/kernellog"
	"github.com/kilnhq/kiln/machine/dashboard"
	"github.com/kilnhq/kiln/machine/network"
	"github.com/kilnhq/kiln/machine/nodeinfo"
	"github.com/kilnhq/kiln/machine/service"
)

// argDashboard is the kernel argument that turns the dashboard off.
const argDashboard = "kiln.dashboard"

// dashboardConsole is the virtual console of the dashboard. The one before it has
// the lines of the system console, and what the kernel says.
const dashboardConsole = 2

const (
	// redraw is how often the dashboard is drawn when nothing happens, and atMost
	// how often when much does.
	redraw = 3 * time.Second
	atMost = 500 * time.Millisecond

	// renewal is after how many drawings all of the screen is sent, for what a
	// driver has made of it.
	renewal = 20

	// shownLog is how many lines of the log are at hand for the dashboard.
	shownLog = 100
)

// A panel is the node's dashboard.
type panel struct {
	node     *Node
	terminal *dashboard.Terminal
	shown    *dashboard.Screen // nil: not known
	drawings int
	log      []dashboard.Entry
	scrolled bool // the kernel has written something
	cpu      nodeinfo.CPUTime
	config   *config.Config // of digest
	digest   string
}

// showDashboard shows what the node is and does on the screen, if the machine may
// have one. fingerprint is the API's in maintenance mode.
func (n *Node) showDashboard(ctx context.Context, fingerprint string) {
	if v, _ := n.options.Args.Get(argDashboard); v == "off" {
		return
	}
	terminal, err := dashboard.Open(dashboardConsole)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return // the kernel has no virtual consoles
	}
	if err == nil {
		err = terminal.Show()
	}
	if err != nil {
		n.remark("dashboard", "%v", err)
		return
	}
	p := &panel{node: n, terminal: terminal}
	go p.run(ctx, fingerprint)
}

// run draws until ctx ends. A mistake in drawing must not take PID 1 with it.
func (p *panel) run(ctx context.Context, fingerprint string) {
	defer func() {
		if v := recover(); v != nil {
			p.node.remark("dashboard", "ends: %v", v)
		}
	}()
	lines := make(chan control.DmesgLine, 64)
	go func() {
		_ = kernellog.Send(ctx, kernellog.Device, control.TailRequest{Tail: -1, Follow: true}, func(l control.DmesgLine) error {
			select {
			case lines <- l:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	happened := make(chan struct{}, 1)
	go func() {
		_ = p.node.events.Send(ctx, control.TailRequest{Follow: true}, func(control.Event) error {
			select {
			case happened <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	for {
		var soon <-chan time.Time
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return
			case l := <-lines:
				if p.note(l) && soon == nil {
					soon = time.After(atMost)
				}
			case <-happened:
				if soon == nil {
					soon = time.After(atMost)
				}
			case <-soon:
				waiting = false
			case <-tick.C:
				waiting = false
			}
		}
		if p.terminal.Visible() {
			p.draw(fingerprint)
		}
	}
}

// note takes over a line of the kernel's log and reports whether it is shown: those
// of kiln, and of the kernel what is at least a warning.
func (p *panel) note(l control.DmesgLine) bool {
	const kernel, least = 0, 4
	text, ours := strings.CutPrefix(l.Message, console.Prefix)
	if l.Facility == kernel {
		ours, p.scrolled = false, true
	}
	if !ours && (l.Facility != kernel || l.Level > least) {
		return false
	}
	e := dashboard.Entry{Time: time.Duration(l.Microseconds) * time.Microsecond, Text: l.Message, Level: int(l.Level)}
	if ours {
		e.Text = withoutTime(text)
		if strings.HasPrefix(e.Text, "failed ") {
			e.Level = 3
		}
		if note, ok := strings.CutPrefix(e.Text, "note text="); ok {
			if plain, err := strconv.Unquote(note); err == nil {
				e.Text = plain
			}
		}
	}
	if p.log = append(p.log, e); len(p.log) > shownLog {
		p.log = slices.Delete(p.log, 0, len(p.log)-shownLog)
	}
	return true
}

// withoutTime returns a line of the console without its field t, which is in the
// kernel's log as well.
func withoutTime(line string) string {
	i := strings.LastIndex(line, " t=")
	if i < 0 {
		return line
	}
	number, rest, more := strings.Cut(line[i+len(" t="):], " ")
	if _, err := strconv.ParseFloat(number, 64); err != nil {
		return line
	}
	if more {
		rest = " " + rest
	}
	return line[:i] + rest
}

func (p *panel) draw(fingerprint string) {
	width, height, err := p.terminal.Size()
	if err != nil {
		return
	}
	if p.drawings++; p.drawings%renewal == 0 {
		p.shown = nil
	}
	next := dashboard.Render(p.state(fingerprint), width, height)
	pieces := next.Update(p.shown, p.scrolled)
	p.shown, p.scrolled = next, false
	for _, piece := range pieces {
		if _, err := p.terminal.Write(piece); err != nil {
			p.shown = nil // what it shows now is anybody's guess
			return
		}
	}
}

// state is what is shown now.
func (p *panel) state(fingerprint string) *dashboard.State {
	n := p.node
	n.mu.Lock()
	cfg, source, status, ready, ending := n.config, n.source, n.status, n.ready, n.ending
	n.mu.Unlock()
	s := &dashboard.State{
		Version: n.options.Version, Uptime: console.SinceKernelStart(), Stage: dashboard.Starting,
		Release: n.options.Release, Slot: n.options.Slot, Disk: n.options.Disk,
		CPUs: runtime.NumCPU(), CPU: p.usage(), Config: source, Log: p.log,
		Resolvers: status.Resolvers, Services: services(n.services.List()),
	}
	switch {
	case ending:
		s.Stage = dashboard.Ending
	case ready:
		s.Stage = dashboard.Ready
	}
	if name, err := os.Hostname(); err == nil && name != "(none)" && name != "localhost" {
		s.Hostname = name
	}
	if m, err := nodeinfo.Local().Memory(); err == nil {
		s.MemoryTotal, s.MemoryUsed = m.Total, m.Total-min(m.Available, m.Total)
	}
	if cfg != p.config {
		p.config = cfg
		p.digest, _ = config.Digest(cfg) // there was no error when it was taken over
	}
	s.Digest = p.digest
	if cfg != nil && cfg.API != nil {
		s.Port = int(cfg.API.Port)
	} else {
		s.Fingerprint = fingerprint
	}
	addresses(s, &status)
	return s
}

// addresses shows a network's state.
func addresses(s *dashboard.State, status *network.Status) {
	for _, l := range status.Links {
		if !l.Managed {
			continue
		}
		link := dashboard.Link{Name: l.Name, Carrier: l.Carrier}
		for _, a := range l.Addresses {
			if ip := a.Prefix.Addr(); ip.IsGlobalUnicast() && !a.Tentative && !a.Duplicate {
				link.Addresses = append(link.Addresses, a.Prefix)
			}
		}
		s.Links = append(s.Links, link)
	}
	for _, d := range status.Defaults {
		via := d.Link
		if d.Via.IsValid() {
			via = d.Via.WithZone("").String()
		}
		if !slices.Contains(s.Gateways, via) {
			s.Gateways = append(s.Gateways, via)
		}
	}
}

func services(list []service.Status) []dashboard.Service {
	var shown []dashboard.Service
	for _, v := range list {
		failing := v.State == service.Backoff || v.State == service.Unhealthy || v.State == service.Failed
		shown = append(shown, dashboard.Service{Name: v.Name, State: string(v.State), Message: v.Message,
			Healthy: v.State == service.Running, Failing: failing})
	}
	return shown
}

// usage is how much of the processors was used since it was last asked for, 0 to 1;
// below 0 at first.
func (p *panel) usage() float64 {
	times, err := nodeinfo.Local().Times()
	if err != nil {
		return -1
	}
	was, now := p.cpu, times.CPU
	p.cpu = now
	idle := float64(now.Idle+now.IOWait) - float64(was.Idle+was.IOWait)
	busy := float64(now.User+now.Nice+now.System+now.Interrupt+now.SoftInterrupt+now.Steal) -
		float64(was.User+was.Nice+was.System+was.Interrupt+was.SoftInterrupt+was.Steal)
	if was.Name == "" || idle+busy <= 0 {
		return -1
	}
	return min(max(busy/(idle+busy), 0), 1)
}
