package imager

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"path"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/grub"
	"github.com/kilnhq/kiln/imager/iso"
	"github.com/kilnhq/kiln/machine/medium"
	"github.com/kilnhq/kiln/profiles"
	"github.com/kilnhq/kiln/rootfs/squashfs"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// isoOf returns the ISO image of a request, and the files in it.
func isoOf(t *testing.T, r Request) (*extent.Map, *tree.Tree) {
	t.Helper()
	i, err := Compose(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	m, err := isoMap(t.Context(), i)
	if err != nil {
		t.Fatal(err)
	}
	f, err := iso.Open(m)
	if err != nil {
		t.Fatal(err)
	}
	return m, f.Tree
}

// What is installed from an ISO image is in it once, whatever firmware it boots
// from, and it is all there.
func TestISOSource(t *testing.T) {
	for _, loader := range []string{profiles.Dual, profiles.UEFI, profiles.BIOS} {
		t.Run(loader, func(t *testing.T) {
			r := installerRequest(t)
			p := *r.Profile
			p.Disk.BootLoader = loader
			r.Profile = &p
			with, files := isoOf(t, r)
			r.Tool = program(t, elf.EM_AARCH64, "") // which is left out, with all the rest
			without, none := isoOf(t, r)
			if none.Lookup(medium.Source) != nil {
				t.Error("there is something to install, but nothing to install it with")
			}
			small := int64(64 << 10) // directories, settings
			for _, name := range []string{base.Symvers, base.KernelConfig, base.ModuleFacts, base.BuiltinModinfo, base.ModulesOrder,
				base.GrubBoot, base.GrubCore, base.GrubCD, base.Stub, base.Loader, base.SBOM, base.Files, base.ModulesBuiltin} {
				part, err := r.Base.Part(name)
				if err != nil {
					t.Fatal(err)
				}
				small += extent.Align(part.Content.Size(), iso.SectorSize)
			}
			if n := with.Allocated() - without.Allocated(); n > small {
				t.Errorf("%d bytes more than without what is installed, want at most %d", n, small)
			}
			blobs := 0
			for name, ino := range files.All() {
				if path.Dir(name) != medium.Source+"/base/blobs/sha256" {
					continue
				}
				blobs++
				if sum := sha256.Sum256(bytesOf(t, ino.Content.(extent.Source))); hex.EncodeToString(sum[:]) != path.Base(name) {
					t.Errorf("%s has the digest %x", name, sum)
				}
			}
			if blobs < 10 {
				t.Errorf("%d blobs of the base", blobs)
			}
			same := files.Lookup(medium.Source + "/extensions/00-wireguard/rootfs.sqsh")
			cached, records := 0, 0
			for _, name := range files.Children(medium.Source + "/cache") {
				ino := files.Lookup(medium.Source + "/cache/" + name)
				data := bytesOf(t, ino.Content.(extent.Source))
				if strings.HasSuffix(name, ".bin") {
					cached++
					if !strings.HasPrefix(string(data), "hsqs") {
						t.Errorf("%s is no squashfs image", name)
					}
					continue
				}
				records++
				var record struct{ SHA256 string }
				if err := json.Unmarshal(data, &record); err != nil || len(record.SHA256) != 64 {
					t.Errorf("%s: %s, %v", name, data, err)
				}
			}
			// The extension's, and that of the modules' index.
			if cached != 2 || records != 2 || same == nil {
				t.Errorf("%d layers in the cache, %d records, want 2; the extension is %+v", cached, records, same)
			}
			packed := files.Lookup(medium.Program)
			if packed == nil {
				t.Fatal("no program")
			}
			got, err := squashfs.Open(packed.Content, packed.Size())
			if err != nil {
				t.Fatal(err)
			}
			if ino := got.Lookup(medium.Tool); ino == nil || ino.Mode != 0o755 {
				t.Errorf("the program is %+v", ino)
			}
		})
	}
}

// Only the ISO image has the kernel arguments that make it install.
func TestISOArguments(t *testing.T) {
	r := installerRequest(t)
	p := *r.Profile
	p.Kernel.Args = append([]string{"kiln.install.disk=/dev/sda"}, p.Kernel.Args...)
	r.Profile, r.KernelArgs = &p, []string{"kiln.install.force", "mine=1"}
	i, err := Compose(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if line := i.assets.cmdline; strings.Contains(line, "install") || !strings.HasSuffix(line, " mine=1") {
		t.Errorf("the disk boots with %q", line)
	}
	_, files := isoOf(t, r)
	config, err := grub.ParseConfig(bytesOf(t, files.Lookup("boot/grub/grub.cfg").Content.(extent.Source)))
	if err != nil {
		t.Fatal(err)
	}
	want := " kiln.install.force mine=1 kiln.disk=none kiln.medium=" + i.id.uuid("iso disk").String()
	if args := config.Entries[0].Args; !strings.HasSuffix(args, want) || !strings.Contains(args, " kiln.install.disk=/dev/sda ") {
		t.Errorf("the ISO image boots with %q, want it to end in %q", args, want)
	}
	data, err := i.Describe(&Artifact{Format: "iso"})
	if err != nil || !strings.Contains(string(data), want+`"`) {
		t.Errorf("%v, or no %q in %s", err, want, data)
	}
}

// A program that cannot install is told of once, or refused.
func TestISOWithoutProgram(t *testing.T) {
	r := installerRequest(t)
	r.Tool = extent.Bytes([]byte("#!/bin/sh\n"))
	var log strings.Builder
	r.Log = slog.New(slog.NewTextHandler(&log, nil))
	i, err := Compose(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := isoMap(t.Context(), i); err != nil {
			t.Fatal(err)
		}
	}
	const want = "the ISO image boots, but does not install: refused: the program for the installer image is no ELF file"
	if strings.Count(log.String(), want) != 1 {
		t.Errorf("log %s, want one %q", log.String(), want)
	}
	i.request.Strict = true
	if _, err := isoMap(t.Context(), i); err == nil || !strings.Contains(err.Error(), "no ELF file") {
		t.Errorf("%v", err)
	}
}
