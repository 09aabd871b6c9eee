//go:build linux

// Package sysctl sets the parameters of the running kernel, the files below
// /proc/sys, and knows which ones a node sets by itself: those that the Kernel
// Self-Protection Project recommends, as far as containers work with them, what
// the kubelet wants to find, and room for many containers. See
// Documentation/admin-guide/sysctl of the kernel.
package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Directory is where the kernel has its parameters.
const Directory = "/proc/sys"

// A Setting is a parameter and its value.
type Setting struct {
	Name  string // with dots: kernel.panic
	Value string
	// Final parameters cannot be changed back until the machine restarts.
	Final bool
}

// Defaults returns what a node of an architecture sets, if it is not configured
// otherwise.
func Defaults(arch string) []Setting {
	lowest := "65536"
	if arch == "arm64" {
		lowest = "32768" // where programs for 32 bits may begin
	}
	return []Setting{
		// Kernel Self-Protection Project, Recommended Settings.
		{"dev.tty.ldisc_autoload", "0", false},
		{"dev.tty.legacy_tiocsti", "0", false},
		{"fs.protected_fifos", "2", false},
		{"fs.protected_hardlinks", "1", false},
		{"fs.protected_regular", "2", false},
		{"fs.protected_symlinks", "1", false},
		{"fs.suid_dumpable", "0", false},
		{"kernel.dmesg_restrict", "1", false},
		{"kernel.kexec_load_disabled", "1", true},
		{"kernel.kptr_restrict", "2", false},
		{"kernel.perf_event_paranoid", "3", false},
		{"kernel.randomize_va_space", "2", false},
		{"kernel.sysrq", "176", false}, // sync, unmount, restart
		{"kernel.unprivileged_bpf_disabled", "1", true},
		{"kernel.yama.ptrace_scope", "1", false}, // 3 would be for good, and end debuggers in containers
		{"net.core.bpf_jit_harden", "2", false},
		{"vm.mmap_min_addr", lowest, false},
		{"vm.unprivileged_userfaultfd", "0", false},

		// What the kubelet sets, or wants to find with protectKernelDefaults.
		{"kernel.keys.root_maxbytes", "25000000", false},
		{"kernel.keys.root_maxkeys", "1000000", false},
		{"kernel.panic", "10", false},
		{"kernel.panic_on_oops", "1", false},
		{"vm.overcommit_memory", "1", false},
		{"vm.panic_on_oom", "0", false},

		// Room for containers.
		{"fs.inotify.max_user_instances", "8192", false},
		{"fs.inotify.max_user_watches", "524288", false},
		{"kernel.pid_max", "4194304", false},
		{"net.ipv4.ip_forward", "1", false},
		{"vm.max_map_count", "262144", false},
	}
}

// File returns the file of a parameter, relative to Directory.
func (s Setting) File() string { return strings.ReplaceAll(s.Name, ".", "/") }

// Get returns the value of a parameter below dir, and whether there is one.
func Get(dir, name string) (string, bool) {
	data, err := os.ReadFile(filepath.Join(dir, Setting{Name: name}.File()))
	return strings.Join(strings.Fields(string(data)), " "), err == nil
}

// Apply makes the parameters below dir what own says, and what the configuration
// says instead and besides: values by the parameters' files, relative to dir. The
// final ones of own are left for later unless final is set. Parameters of own that
// the kernel does not have are passed over. The rest is done whatever fails.
func Apply(dir string, own []Setting, configured map[string]string, final bool) error {
	var errs []error
	for _, s := range own {
		if _, ok := configured[s.File()]; ok || s.Final && !final {
			continue
		}
		if err := set(dir, s.File(), s.Value); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for file, value := range configured {
		if err := set(dir, file, value); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// set writes a parameter, unless it has the value: some have effects beyond it.
func set(dir, file, value string) error {
	path := filepath.Join(dir, file)
	if data, err := os.ReadFile(path); err == nil && strings.Join(strings.Fields(string(data)), " ") == value {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err == nil {
		_, err = f.WriteString(value + "\n")
		err = errors.Join(err, f.Close())
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%s=%s: %w; it may be one that only the next start can change back", file, value, err)
	}
	if err != nil {
		return fmt.Errorf("%s=%s: %w", file, value, err)
	}
	return nil
}
