//go:build linux

package node

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/kilnhq/kiln/internal/atomicfile"
	"github.com/kilnhq/kiln/kernel/hardening"
	"github.com/kilnhq/kiln/kernel/kconfig"
	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/console"
	"github.com/kilnhq/kiln/machine/sysctl"
)

// parameters are those of the kernel.
type parameters struct {
	mu    sync.Mutex
	final bool // also what cannot be changed back is set
}

// setSysctls sets the kernel's parameters: the node's own and, instead and
// besides, those of the configuration.
func (n *Node) setSysctls() {
	n.parameters.mu.Lock()
	defer n.parameters.mu.Unlock()
	configured := map[string]string{}
	if c, _ := n.current(); c != nil && c.Kernel != nil {
		for name, value := range c.Kernel.Sysctls {
			configured[strings.TrimPrefix(config.SysctlFile(name), sysctl.Directory+"/")] = string(value)
		}
	}
	if err := sysctl.Apply(sysctl.Directory, sysctl.Defaults(runtime.GOARCH), configured, n.parameters.final); err != nil {
		n.remark("sysctl", "%v", err)
	}
}

// harden sets the parameters that cannot be changed back, which a configuration
// that is there by now may forbid, and says how the kernel compares with the
// recommendations.
func (n *Node) harden() {
	n.parameters.mu.Lock()
	n.parameters.final = true
	n.parameters.mu.Unlock()
	n.setSysctls()
	r, err := n.Hardening(context.Background())
	if err != nil {
		n.remark("hardening", "%v", err)
	}
	n.options.Console.Stage("hardening", console.F("ok", r.OK), console.F("failed", r.Failed), console.F("not_applicable", r.NotApplicable))
}

// hardeningFile is the file with the last report.
const hardeningFile = "hardening.json"

// Hardening is a verb of control.Node. The report is also kept in a file.
func (n *Node) Hardening(context.Context) (hardening.Report, error) {
	kernel, err := n.kernelConfig()
	r := hardening.Check(hardening.System{
		Arch: runtime.GOARCH, Release: n.options.Release, Config: kernel, Args: append([]string{}, n.options.Args...),
		Sysctl: func(name string) (string, bool) { return sysctl.Get(sysctl.Directory, name) },
	})
	if err != nil {
		return r, err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return r, err
	}
	f, err := atomicfile.Create(filepath.Join(n.options.RunDir, hardeningFile), 0o644)
	if err != nil {
		return r, err
	}
	defer f.Close()
	if _, err := f.Write(append(data, '\n')); err != nil {
		return r, err
	}
	return r, f.Commit()
}

// kernelConfig returns the running kernel's configuration: from the root file
// system, which has that of its kernel, or from the kernel itself.
func (n *Node) kernelConfig() (kconfig.Config, error) {
	data, err := os.ReadFile(filepath.Join("/usr/lib/modules", n.options.Release, "config"))
	if err != nil {
		if data, err = os.ReadFile("/proc/config.gz"); err != nil {
			return nil, nil // not known
		}
	}
	return kconfig.Parse(data)
}
