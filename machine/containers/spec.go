//go:build linux

package containers

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kilnhq/kiln/machine/containers/static"
)

// specType is how containerd calls the description of a container.
const specType = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

// Group is the control group that those of the containers are in.
const Group = "/containers"

// period is in what time, in microseconds, the share of CPU time is accounted for.
const period = 100_000

// An identity is what a process runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// runtimeSpec describes a container as the OCI runtime specification has it. The
// image's configuration says what c does not; it is empty if there is no image.
// more is mounted besides what c says.
func runtimeSpec(c *static.Container, config ocispec.ImageConfig, id identity, more []static.Mount) (*specs.Spec, error) {
	args := command(c, config)
	if len(args) == 0 {
		return nil, errors.New("neither the image nor the configuration says what to run, want command")
	}
	dir := c.WorkingDir
	if dir == "" {
		dir = config.WorkingDir
	}
	if dir == "" {
		dir = "/"
	}
	caps := capabilities(c)
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs", Readonly: !c.WritableRoot},
		Process: &specs.Process{
			Args: args, Env: environment(c, config, id), Cwd: dir, NoNewPrivileges: !c.Privileged,
			User:         specs.User{UID: id.uid, GID: id.gid, AdditionalGids: id.groups},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1 << 20, Soft: 1 << 16}},
		},
		Mounts: mounts(c, more),
		Linux: &specs.Linux{
			CgroupsPath:       Group + "/" + c.Name,
			Namespaces:        namespaces(c),
			Resources:         resources(c),
			RootfsPropagation: c.Propagation,
		},
	}
	if id.uid != 0 { // has what was asked for, and no default ones
		own := c.Capabilities
		if c.Privileged || slices.Contains(own, static.AllCapabilities) {
			own = caps
		}
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: own, Permitted: own, Inheritable: own, Ambient: own}
	}
	if c.Network != "" && c.Network != static.NetworkHost {
		s.Hostname = c.Name
	}
	if !c.Privileged {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = maskedPaths(), readonlyPaths()
	}
	if c.MaskedPaths != nil {
		s.Linux.MaskedPaths = *c.MaskedPaths
	}
	if c.ReadonlyPaths != nil {
		s.Linux.ReadonlyPaths = *c.ReadonlyPaths
	}
	if !c.Privileged && !c.NoSeccomp {
		profile, err := seccomp.GetDefaultProfile(s)
		if err != nil {
			return nil, fmt.Errorf("seccomp: %w", err)
		}
		s.Linux.Seccomp = profile
	}
	return s, nil
}

// command returns the program and its arguments. As in Kubernetes, a command
// takes the place of the image's arguments too.
func command(c *static.Container, config ocispec.ImageConfig) []string {
	if len(c.Command) > 0 {
		return slices.Concat(c.Command, c.Args)
	}
	if len(c.Args) > 0 {
		return slices.Concat(config.Entrypoint, c.Args)
	}
	return slices.Concat(config.Entrypoint, config.Cmd)
}

// environment returns the variables; of those with one name the last counts.
func environment(c *static.Container, config ocispec.ImageConfig, id identity) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if id.home != "" {
		env = append(env, "HOME="+id.home)
	}
	env = slices.Concat(env, config.Env, c.Env)
	last := map[string]int{}
	for i, e := range env {
		key, _, _ := strings.Cut(e, "=")
		last[key] = i
	}
	var kept []string
	for i, e := range env {
		if key, _, _ := strings.Cut(e, "="); last[key] == i {
			kept = append(kept, e)
		}
	}
	return kept
}

func namespaces(c *static.Container) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{
		{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
	}
	if c.Network != "" && c.Network != static.NetworkHost {
		list = append(list, specs.LinuxNamespace{Type: specs.NetworkNamespace}, specs.LinuxNamespace{Type: specs.UTSNamespace})
	}
	return list
}

func resources(c *static.Container) *specs.LinuxResources {
	r := &specs.LinuxResources{}
	switch {
	case c.Privileged || c.AllDevices:
		r.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	default: // runc adds /dev/null and those that every container has
		r.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	}
	if c.Memory > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &c.Memory}
	}
	if c.CPUs > 0 {
		quota, p := max(int64(c.CPUs*period), 1000), uint64(period) // the kernel takes no less than 1 ms
		r.CPU = &specs.LinuxCPU{Quota: &quota, Period: &p}
	}
	if c.PIDs > 0 {
		r.Pids = &specs.LinuxPids{Limit: &c.PIDs}
	}
	return r
}

// mounts returns what every container has mounted, then more, and what this one is
// to have.
// A mount of its own takes the place of one at the same path.
func mounts(c *static.Container, more []static.Mount) []specs.Mount {
	access := "ro"
	if c.Privileged || c.WritableSys {
		access = "rw"
	}
	list := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
	}
	if c.Network == "" || c.Network == static.NetworkHost {
		// A network of the node cannot be seen in a sysfs of another one's.
		list[5] = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", access}}
	}
	if c.Privileged {
		list = slices.DeleteFunc(list, func(m specs.Mount) bool { return strings.HasPrefix(m.Destination, "/dev/") })
		list[1] = specs.Mount{Destination: "/dev", Type: "bind", Source: "/dev", Options: []string{"rbind", "rslave", "nosuid", "noexec", "rw"}}
	}
	for _, m := range slices.Concat(more, c.Mounts) {
		list = slices.DeleteFunc(list, func(other specs.Mount) bool { return other.Destination == m.Target })
		list = append(list, specs.Mount{Destination: m.Target, Type: m.Type, Source: m.Source, Options: m.Options})
	}
	// What is below comes after what it is below of.
	slices.SortStableFunc(list, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return list
}

// capabilities returns those of the first process, as sets: with names as in
// capabilities(7).
func capabilities(c *static.Container) []string {
	if c.Privileged || slices.Contains(c.Capabilities, static.AllCapabilities) {
		return allCapabilities()
	}
	list := []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
	for _, add := range c.Capabilities {
		if !slices.Contains(list, add) {
			list = append(list, add)
		}
	}
	return list
}

func allCapabilities() []string {
	var list []string
	for name := range strings.FieldsSeq(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
		LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
		SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE
		AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF
		CHECKPOINT_RESTORE`) {
		list = append(list, "CAP_"+name)
	}
	return list
}

func maskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// names returns what a container that has a network needs to look up names: files
// of the node, those that there are.
func names(c *static.Container) []static.Mount {
	var list []static.Mount
	for _, f := range []struct{ target, source string }{{"/etc/resolv.conf", "/run/resolv.conf"}, {"/etc/hosts", "/run/kiln/etc/hosts"}} {
		if _, err := os.Stat(f.source); err == nil && c.Network != static.NetworkNone {
			list = append(list, static.Mount{Type: "bind", Source: f.source, Target: f.target, Options: []string{"bind", "ro", "nosuid", "noexec", "nodev"}})
		}
	}
	return list
}
