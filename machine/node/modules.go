//go:build linux

package node

import (
	"context"
	"strings"
	"time"

	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/layers"
)

// loading is how long a configuration waits for its modules. Some wait long for
// hardware, and the node must be managed meanwhile.
const loading = 20 * time.Second

// loadModules loads the modules of a configuration. What became of them is on the
// console, in the list of modules and among the events; none keeps the node from going
// on.
func (n *Node) loadModules(c *config.Config) {
	if n.options.Load == nil {
		return
	}
	var wanted []layers.Module
	if c.Kernel != nil {
		for _, m := range c.Kernel.Modules {
			wanted = append(wanted, layers.Module{Name: m.Name, Parameters: m.Parameters})
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := n.options.Load(wanted); err != nil {
			n.remark("modules", "%v", err)
		}
		n.tellModules(wanted)
	}()
	select {
	case <-done:
	case <-time.After(loading):
		n.remark("modules", "are still being loaded after %v; the node goes on without them", loading)
	}
}

// tellModules makes an event of each module that was asked for.
func (n *Node) tellModules(wanted []layers.Module) {
	list, err := n.Modules(context.Background())
	if err != nil {
		n.remark("modules", "%v", err)
	}
	fold := strings.NewReplacer("-", "_")
	for _, w := range wanted {
		for _, m := range list.Modules {
			if m.Name == fold.Replace(w.Name) {
				n.event("module", m.Name, m.Reason, map[string]string{"state": m.State, "parameters": m.Parameters})
			}
		}
	}
}
