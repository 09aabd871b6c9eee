//go:build linux

package test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
)

// A machine without a disk boots from the network: iPXE loads the script by
// TFTP, and what it names.
func TestNetboot(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: boots machines")
	}
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "pxe")
	run(t, oracle.Artifact(t, "KILN_BIN"), "build", "metal", "--base", oracle.Artifact(t, "KILN_BASE"), "--extension", oracle.Artifact(t, "KILN_EXTENSION"),
		"--cache", t.TempDir(), "--format", "pxe", "--output", dir)
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 4 {
		t.Fatalf("%v, %v, want boot.ipxe, cmdline, initramfs and vmlinuz", list, err)
	}
	ctx, m := start(t, vm.Config{Netboot: dir, Firmware: vm.BIOS})
	up := ready(t, ctx, m)
	for key, want := range map[string]string{"disk": "none", "slot": "-", "state": "tmpfs"} {
		if got := up.fields[key]; got != want {
			t.Errorf("ready with %s=%s, want %s", key, got, want)
		}
	}
	loaded(t, up, "wireguard")
}
