package devlinks

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A tree is a sysfs and a directory of device nodes, which are files.
type tree struct {
	t        *testing.T
	sys, dev string
}

func newTree(t *testing.T) tree {
	dir := t.TempDir()
	sys, dev := filepath.Join(dir, "sys"), filepath.Join(dir, "dev")
	for _, d := range []string{sys, dev} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return tree{t, sys, dev}
}

func (tr tree) write(name, text string) {
	tr.t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		tr.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		tr.t.Fatal(err)
	}
}

func (tr tree) link(target, name string) {
	tr.t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		tr.t.Fatal(err)
	}
	if err := os.Symlink(target, name); err != nil {
		tr.t.Fatal(err)
	}
}

// device makes a device below devices. Its attributes are NAME=VALUE; DEVTYPE, MAJOR
// and the like are in its uevent.
func (tr tree) device(dir, subsystem string, attributes ...string) device {
	tr.t.Helper()
	d := device{tr.sys, filepath.Join(tr.sys, "devices", dir)}
	var uevent strings.Builder
	for _, a := range attributes {
		name, value, _ := strings.Cut(a, "=")
		if name == strings.ToUpper(name) {
			uevent.WriteString(a + "\n")
			continue
		}
		if data, ok := strings.CutPrefix(value, "hex:"); ok {
			b, err := hex.DecodeString(data)
			if err != nil {
				tr.t.Fatal(err)
			}
			value = string(b)
		} else {
			value += "\n"
		}
		tr.write(filepath.Join(d.dir, name), value)
	}
	tr.write(filepath.Join(d.dir, "uevent"), uevent.String())
	if subsystem != "" {
		tr.link(strings.Repeat("../", strings.Count(dir, "/")+2)+"class/"+subsystem, filepath.Join(d.dir, "subsystem"))
		if subsystem != "scsi" && subsystem != "usb" && subsystem != "pci" {
			tr.link("../../devices/"+dir, filepath.Join(tr.sys, "class", subsystem, filepath.Base(dir)))
		}
	}
	return d
}

func (tr tree) open(name string) (*medium, func(), error) {
	m, done, err := New(tr.sys, tr.dev).open(name)
	if m != nil {
		m.identify = nil
	}
	return m, done, err
}

// has wants a device to have just these links.
func (tr tree) has(d device, want ...string) {
	tr.t.Helper()
	got := links(d, tr.open)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		tr.t.Errorf("%s: links are\n  %s\nwant\n  %s", d.name(), strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}
