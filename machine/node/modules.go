//go:build linux

package node

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/kilnhq/kiln/machine/config"
)

// modprobeProgram loads modules. It is a program of its own, so that a driver that
// does not come back from its start holds up nobody else.
const modprobeProgram = "/usr/bin/modprobe"

// modprobePatience is how long the node waits for a module.
const modprobePatience = 30 * time.Second

// loadModules loads what the configuration names, and remembers what it cannot.
func (n *Node) loadModules(c *config.Config) {
	var missing []string
	if c.Kernel != nil {
		for _, m := range c.Kernel.Modules {
			if err := n.modprobe(m); err != nil {
				missing = append(missing, err.Error())
				n.remark("module", "%v", err)
			}
		}
	}
	n.mu.Lock()
	n.missing = missing
	n.mu.Unlock()
}

func (n *Node) modprobe(m config.Module) error {
	var stderr bytes.Buffer
	cmd := exec.Command(modprobeProgram, append([]string{m.Name}, strings.Fields(m.Parameters)...)...)
	cmd.Stderr = &stderr
	wait, err := n.options.Runner.Start(cmd)
	if err != nil {
		return fmt.Errorf("%s, which the configuration names: %w", m.Name, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- wait() }()
	select {
	case err = <-ended:
	case <-time.After(modprobePatience):
		return fmt.Errorf("%s, which the configuration names: has not come back from its start in %v", m.Name, modprobePatience)
	}
	if text := strings.TrimPrefix(strings.TrimSpace(stderr.String()), "modprobe: "); err != nil && text != "" {
		err = errors.New(strings.ReplaceAll(text, "\n", "; "))
	}
	if err != nil {
		return fmt.Errorf("%s, which the configuration names: %w", m.Name, err)
	}
	return nil
}
