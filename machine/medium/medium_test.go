package medium

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/imager/iso"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// image is an ISO image with that GUID.
func image(t *testing.T, id string) extent.Source {
	t.Helper()
	m, err := iso.Build(tree.New(), iso.Options{
		VolumeID: "KILN", DiskID: guid(id), FilesID: guid("33333333-0000-4000-8000-000000000000"),
		BIOS: &iso.BIOS{BootCode: []byte{1}, Image: make([]byte, iso.SectorSize)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func guid(id string) (g gpt.GUID) {
	if err := g.UnmarshalText([]byte(id)); err != nil {
		panic(err)
	}
	return g
}

// machine is a sysfs and a /dev.
type machine struct{ sys, dev string }

func newMachine(t *testing.T) machine {
	m := machine{filepath.Join(t.TempDir(), "sys"), filepath.Join(t.TempDir(), "dev")}
	for _, dir := range []string{m.sys + "/class/block", m.dev} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// add adds a device with files in sysfs, name and content in turn. Without content
// it is a drive without a disc.
func (m machine) add(t *testing.T, name string, size int64, content extent.Source, files ...string) {
	t.Helper()
	dir := filepath.Join(m.sys, "class/block", name)
	files = append(files, "size", fmt.Sprintln(size/512))
	for i := 0; i < len(files); i += 2 {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, files[i]), []byte(files[i+1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if content == nil {
		return
	}
	f, err := os.Create(filepath.Join(m.dev, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	whole := extent.New(max(size, content.Size()))
	if err := whole.Put(0, content); err != nil {
		t.Fatal(err)
	}
	if err := extent.WriteSparse(context.Background(), f, whole, nil); err != nil {
		t.Fatal(err)
	}
}

const (
	mine  = "11111111-0000-4000-8000-000000000000"
	other = "22222222-0000-4000-8000-000000000000"
)

func TestFind(t *testing.T) {
	m := newMachine(t)
	m.add(t, "fd0", 0, nil)
	m.add(t, "sda", 1<<20, extent.New(1<<20))
	m.add(t, "sdb", image(t, other).Size(), image(t, other))
	// A stick is larger than the image on it; a disc may be as well.
	m.add(t, "sdc", 64<<20, image(t, mine))
	m.add(t, "sdc1", 1<<20, image(t, mine), "partition", "1\n")
	m.add(t, "sr0", 0, nil)
	for id, want := range map[string]string{mine: "sdc", strings.ToUpper(other): "sdb"} {
		if got, err := Find(m.sys, m.dev, id); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %s", id, got, err, want)
		}
	}
	missing := "44444444-0000-4000-8000-000000000000"
	_, err := Find(m.sys, m.dev, missing)
	want := "installation medium not found: " + missing + "; there are others: sdb (" + other + "), sdc (" + mine + ")"
	if !errors.Is(err, ErrNotFound) || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestFindNothing(t *testing.T) {
	m := newMachine(t)
	m.add(t, "sda", 1<<20, extent.New(1<<20))
	_, err := Find(m.sys, m.dev, mine)
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "is the driver of the drive in the image?") {
		t.Errorf("%v", err)
	}
}
