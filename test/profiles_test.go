//go:build linux

package test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/profiles"
)

// Every built-in profile's disk can be composed from the base: its platform's
// drivers are there, and its size is what the platform takes.
func TestProfiles(t *testing.T) {
	kiln, base, dir := oracle.Artifact(t, "KILN_BIN"), oracle.Artifact(t, "KILN_BASE"), t.TempDir()
	for _, name := range profiles.Names() {
		p, err := profiles.Load(name)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name+".raw")
		run(t, kiln, "build", name, "--base", base, "--format", "raw", "--no-sidecars", "--output", file, "--cache", filepath.Join(dir, "cache"))
		fi, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		size := profiles.Size(fi.Size())
		if size%p.Disk.Multiple != 0 || size < p.Disk.Minimum || p.Disk.Maximum > 0 && size > p.Disk.Maximum {
			t.Errorf("%s: a disk of %d bytes, want a multiple of %s, at least %s and at most %s", name, fi.Size(), p.Disk.Multiple, p.Disk.Minimum, p.Disk.Maximum)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}
