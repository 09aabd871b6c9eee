//go:build linux

package efi

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/ulikunitz/xz"

	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/fat"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/imager/uki"
	"github.com/kilnhq/kiln/imager/vm"
	"github.com/kilnhq/kiln/internal/guest"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/squashfs"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// TestFirmware starts a machine whose firmware finds the removable path on two
// partitions of its disk. Started from the first, it registers the second, and
// starts again: from the second.
func TestFirmware(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: boots a machine")
	}
	oracle.Tool(t, "qemu-system-x86_64")
	b, err := base.Open(oracle.Artifact(t, "KILN_BASE"), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	table := &gpt.Table{DiskID: uuid.MustParse(idC), SectorSize: 512, Size: 2*size + 2<<20, Partitions: []gpt.Partition{
		{Type: gpt.EFISystem, ID: uuid.MustParse(idA), Name: "one", Start: 1 << 20, Size: size},
		{Type: gpt.EFISystem, ID: uuid.MustParse(idB), Name: "two", Start: 1<<20 + size, Size: size},
	}}
	second := HardDrive{2, (1<<20 + size) / 512, size / 512, uuid.MustParse(idB)}
	initrd := initramfs(t, b, Entry{Description: "kiln", Partition: second, Path: loader})
	disk, err := table.Map()
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range table.Partitions {
		files := tree.New()
		if err := files.MkdirAll("EFI/BOOT", 0o755); err != nil {
			t.Fatal(err)
		}
		ino := tree.Inode{Mode: 0o644, Content: image(t, b, initrd, "console=ttyS0 quiet mitigations=off panic=-1 esp="+string(rune('1'+i)))}
		if err := files.Add(loader, &ino); err != nil {
			t.Fatal(err)
		}
		volume, err := fat.Build(files, fat.Options{Size: p.Size, SectorSize: 512, HiddenSectors: uint32(p.Start / 512)})
		if err != nil {
			t.Fatal(err)
		}
		if err := disk.Put(p.Start, volume); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := extent.WriteSparse(t.Context(), f, disk, nil); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	m, err := vm.Start(ctx, vm.Config{Image: f.Name(), Restart: true, Memory: 256}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Stop()
	const noModule = "no EFI variables: efivarfs is not mounted on /sys/firmware/efi/efivars, and mounting it fails: fsopen: no such device"
	for _, want := range []string{
		"started: console=ttyS0 quiet mitigations=off panic=-1 esp=1",
		"no efivarfs: " + noModule,
		"stale number used again: true",
		"first: true",
		"idempotent: true",
		"written twice: another <nil>",
		"protected: true",
		`deleted: "" <nil>`,
		"malformed: write EFI variable BootFFF0-8be4df61-93ca-11d2-aa0d-00e098032b8c: invalid argument; the kernel or the firmware does not take the value",
		"left: read EFI variable BootFFF0-8be4df61-93ca-11d2-aa0d-00e098032b8c: no such file or directory",
		"mounted: true",
		"read-only: delete EFI variable BootOrder-8be4df61-93ca-11d2-aa0d-00e098032b8c: EFI variables are read-only: read-only file system; mount efivarfs for writing ('mount -o remount,rw /sys/firmware/efi/efivars'), if the kernel lets you",
		"started: console=ttyS0 quiet mitigations=off panic=-1 esp=2",
		"no efivarfs: " + noModule,
		"entry started: true",
		"still first: true",
		"default: kiln-1-a.efi <nil>",
		"unregistered: 0 entries",
	} {
		name, _, _ := strings.Cut(want, ":")
		line, err := m.Wait(ctx, regexp.MustCompile("guest: ("+name+"|failed):"))
		if err != nil || strings.Contains(line, "guest: failed:") {
			t.Fatalf("%v\n%s", err, m.Console())
		}
		if got := strings.TrimSpace(line[strings.Index(line, "guest: ")+len("guest: "):]); got != want {
			t.Errorf("the guest says %q\n                want %q", got, want)
		}
	}
	if err := m.WaitOff(ctx); err != nil || t.Failed() {
		t.Errorf("%v\n%s", err, m.Console())
	}
}

// image returns a unified kernel image.
func image(t *testing.T, b *base.Base, initrd extent.Source, cmdline string) extent.Source {
	t.Helper()
	stub, err := b.Part(base.Stub)
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := b.Part(base.Vmlinuz)
	if err != nil {
		t.Fatal(err)
	}
	code, err := io.ReadAll(extent.Reader(stub.Content))
	if err != nil {
		t.Fatal(err)
	}
	m, err := uki.Build(code, []uki.Section{
		{Name: ".osrel", Content: extent.Bytes([]byte("ID=kiln\n"))},
		{Name: ".cmdline", Content: extent.Bytes([]byte(cmdline))},
		{Name: ".initrd", Content: initrd},
		{Name: ".linux", Content: kernel.Content},
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// initramfs returns one with this program, the entry, and the module efivarfs of
// the base.
func initramfs(t *testing.T, b *base.Base, e Entry) extent.Source {
	t.Helper()
	facts, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return guest.Initramfs(t, map[string]tree.Inode{entryFile[1:]: guest.File(facts), moduleFile[1:]: guest.File(module(t, b))})
}

// module returns the module efivarfs of the base, which needs no other.
func module(t *testing.T, b *base.Base) []byte {
	t.Helper()
	part, err := b.Part(base.RootFS)
	if err != nil {
		t.Fatal(err)
	}
	from, err := squashfs.Open(part.Content, part.Content.Size())
	if err != nil {
		t.Fatal(err)
	}
	name := "usr/lib/modules/" + b.Config.Release + "/kernel/fs/efivarfs/efivarfs.ko"
	for _, suffix := range []string{"", ".xz"} {
		ino := from.Lookup(name + suffix)
		if ino == nil {
			continue
		}
		data, err := io.ReadAll(extent.Reader(ino.Content))
		if err == nil && suffix == ".xz" {
			var r io.Reader
			if r, err = xz.NewReader(bytes.NewReader(data)); err == nil {
				data, err = io.ReadAll(r)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	t.Fatalf("the base has no %s", name)
	return nil
}
