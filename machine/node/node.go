//go:build linux

// Package node is what a machine does once its disk is there: it brings up the
// network, finds the machine configuration, sets the clock, keeps the services of
// the system running, and answers what the API's server asks for.
//
// Nothing of that ends the node. What does not work is a remark on the console and
// an event, and the node goes on without it: one that has no network yet, or a
// configuration that cannot be used, must still be one that can be managed. A node
// without a configuration is in maintenance mode: its API has a certificate of its
// own making, whose fingerprint is on the console, and takes a configuration.
package node

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/kilnhq/kiln/machine/cmdline"
	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/control"
	"github.com/kilnhq/kiln/machine/control/journal"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/machine/machineid"
	"github.com/kilnhq/kiln/machine/network"
	"github.com/kilnhq/kiln/machine/platform"
	"github.com/kilnhq/kiln/machine/platform/store"
	"github.com/kilnhq/kiln/machine/power"
	"github.com/kilnhq/kiln/machine/service"
)

// APIUser is the user of the API's server, and its group.
const APIUser = 50

// Options are what the node has come to know of itself.
type Options struct {
	Args    cmdline.Args
	Console *console.Console
	Runner  service.Runner
	Power   func(power.Request)

	Version  string    // of the image
	Release  string    // of the kernel
	Slot     string    // "" if no boot loader said which
	Disk     string    // device with META and the slots, "" if there is none
	StateDir string    // where STATE is mounted, or memory
	Image    string    // file with the configuration that was built in
	RunDir   string    // what other programs may read
	Modules  string    // file with what became of modules that were asked for
	Layers   string    // file with the layers
	Epoch    time.Time // is certainly past; zero if nothing is known

	Load    func([]layers.Module) error // loads modules, and keeps Modules
	Damaged map[string]string           // what is wrong with partitions that are not mounted, by label
}

// A Node is one that runs.
type Node struct {
	control.Unimplemented

	options  Options
	log      *slog.Logger
	events   *journal.Journal
	services *service.Supervisor
	state    store.Store
	server   *control.Server
	up       chan struct{} // closed when the start is over

	machineID machineid.ID
	lasting   bool // machineID is that of the next start too

	mu        sync.Mutex
	config    *config.Config // nil in maintenance mode
	source    string         // of the configuration
	fault     string         // why there is none, or not the right one
	network   *network.Network
	status    network.Status
	told      []netip.Addr // the console was told of
	identity  control.Identity
	changed   chan struct{} // closed and replaced with every new identity
	ready     bool
	ending    bool
	hostname  string
	described network.Spec // by the platform

	reconfigure sync.Mutex // one configuration at a time
	carrying    sync.Mutex // the same, while it is carried out
	slots       sync.Mutex // one change of the disk's slots at a time
	parameters  parameters // of the kernel
	values      sync.Mutex // one change of META at a time
	clock       *clock
	kubelet     *keeper
	trust       trust
	workloads   *workloads

	decided    chan struct{} // closed when there is a configuration, or it is not waited for any longer
	stopAsking context.CancelFunc
}

// Start begins to run a node and returns when its API has been started, if the
// image has one. ctx ends everything; Shutdown does so in order.
//
// The API does not wait for a configuration: with the one on STATE, which is read
// at once, it knows its clients, and without one somebody may want to bring it.
func Start(ctx context.Context, o Options) (*Node, error) {
	n := &Node{
		options: o, events: journal.New(maxEvents), state: store.Store{Dir: o.StateDir},
		changed: make(chan struct{}), up: make(chan struct{}), decided: make(chan struct{}),
		services: service.New(ctx, o.Runner),
	}
	n.log = slog.New(slog.NewTextHandler(remarks{o.Console}, nil))
	n.watchServices(ctx)
	n.clock = newClock(n)
	n.kubelet = &keeper{node: n, wake: make(chan struct{}, 1)}
	n.workloads = newWorkloads(n)
	n.clock.atLeast(o.Epoch)
	for _, label := range slices.Sorted(maps.Keys(o.Damaged)) { // the console has it
		n.event("note", label, o.Damaged[label], nil)
	}
	if err := prepareGroups(groupRoot); err != nil {
		n.remark("services", "%v", err)
	}
	n.identifyMachine()
	n.useSeed()
	n.setSysctls()
	if err := n.startNetwork(); err != nil {
		n.remark("network", "%v", err)
	}
	fingerprint, err := n.maintain()
	if err != nil {
		return nil, err
	}
	n.showDashboard(ctx, fingerprint.String())
	go n.clock.run(ctx)
	n.forgetUpgrade()
	name, _ := o.Args.Get(platform.ArgPlatform)
	p := platform.New(name, n.environment())
	go n.renew(ctx)
	go n.watchSpace(ctx)
	asking, stop := context.WithCancel(ctx)
	n.stopAsking = stop
	n.restore(asking)
	n.announce(fingerprint)
	if err := n.serve(ctx); err != nil {
		return nil, err
	}
	go n.askPlatform(ctx, p)
	go n.reportReady(ctx, p, platform.DefaultPolicy(), retry)
	go n.configure(ctx, asking, p)
	go n.kubelet.run(ctx)
	return n, nil
}

// Ready says that the start is over.
func (n *Node) Ready() {
	n.mu.Lock()
	n.ready = true
	n.mu.Unlock()
	close(n.up)
	n.event("stage", "ready", "", nil)
	debug.FreeOSMemory() // the start took more than what follows
}

// Shutdown ends the services.
func (n *Node) Shutdown() {
	n.mu.Lock()
	n.ending = true
	n.mu.Unlock()
	n.event("stage", "shutdown", "", nil)
	n.saveSeed(false)
	n.workloads.end()
	n.services.Shutdown()
}

// remark says what is not as it should be.
func (n *Node) remark(subject, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	n.options.Console.Note(subject + ": " + text)
	n.event("note", subject, text, nil)
}

// maxEvents is how many are kept.
const maxEvents = 1024

// event tells those who follow what happens.
func (n *Node) event(kind, subject, message string, fields map[string]string) {
	n.events.Add(time.Now(), control.Event{Kind: kind, Subject: subject, Message: message, Fields: fields})
}

// remarks is where loggers write to.
type remarks struct{ console *console.Console }

func (r remarks) Write(line []byte) (int, error) {
	r.console.Note(string(line[:max(0, len(line)-1)]))
	return len(line), nil
}

// serve answers the API's server and starts it.
func (n *Node) serve(ctx context.Context) error {
	path := filepath.Join(n.options.RunDir, filepath.Base(control.Socket))
	l, err := control.Listen(path, APIUser)
	if err != nil {
		return err
	}
	n.server = &control.Server{Node: n, Users: []uint32{APIUser}, Log: n.log}
	go func() {
		if err := n.server.Serve(ctx, l); err != nil && ctx.Err() == nil {
			n.remark("control", "%v", err)
		}
	}()
	return n.startAPI()
}

// current returns the configuration, nil in maintenance mode, and its source.
func (n *Node) current() (*config.Config, string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.config, n.source
}
