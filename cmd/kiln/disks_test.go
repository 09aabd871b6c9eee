package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/machine/blockdev"
)

// fakeDisks is a machine with two disks, of which one is mounted and has a file
// system, and nothing else.
func fakeDisks(t *testing.T) blockdev.Host {
	root := t.TempDir()
	h := blockdev.Host{Sys: filepath.Join(root, "sys"), Dev: filepath.Join(root, "dev"), Proc: filepath.Join(root, "proc")}
	write := func(path, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, number := range map[string]string{"vda": "254:0", "vdb": "254:16"} {
		dir := filepath.Join(h.Sys, "class/block", name)
		write(dir+"/dev", number+"\n")
		write(dir+"/uevent", "DEVNAME="+name+"\n")
		write(dir+"/size", "2048\n")
		write(dir+"/serial", "serial-"+name+"\n")
		write(filepath.Join(h.Dev, name), strings.Repeat("\x00", 1<<20))
	}
	write(filepath.Join(h.Dev, "vda"), "XFSB"+strings.Repeat("\x00", 1<<20-4))
	write(filepath.Join(h.Proc, "self/mountinfo"), "27 1 254:0 / /srv rw - xfs /dev/vda rw\n")
	return h
}

func runDisks(t *testing.T, h blockdev.Host, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	c := disksOf(h)
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&errOut)
	c.SilenceErrors, c.SilenceUsage = true, true
	err = c.Execute()
	return strings.ReplaceAll(out.String(), h.Dev, "DEV"), strings.ReplaceAll(errOut.String(), h.Dev, "DEV"), err
}

func TestDisks(t *testing.T) {
	h := fakeDisks(t)
	table := `PATH     SIZE      TRANSPORT  MODEL  SERIAL      USE      HOLDS
DEV/vda  1.00 MiB  virtio     -      serial-vda  mounted  xfs
DEV/vdb  1.00 MiB  virtio     -      serial-vdb  free     nothing
`
	// The width of the first column follows the real path.
	squeeze := func(s string) string {
		var lines []string
		for line := range strings.Lines(s) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		return strings.Join(lines, "\n")
	}
	out, stderr, err := runDisks(t, h)
	if err != nil || stderr != "" || squeeze(out) != squeeze(table) {
		t.Errorf("got %v %s\n%s", err, stderr, out)
	}
	if out, _, err := runDisks(t, h, "-q"); err != nil || out != "DEV/vda\nDEV/vdb\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if out, _, err := runDisks(t, h, "-q", "--selector", `serial == "serial-vdb"`); err != nil || out != "DEV/vdb\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if out, _, err := runDisks(t, h, "-q", "--selector", `size < 2MiB`); !errors.Is(err, blockdev.ErrAmbiguous) || out != "DEV/vda\nDEV/vdb\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if out, _, err := runDisks(t, h, "--selector", `size > 2MiB`); !errors.Is(err, blockdev.ErrNoMatch) || out != "" {
		t.Errorf("got %q, %v", out, err)
	}
	if _, _, err := runDisks(t, h, "--selector", ``); err == nil || !strings.Contains(err.Error(), "column 1: it ends here, want a field") {
		t.Errorf("got %v", err)
	}
	var usage usageError
	if _, _, err := runDisks(t, h, "--selector", `size > x`); !errors.As(err, &usage) {
		t.Errorf("got %v", err)
	}
}

func TestDisksJSON(t *testing.T) {
	h := fakeDisks(t)
	if err := os.Remove(filepath.Join(h.Dev, "vdb")); err != nil {
		t.Fatal(err)
	}
	out, stderr, err := runDisks(t, h, "--json")
	var got []disk
	if err != nil || json.Unmarshal([]byte(out), &got) != nil || len(got) != 2 {
		t.Fatalf("got %v\n%s", err, out)
	}
	if d := got[0]; d.Name != "vda" || len(d.Refused) != 1 || d.Refused[0] != "DEV/vda: mounted: vda is mounted on /srv; unmount it" ||
		d.Contents.Signatures[0].Type != "xfs" || d.Fingerprint.Size != 1<<20 {
		t.Errorf("got %+v", d)
	}
	if d := got[1]; d.Refused != nil || d.Contents != nil || !strings.Contains(d.Unread, "no such file") {
		t.Errorf("got %+v", d)
	}
	if !strings.HasPrefix(stderr, "warning: what is on DEV/vdb is not known: open DEV/vdb: no such file") {
		t.Errorf("got %s", stderr)
	}
	empty := fakeDisks(t)
	if err := os.RemoveAll(filepath.Join(empty.Sys, "class/block/vda")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(empty.Sys, "class/block/vdb")); err != nil {
		t.Fatal(err)
	}
	if out, _, err := runDisks(t, empty, "--json"); err != nil || out != "[]\n" {
		t.Errorf("got %q, %v", out, err)
	}
}
