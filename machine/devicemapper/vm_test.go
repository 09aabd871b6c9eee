//go:build linux

package devicemapper

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/verity"
	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/guest"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/machine/modules"
	"github.com/kilnhq/kiln/rootfs/squashfs"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// TestKernel starts a kernel with this program as its init; see asInit.
func TestKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: boots a machine")
	}
	oracle.Tool(t, "qemu-system-x86_64")
	b, err := base.Open(oracle.Artifact(t, "KILN_BASE"), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	g := given{Release: b.Config.Release}
	layer := makeLayer(t, &g)

	// The disk has the second half of the layer before the first.
	half := g.Size / 2 / verityBlock * verityBlock
	first, err := extent.Section(layer, 0, half)
	if err != nil {
		t.Fatal(err)
	}
	second, err := extent.Section(layer, half, g.Size-half)
	if err != nil {
		t.Fatal(err)
	}
	disk := extent.New(1<<20 + g.Size)
	for off, src := range map[int64]extent.Source{sector: second, 1<<20 + g.Size - half: first} {
		if err := disk.Put(off, src); err != nil {
			t.Fatal(err)
		}
	}
	g.Segments = []Segment{{"/dev/vda", 1<<20 + g.Size - half, half}, {"/dev/vda", sector, g.Size - half}}

	vmlinuz, err := b.Part(base.Vmlinuz)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m, err := vm.Start(ctx, vm.Config{
		Firmware: vm.BIOS, Memory: 256,
		Kernel:  store(t, "vmlinuz", vmlinuz.Content),
		Initrd:  store(t, "init.cpio", initramfs(t, b, g, layer)),
		Cmdline: "console=ttyS0 panic=-1",
		Disks:   []string{store(t, "disk", disk)},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Stop()
	for _, want := range []string{
		"no mapper: device mapper: the kernel does not have it: open /dev/mapper/control: no such file or directory; load the module dm_mod, and mount devtmpfs on /dev",
		`no target: verity device "layer": load the table: target verity: the kernel does not have it: invalid argument; load the module dm_verity`,
		"sound: ok",
		"check: ok",
		"superblock: mount /dev/dm-0 (squashfs) on /mnt: input/output error",
		"data: read /mnt/a: input/output error, status C",
		"top of the tree: mount /dev/dm-0 (squashfs) on /mnt: input/output error",
		"leaf of the tree: read /mnt/a: input/output error, status C",
		"root hash: mount /dev/dm-0 (squashfs) on /mnt: input/output error",
		"salt: mount /dev/dm-0 (squashfs) on /mnt: input/output error",
		"linear: ok",
	} {
		name, _, _ := strings.Cut(want, ":")
		line, err := m.Wait(ctx, regexp.MustCompile("guest: ("+name+"|failed):"))
		if err != nil {
			t.Fatalf("%v\n%s", err, m.Console())
		}
		if got := strings.TrimSpace(line[strings.Index(line, "guest: ")+len("guest: "):]); got != want {
			t.Errorf("the guest says %q\n                want %q", got, want)
		}
	}
	if _, err := m.Wait(ctx, regexp.MustCompile("Restarting system with command 'dm-verity device corrupted'")); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		t.Log(m.Console())
	}
}

// makeLayer returns a squashfs with its hash tree, and tells the guest about it.
func makeLayer(t *testing.T, g *given) *extent.Map {
	t.Helper()
	content := disktest.Noise(3<<20, 1)
	sum := sha256.Sum256(content)
	g.Files = map[string][]byte{"a": sum[:]}
	root := tree.New()
	a := guest.File(content)
	if err := root.Add("a", &a); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "layer"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := squashfs.Write(t.Context(), f, root, squashfs.Options{Workers: 1}); err != nil {
		t.Fatal(err)
	}
	data, err := extent.File(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	hashes, err := verity.New(t.Context(), data, []byte("salt"))
	if err != nil {
		t.Fatal(err)
	}
	layer, err := extent.Concat(verity.BlockSize, data, hashes)
	if err != nil {
		t.Fatal(err)
	}
	g.Verity = Verity{Blocks: hashes.Blocks, Start: hashes.Blocks, Root: hashes.Root, Salt: hashes.Salt}
	g.Size = layer.Size()
	return layer
}

// initramfs returns one with this program, the layer, and the modules that the
// guest loads, out of the base.
func initramfs(t *testing.T, b *base.Base, g given, layer extent.Source) extent.Source {
	t.Helper()
	facts, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]tree.Inode{
		"given.json":   guest.File(facts),
		layerFile[1:]:  {Mode: 0o644, Content: layer},
		mountPoint[1:]: {Mode: fs.ModeDir | 0o755},
	}
	addModules(t, files, b, "dm_verity", "loop", "squashfs", "virtio_blk")
	return guest.Initramfs(t, files)
}

// addModules adds the named modules and their index to files.
func addModules(t *testing.T, files map[string]tree.Inode, b *base.Base, names ...string) {
	t.Helper()
	part, err := b.Part(base.RootFS)
	if err != nil {
		t.Fatal(err)
	}
	from, err := squashfs.Open(part.Content, part.Content.Size())
	if err != nil {
		t.Fatal(err)
	}
	dir := "usr/lib/modules/" + b.Config.Release
	index := t.TempDir()
	take := func(name string) *tree.Inode {
		ino := from.Lookup(dir + "/" + name)
		if ino == nil {
			t.Fatalf("the base has no %s/%s", dir, name)
		}
		files[dir+"/"+name] = *ino
		return ino
	}
	for _, name := range []string{"modules.dep", "modules.alias", "modules.softdep", "modules.builtin"} {
		data, err := io.ReadAll(io.NewSectionReader(take(name).Content, 0, 1<<30))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(index, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	x, err := modules.ReadIndex(os.DirFS(index))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		closure, err := x.Closure(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range closure {
			if m, ok := x.Lookup(n); ok {
				take(m.File)
			}
		}
	}
}

// store writes src to a file.
func store(t *testing.T, name string, src extent.Source) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, extent.Reader(src)); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}
