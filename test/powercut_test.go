//go:build linux

package test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnhq/kiln/imager"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/cache"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/internal/powercut"
	"github.com/kilnhq/kiln/machine/slots"
	"github.com/kilnhq/kiln/profiles"
)

// What a power failure leaves of an upgrade boots, from both firmwares. Package
// slots looks at all the states there may be; these are started.
func TestPowerCut(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: boots machines")
	}
	p, err := profiles.Load("metal")
	if err != nil {
		t.Fatal(err)
	}
	b, err := base.Open(oracle.Artifact(t, "KILN_BASE"), p.Arch)
	if err != nil {
		t.Fatal(err)
	}
	img, err := imager.Compose(t.Context(), imager.Request{
		Profile: p, Base: b, KernelArgs: []string{"upgraded=yes"}, Cache: cache.Dir(t.TempDir()), Version: "test", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	disk := powercut.New(read(t, oracle.Artifact(t, "KILN_IMAGE")))
	d, err := slots.Open(disk, disk.Size())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Upgrade(t.Context(), func(slot string) (*slots.System, error) { return img.System(slot, d.ID.String()) }, nil); err != nil {
		t.Fatal(err)
	}
	n := disk.Operations()
	t.Logf("an upgrade is %d writes and flushes", n)
	// While data is written, and around the switches at the end.
	for i, after := range []int{n / 2, n - 3, n - 1} {
		for j, f := range firmwares {
			t.Run(fmt.Sprintf("after %d/%s", after, f), func(t *testing.T) {
				if i%2 != j { // each point of time has one firmware
					full(t)
				}
				t.Parallel()
				file := filepath.Join(t.TempDir(), "disk.raw")
				writeSparse(t, file, disk.At(after, uint64(after)))
				ctx, m := start(t, vm.Config{Image: file, Firmware: f, Bus: vm.AHCI})
				up := ready(t, ctx, m)
				if slot := up.fields["slot"]; slot != "A" && slot != "B" {
					t.Errorf("ready with slot=%s", slot)
				}
				t.Logf("slot %s", up.fields["slot"])
			})
		}
	}
}

// writeSparse writes a file with its zeros as holes.
func writeSparse(t *testing.T, file string, content []byte) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := extent.New(int64(len(content)))
	const piece = 1 << 20
	zero := make([]byte, piece)
	for at := 0; at < len(content); at += piece {
		p := content[at:min(at+piece, len(content))]
		if string(p) == string(zero[:len(p)]) {
			continue
		}
		if err := m.PutBytes(int64(at), p); err != nil {
			t.Fatal(err)
		}
	}
	if err := extent.WriteSparse(t.Context(), f, m, nil); err != nil {
		t.Fatal(err)
	}
}
