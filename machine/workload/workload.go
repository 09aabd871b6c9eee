// Package workload puts together what the node itself is to run: the containers of
// its machine configuration, and those that system extensions bring.
package workload

import (
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/kilnhq/kiln/internal/imagename"
	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/containers/static"
	"github.com/kilnhq/kiln/machine/extservice"
)

// Prefix is what the names of extensions' services begin with.
const Prefix = "ext-"

// When a workload that has ended is started again.
const (
	Always    = "always"
	OnFailure = "on-failure"
	Never     = "never"
)

// A Workload is something to run.
type Workload struct {
	Container static.Container
	Host      bool   // it is a program of the node, without a container
	Restart   string // Always, OnFailure or Never
	Needs     Needs
	Console   bool // what it prints is also for the console
}

// Needs is what must be there before a workload starts.
type Needs struct {
	Services      []string
	Paths         []string
	Network       bool
	Time          bool
	Configuration bool
}

// All returns what a node is to run, each after those it needs, as far as these
// are among them. c is nil in maintenance mode.
func All(c *config.Config, extensions []*extservice.Service) []Workload {
	var all []Workload
	for _, s := range extensions {
		all = append(all, Extension(s))
	}
	if c != nil {
		for i := range c.Services {
			all = append(all, Configured(&c.Services[i]))
		}
	}
	return inOrder(all)
}

// inOrder sorts workloads. In a circle somebody is the first.
func inOrder(all []Workload) []Workload {
	byName := map[string]int{}
	for i, w := range all {
		byName[w.Container.Name] = i
	}
	var sorted []Workload
	seen := make([]bool, len(all))
	var visit func(int)
	visit = func(i int) {
		if seen[i] {
			return
		}
		seen[i] = true
		for _, other := range all[i].Needs.Services {
			if j, ok := byName[other]; ok {
				visit(j)
			}
		}
		sorted = append(sorted, all[i])
	}
	for i := range all {
		visit(i)
	}
	return sorted
}

// Configured returns the workload that a document of the configuration describes.
func Configured(s *config.Service) Workload {
	c := static.Container{
		Name: s.Name, Image: canonical(s.Image), Pull: string(s.Pull), Command: s.Command, Args: s.Args, WorkingDir: s.WorkingDir,
		User: number(s.User), Group: number(s.Group), Network: string(s.Network), WritableRoot: s.WritableRoot,
		Privileged: s.Privileged, Capabilities: s.Capabilities,
		Memory: int64(s.Resources.Memory), CPUs: s.Resources.CPUs, PIDs: int64(s.Resources.PIDs),
		StopTimeout: time.Duration(s.StopTimeout),
	}
	for key, value := range s.Environment {
		c.Env = append(c.Env, key+"="+value.Reveal())
	}
	slices.Sort(c.Env)
	for _, m := range s.Mounts {
		access := "rw"
		if m.ReadOnly {
			access = "ro"
		}
		x := static.Mount{Type: string(m.Type), Source: m.Source, Target: m.Target, Options: []string{"rbind", "rslave", "nosuid", "nodev", access}}
		if s.Privileged {
			x.Options = []string{"rbind", "rslave", access}
		}
		if m.Type == config.MountTmpfs {
			x.Source, x.Options = "tmpfs", []string{"nosuid", "nodev", "mode=1777", access}
			if m.Size > 0 {
				x.Options = append(x.Options, fmt.Sprintf("size=%d", m.Size))
			}
		}
		c.Mounts = append(c.Mounts, x)
	}
	for _, p := range s.Ports {
		c.Ports = append(c.Ports, static.Port{Host: p.Host, Container: p.Container, Protocol: string(p.Protocol)})
	}
	return Workload{
		Container: c, Restart: string(s.Restart),
		Needs: Needs{Services: s.WaitFor.Services, Paths: s.WaitFor.Paths, Network: s.WaitFor.Network, Time: s.WaitFor.Time},
	}
}

// canonical returns the whole name of an image, as containerd wants it and gives it
// to those that it brings in, see package imagename.
func canonical(image string) string {
	whole, err := imagename.Whole(image)
	if err != nil { // config.Parse refuses it
		return image
	}
	return whole
}

// Extension returns the workload that a file of an extension describes. As Talos
// does, it gets all capabilities and devices, and the node's network.
func Extension(s *extservice.Service) Workload {
	x := &s.Container
	c := static.Container{
		Name: Prefix + s.Name, RootFS: path.Join(extservice.RootDir, s.Name), Command: append([]string{x.Entrypoint}, x.Args...),
		Env: x.Environment, EnvFile: x.EnvironmentFile, Capabilities: []string{static.AllCapabilities}, AllDevices: true, NoSeccomp: true,
		WritableRoot: x.Security.WriteableRootfs, WritableSys: x.Security.WriteableSysfs, Propagation: x.Security.RootfsPropagation,
		MaskedPaths: x.Security.MaskedPaths, ReadonlyPaths: x.Security.ReadonlyPaths,
	}
	for _, m := range x.Mounts {
		if m.Type == "" {
			m.Type = "bind"
		}
		c.Mounts = append(c.Mounts, static.Mount{Type: m.Type, Source: m.Source, Target: m.Destination, Options: m.Options})
	}
	w := Workload{Container: c, Host: s.RunnerMode == extservice.RunHost, Console: s.LogToConsole, Restart: Always}
	switch s.Restart {
	case extservice.RestartNever:
		w.Restart = Never
	case extservice.RestartUntilSuccess:
		w.Restart = OnFailure
	}
	if x.EnvironmentFile != "" {
		w.Needs.Paths = append(w.Needs.Paths, x.EnvironmentFile)
	}
	for _, d := range s.Depends {
		switch {
		case d.Service == "cri": // Talos has a second containerd for Kubernetes
			w.Needs.Services = append(w.Needs.Services, "containerd")
		case slices.Contains(builtin(), d.Service):
		case d.Service != "":
			w.Needs.Services = append(w.Needs.Services, d.Service)
		case d.Path != "":
			w.Needs.Paths = append(w.Needs.Paths, d.Path)
		case d.Configuration:
			w.Needs.Configuration = true
		}
		w.Needs.Network = w.Needs.Network || len(d.Network) > 0
		w.Needs.Time = w.Needs.Time || d.Time
	}
	return w
}

// builtin are services of Talos that PID 1 is itself here, or that there is no
// need for.
func builtin() []string { return []string{"auditd", "dashboard", "machined", "syslogd", "udevd"} }

func number(n *int) *uint32 {
	if n == nil {
		return nil
	}
	u := uint32(*n)
	return &u
}
