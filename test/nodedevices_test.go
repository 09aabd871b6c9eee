//go:build linux

package test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// withModules adds modules to a machine configuration: one with a parameter, one that
// the image does not have.
func withModules(t *testing.T, machine, parameters string) string {
	t.Helper()
	data, err := os.ReadFile(machine)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimSuffix(machine, ".yaml") + "-modules.yaml"
	kernel := "---\napiVersion: v1alpha1\nkind: Kernel\nmodules:\n  - name: dummy\n    parameters: " + parameters + "\n  - name: kiln-absent\n"
	if err := os.WriteFile(name, append(data, kernel...), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// A nodeModule is one of 'kiln node modules'.
type nodeModule struct{ Name, State, Parameters, Reason string }

// hasModule wants a module of the node's to be as described; a reason has all that
// follows.
func (r remote) hasModule(t *testing.T, want nodeModule) {
	t.Helper()
	var list []struct{ Modules []nodeModule }
	r.json(t, &list, "modules")
	for _, m := range list[0].Modules {
		if m.Name == want.Name {
			if !strings.Contains(m.Reason, want.Reason) || want.Reason == "" && m.Reason != "" {
				t.Errorf("module %s: reason %q, want %q", m.Name, m.Reason, want.Reason)
			}
			if m.Reason = want.Reason; m != want {
				t.Errorf("module is %+v, want %+v", m, want)
			}
			return
		}
	}
	t.Errorf("no module %s among %+v", want.Name, list)
}

// hasDevices wants what udev makes elsewhere: links, groups, modes.
func hasDevices(t *testing.T, admin remote) {
	t.Helper()
	for dir, links := range map[string][]string{
		"by-partlabel": {"BIOS", "BOOT", "EFI", "EPHEMERAL", "META", "STATE"},
		"by-label":     {"BOOT", "EFI", "EPHEMERAL", "STATE"},
		"by-path":      {`(virtio-)?pci-0000:00:[0-9a-f]{2}\.[0-7](-part5)?`},
		"by-diskseq":   {"[1-9][0-9]*"},
		"by-uuid":      {"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "[0-9A-F]{4}-[0-9A-F]{4}"},
		"by-partuuid":  {"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"},
	} {
		out := admin.run(t, "ls", "/dev/disk/"+dir)
		for _, l := range links {
			if !regexp.MustCompile(`(?m)[ /]` + l + ` -> \.\./\.\./vda\d?$`).MatchString(out) {
				t.Errorf("/dev/disk/%s has no %s:\n%s", dir, l, out)
			}
		}
	}
	out := admin.run(t, "ls", "/dev") // owner and group are the second and third column
	for name, want := range map[string][3]string{
		"vda": {"brw-rw----", "0", "6"}, "tty1": {"crw--w----", "0", "5"}, "null": {"crw-rw-rw-", "0", "0"}, "fd": {"lrwxrwxrwx", "0", "0"},
		"fuse": {"crw-rw-rw-", "0", "0"}, // without its driver
	} {
		found := false
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			if len(f) > 3 && regexp.MustCompile(`[ /]`+name+`( ->|$)`).MatchString(strings.TrimSpace(line)) {
				found = true
				if [3]string(f[:3]) != want {
					t.Errorf("/dev/%s: %s, want %v", name, line, want)
				}
			}
		}
		if !found {
			t.Errorf("/dev has no %s:\n%s", name, out)
		}
	}
}
