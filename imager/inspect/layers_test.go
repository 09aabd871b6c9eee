package inspect

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/imager/cpio"
	"github.com/kilnhq/kiln/imager/ext4"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/imager/grub"
	"github.com/kilnhq/kiln/imager/verity"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/rootfs/squashfs"
	"github.com/kilnhq/kiln/rootfs/tree"
)

type buffer []byte

func (b *buffer) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(*b) {
		*b = append(*b, make([]byte, end-len(*b))...)
	}
	return copy((*b)[off:], p), nil
}

// diskWithLayers has a layer with the file /hello on BOOT, and returns where.
func diskWithLayers(t *testing.T) (disk []byte, at int) {
	t.Helper()
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	add := func(tr *tree.Tree, name string, content []byte) {
		t.Helper()
		fail(tr.MkdirAll("A", 0o755))
		fail(tr.Add(name, &tree.Inode{Mode: 0o644, Content: bytes.NewReader(content)}))
	}
	root := tree.New()
	add(root, "hello", []byte("world"))
	var image buffer
	_, err := squashfs.Write(t.Context(), &image, root, squashfs.Options{})
	fail(err)
	sum := sha256.Sum256(image)
	hashes, err := verity.New(t.Context(), extent.Bytes(image), sum[:])
	fail(err)
	list := layers.List{Version: 1, Release: "6.12.0", Kiln: "devel", Layers: []layers.Layer{{Kind: layers.RootFS, Name: "rootfs", Path: "layers/00-rootfs.sqsh",
		Size: int64(len(image)), SHA256: hex.EncodeToString(sum[:]), Verity: &layers.Verity{Salt: hex.EncodeToString(sum[:]), Root: hex.EncodeToString(hashes.Root[:])}}}}
	text, err := list.Encode()
	fail(err)
	initrd := tree.New()
	add(initrd, layers.Name, text)
	archive, err := cpio.Build(initrd)
	fail(err)
	slot, err := grub.EncodeSlot(grub.Entry{Title: "kiln", Linux: "/A/vmlinuz", Initrd: "/A/initramfs", Args: "quiet"})
	fail(err)
	file, err := extent.Concat(verity.BlockSize, extent.Bytes(image), hashes)
	fail(err)
	boot := tree.New()
	add(boot, "A/slot.cfg", slot)
	add(boot, "A/vmlinuz", []byte("kernel"))
	fail(boot.Add("A/initramfs", &tree.Inode{Mode: 0o644, Content: archive}))
	fail(boot.Add("A/layers", &tree.Inode{Mode: 0o644, Content: file}))
	fsys, err := ext4.Build(boot, ext4.Options{Size: 4 << 20, Label: "BOOT", UUID: uuid.UUID{1}})
	fail(err)
	table := gpt.Table{DiskID: uuid.UUID{9}, SectorSize: 512, Size: 8 << 20, Partitions: []gpt.Partition{
		{Type: gpt.LinuxFilesystem, ID: uuid.UUID{1}, Name: "BOOT", Start: 1 << 20, Size: 4 << 20}}}
	m, err := table.Map()
	fail(err)
	fail(m.Put(1<<20, fsys))
	disk = make([]byte, m.Size())
	_, err = m.ReadAt(disk, 0)
	fail(err)
	return disk, bytes.Index(disk, image)
}

func TestLayersOnBoot(t *testing.T) {
	disk, at := diskWithLayers(t)
	check := func(problems ...string) []File {
		t.Helper()
		img, err := Read(bytes.NewReader(disk), int64(len(disk)))
		if err != nil {
			t.Fatal(err)
		}
		files, err := Contents(t.Context(), bytes.NewReader(disk), int64(len(disk)))
		if err != nil {
			t.Fatal(err)
		}
		got := Verify(img, files)
		if len(got) != len(problems) || len(got) > 0 && !strings.HasPrefix(got[0], problems[0]) {
			t.Errorf("problems %q, want %q", got, problems)
		}
		var text strings.Builder
		if err := img.WriteText(&text); err != nil || !strings.Contains(text.String(), "BOOT:/A/layers, root hash ") {
			t.Errorf("%v\n%s", err, text.String())
		}
		return files
	}
	has := func(files []File, where, path string) bool {
		return slices.ContainsFunc(files, func(f File) bool { return f.Where == where && f.Path == path })
	}
	files := check()
	if !has(files, "rootfs", "/hello") || !has(files, "BOOT", "/A/layers/00-rootfs.sqsh") {
		t.Errorf("files %+v", files)
	}
	disk[at+50] ^= 1
	files = check("BOOT:/A/layers: layers/00-rootfs.sqsh (rootfs rootfs) at 0: layer is damaged: data block 0 (bytes 0 to 4095) is damaged")
	if has(files, "rootfs", "/hello") {
		t.Error("a damaged layer was opened")
	}
}
