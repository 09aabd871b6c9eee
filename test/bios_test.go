//go:build linux

package test

import (
	"path/filepath"
	"testing"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
)

// A disk for BIOS only has no EFI partition, and the others where they always are.
func TestBIOSOnly(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: boots machines")
	}
	t.Parallel()
	image := filepath.Join(t.TempDir(), "bios.raw")
	run(t, oracle.Artifact(t, "KILN_BIN"), "build", "metal", "--base", oracle.Artifact(t, "KILN_BASE"), "--cache", t.TempDir(),
		"--set", "disk.bootLoader=bios", "--output", image)
	parts := readTable(t, image, 512)
	if len(parts) != 5 {
		t.Errorf("partitions %+v, want five", parts)
	}
	ctx, m := start(t, vm.Config{Image: image, Firmware: vm.BIOS, Snapshot: true})
	up := ready(t, ctx, m)
	for key, want := range map[string]string{"slot": "A", "firmware": "bios", "state": "vda5", "ephemeral": "vda6"} {
		if got := up.fields[key]; got != want {
			t.Errorf("ready with %s=%s, want %s", key, got, want)
		}
	}
}
