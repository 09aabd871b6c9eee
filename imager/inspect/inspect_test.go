package inspect

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/imager/cpio"
	"github.com/kilnhq/kiln/imager/ext4"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/imager/grub"
	"github.com/kilnhq/kiln/internal/imagename"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// disk is an image with only BOOT and META on it.
func disk(t testing.TB, list string) *extent.Map {
	t.Helper()
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	initrd := tree.New()
	fail(initrd.Add(layers.Name, &tree.Inode{Mode: 0o444, Content: strings.NewReader(list)}))
	archive, err := cpio.Build(initrd)
	fail(err)
	text, err := grub.EncodeSlot(grub.Entry{Title: "kiln", Linux: "/A/vmlinuz", Initrd: "/A/initramfs", Args: "quiet"})
	fail(err)
	boot := tree.New()
	fail(boot.MkdirAll("A", 0o755))
	fail(boot.Add("A/slot.cfg", &tree.Inode{Mode: 0o644, Content: bytes.NewReader(text)}))
	fail(boot.Add("A/initramfs", &tree.Inode{Mode: 0o644, Content: archive}))
	fsys, err := ext4.Build(boot, ext4.Options{Size: 4 << 20, Label: "BOOT", UUID: uuid.UUID{1}})
	fail(err)
	table := gpt.Table{DiskID: uuid.UUID{9}, SectorSize: 512, Size: 8 << 20, Partitions: []gpt.Partition{
		{Type: gpt.LinuxFilesystem, ID: uuid.UUID{1}, Name: "BOOT", Start: 1 << 20, Size: 4 << 20},
		{},
		{Type: gpt.LinuxFilesystem, ID: uuid.UUID{2}, Name: "META", Start: 5 << 20, Size: 1 << 20},
	}}
	m, err := table.Map()
	fail(err)
	fail(m.Put(1<<20, fsys))
	return m
}

const layerList = `{"version":1,"release":"6.12.0","kiln":"devel","layers":[{"kind":"rootfs","name":"rootfs","path":"layers/00-rootfs.sqsh","size":7,"sha256":"` +
	`ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"}]}`

func TestRead(t *testing.T) {
	d := disk(t, layerList)
	img, err := Read(d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	if len(img.Partitions) != 2 || img.Partitions[1].Number != 3 || img.Partitions[0].FileSystem != "ext4" {
		t.Errorf("partitions %+v", img.Partitions)
	}
	if len(img.Entries) != 1 {
		t.Fatalf("entries %+v", img.Entries)
	}
	e := img.Entries[0]
	if e.Slot != "A" || e.State != "boots" || e.Loader != "grub" || e.Cmdline != "quiet" || e.Release != "6.12.0" || len(e.Initrd.Layers) != 1 {
		t.Errorf("entry %+v", e)
	}
	var text strings.Builder
	if err := img.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"8.00 MiB, 512-byte sectors", "BOOT", "boot entry    kiln", "command line  quiet", "layer         rootfs"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("text without %q:\n%s", want, text.String())
		}
	}
}

func TestReadErrors(t *testing.T) {
	if _, err := Read(bytes.NewReader(make([]byte, 1<<20)), 1<<20); !errors.Is(err, gpt.ErrNone) {
		t.Errorf("zeros: %v", err)
	}
	d := disk(t, `{"version":2}`)
	if _, err := Read(d, d.Size()); !errors.Is(err, layers.ErrInvalid) || !strings.Contains(err.Error(), "partition 1 (BOOT): /A/initramfs: layers.json") {
		t.Errorf("layer list: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	d := disk(f, layerList)
	var buf bytes.Buffer
	if _, err := d.WriteTo(&buf); err != nil {
		f.Fatal(err)
	}
	f.Add(int64(1<<20+4096), []byte{1, 2, 3})
	f.Add(int64(600), []byte{0xff})
	f.Fuzz(func(t *testing.T, off int64, patch []byte) {
		img := bytes.Clone(buf.Bytes())
		if off < 0 || off >= int64(len(img)) {
			return
		}
		copy(img[off:], patch)
		if got, err := Read(bytes.NewReader(img), int64(len(img))); err == nil {
			var text strings.Builder
			got.WriteText(&text)
		}
	})
}

// The images of a cache are listed; an index that is none is an error that says
// where it is.
func TestContainerImages(t *testing.T) {
	const digest = "sha256:ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
	for _, c := range []struct{ index, want, err string }{
		{`{"schemaVersion":2,"manifests":[{"digest":"` + digest + `","annotations":{"io.containerd.image.name":"` + hub() + `/library/x:1"}}]}`, hub() + "/library/x:1", ""},
		{"{", "", "partition 1 (IMAGECACHE): index.json: "},
		{"", "", "partition 1 (IMAGECACHE): index.json: "},
	} {
		cache := tree.New()
		if err := cache.Add("index.json", &tree.Inode{Mode: 0o644, Content: strings.NewReader(c.index)}); err != nil {
			t.Fatal(err)
		}
		fsys, err := ext4.Build(cache, ext4.Options{Size: 4 << 20, Journal: ext4.NoJournal, UUID: uuid.UUID{1}})
		if err != nil {
			t.Fatal(err)
		}
		table := gpt.Table{DiskID: uuid.UUID{9}, SectorSize: 512, Size: 8 << 20, Partitions: []gpt.Partition{
			{Type: gpt.LinuxFilesystem, ID: uuid.UUID{1}, Name: "IMAGECACHE", Start: 1 << 20, Size: 4 << 20},
		}}
		d, err := table.Map()
		if err == nil {
			err = d.Put(1<<20, fsys)
		}
		if err != nil {
			t.Fatal(err)
		}
		img, err := Read(d, d.Size())
		if c.err != "" {
			if err == nil || !strings.HasPrefix(err.Error(), c.err) {
				t.Errorf("%q: %v, want %s…", c.index, err, c.err)
			}
			continue
		}
		if err != nil || len(img.ContainerImages) != 1 || img.ContainerImages[0] != (ContainerImage{c.want, digest}) {
			t.Fatalf("%q: %+v, %v", c.index, img, err)
		}
		var text strings.Builder
		if err := img.WriteText(&text); err != nil || !strings.Contains(text.String(), "container image  "+hub()+"/library/x:1  sha256:ed7002b439e9\n") {
			t.Errorf("%v:\n%s", err, text.String())
		}
	}
}

// hub is the registry of names that name none.
func hub() string {
	registry, _ := imagename.Default()
	return registry
}
