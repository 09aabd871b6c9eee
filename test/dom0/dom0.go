// Package dom0 makes the first domain of a Xen host, for tests: an initramfs with
// the programs of Debian's xen-utils, what they need, and no more. Packages are
// read, not installed.
//
// The host boots to where xl works and runs /guest.sh. Its console is hvc0. What
// Xen's scripts do when a guest gets a disk or a network card is done by ours, which
// need no bash: disks have to be block devices, all cards are on the bridge xenbr0.
package dom0

import (
	"context"
	"debug/elf"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/imager/cpio"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/kernel"
	"github.com/kilnhq/kiln/kernel/deb"
	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/rootfs/tree"
)

//go:embed init.sh block.sh vif.sh
var scripts embed.FS

// programs are what the host runs, as patterns.
var programs = []string{
	"bin/busybox",
	"usr/lib/xen-*/bin/xl", "usr/lib/xen-*/bin/libxl-save-helper", "usr/lib/xen-*/bin/xen-init-dom0",
	"usr/lib/xen-*/bin/xenconsole", "usr/lib/xen-*/bin/xenconsoled", "usr/lib/xen-*/bin/xenstored",
	"usr/bin/xenstore-read", "usr/bin/xenstore-write", "usr/bin/xenstore-exists",
	"lib/x86_64-linux-gnu/libgcc_s.so.1", // is opened when a thread is cancelled
}

// further is what else they read.
var further = []string{
	"etc/xen/xl.conf", "usr/lib/xen-*/boot/*", "usr/lib/grub-xen/grub-i386-xen_pvh.bin",
}

// emulator are HVM guests' devices, and emulated what that reads.
const emulator = "usr/libexec/xen-qemu-system-i386"

var emulated = []string{"usr/share/qemu/keymaps/*", "usr/share/seabios/vgabios-stdvga.bin", "usr/share/seabios/vgabios-cirrus.bin"}

// modules are the host's drivers: its side of those that the guests have, and of
// its own disks.
var modules = []string{
	"virtio_pci", "virtio_blk", "xenfs", "xen_privcmd", "xen_evtchn", "xen_gntdev", "xen_gntalloc",
	"xen_blkback", "xen_netback", "bridge", "tun",
}

// A Host is what the first domain is made of.
type Host struct {
	Kernel   *kernel.Package
	Packages []string                 // files
	HVM      bool                     // has what takes it to start HVM guests
	Files    map[string]extent.Source // further ones, by their names
}

// Build returns the host's initramfs.
func (h Host) Build(ctx context.Context) (*extent.Map, error) {
	all, err := unpack(ctx, h.Packages)
	if err != nil {
		return nil, err
	}
	b := builder{all: all, root: tree.New()}
	programs, further := programs, further
	if h.HVM {
		programs, further = append([]string{emulator}, programs...), slices.Concat(emulated, further)
	}
	for _, pattern := range programs {
		if err := b.each(pattern, b.addELF); err != nil {
			return nil, err
		}
	}
	for _, pattern := range further {
		if err := b.each(pattern, b.add); err != nil {
			return nil, err
		}
	}
	if err := b.addModules(h.Kernel); err != nil {
		return nil, err
	}
	for from, to := range map[string]string{"init.sh": "init", "block.sh": "etc/xen/scripts/block", "vif.sh": "etc/xen/scripts/vif-bridge"} {
		text, err := scripts.ReadFile(from)
		if err != nil {
			return nil, err
		}
		if err := b.file(to, extent.Bytes(text)); err != nil {
			return nil, err
		}
	}
	for name, content := range h.Files {
		if err := b.file(name, content); err != nil {
			return nil, err
		}
	}
	if err := b.root.MkdirAll("dev", 0o755); err != nil {
		return nil, err
	}
	console := &tree.Inode{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1}
	if err := b.root.Set("dev/console", console); err != nil {
		return nil, err
	}
	return cpio.Build(b.root)
}

// unpack reads packages, but for what is the same on every architecture and not in
// the list of what is needed.
func unpack(ctx context.Context, debs []string) (*tree.Tree, error) {
	all := tree.New()
	for _, file := range debs {
		p, err := deb.Open(file)
		if err != nil {
			return nil, err
		}
		t, err := p.Tree(ctx, func(name string) bool {
			return !strings.HasPrefix(name, "usr/share/") || slices.ContainsFunc(emulated, func(pattern string) bool {
				ok, _ := path.Match(pattern, name)
				return ok
			})
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for name, ino := range t.All() {
			if ino.Mode.IsDir() && all.Lookup(name) != nil {
				continue
			}
			if err := all.Set(name, ino); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	return all, nil
}

// builder takes files out of a tree into another.
type builder struct{ all, root *tree.Tree }

func (b *builder) file(name string, content extent.Source) error {
	if err := b.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	return b.root.Set(name, &tree.Inode{Mode: 0o755, Content: content})
}

// each calls add for the files that match a pattern.
func (b *builder) each(pattern string, add func(string) error) error {
	found := false
	for name, ino := range b.all.All() {
		if ok, err := path.Match(pattern, name); err != nil {
			return err
		} else if !ok || ino.Mode.IsDir() {
			continue
		}
		found = true
		if err := add(name); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("no package has %s", pattern)
	}
	return nil
}

// add copies a file and, if it is a link, what it stands for.
func (b *builder) add(name string) error {
	for range 8 {
		ino := b.all.Lookup(name)
		if ino == nil {
			return fmt.Errorf("no package has %s", name)
		}
		if err := b.root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		if err := b.root.Set(name, ino); err != nil {
			return err
		}
		if ino.Mode&fs.ModeSymlink == 0 {
			return nil
		}
		to := ino.Target
		if !path.IsAbs(to) {
			to = path.Join("/", path.Dir(name), to)
		}
		name = strings.TrimPrefix(to, "/")
	}
	return fmt.Errorf("%s: %w", name, tree.ErrLoop)
}

// addELF copies a program or library, and the libraries and the interpreter that it
// needs.
func (b *builder) addELF(name string) error {
	if b.root.Lookup(name) != nil {
		return nil
	}
	if err := b.add(name); err != nil {
		return err
	}
	file, err := b.all.Resolve(name)
	if err != nil {
		return err
	}
	f, err := elf.NewFile(b.all.Lookup(file).Content)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		interpreter, err := io.ReadAll(p.Open())
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := b.addELF(strings.Trim(string(interpreter), "/\x00")); err != nil {
			return err
		}
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, lib := range libraries {
		i := slices.IndexFunc(libraryDirs, func(dir string) bool { return b.all.Lookup(dir+lib) != nil })
		if i < 0 {
			return fmt.Errorf("no package has %s, which %s needs", lib, file)
		}
		if err := b.addELF(libraryDirs[i] + lib); err != nil {
			return err
		}
	}
	return nil
}

var libraryDirs = []string{"lib/x86_64-linux-gnu/", "usr/lib/x86_64-linux-gnu/"}

// addModules puts the drivers into modules/, numbered in the order to load them in.
func (b *builder) addModules(k *kernel.Package) error {
	paths := map[string]string{}
	for name, ino := range k.Modules.All() {
		if ino.Mode.IsRegular() && module.IsFile(name) {
			paths[module.Name(name)] = name
		}
	}
	done := map[string]bool{}
	var load func(name string) error
	load = func(name string) error {
		file := paths[name]
		if done[name] || file == "" { // built in, or the test will show
			return nil
		}
		done[name] = true
		data, err := io.ReadAll(extent.Reader(k.Modules.Lookup(file).Content))
		if err != nil {
			return err
		}
		if data, err = module.Decompress(file, data, module.MaxSize); err != nil {
			return err
		}
		info, err := module.Parse(file, data)
		if err != nil {
			return err
		}
		for _, other := range info.Depends {
			if err := load(module.Fold(other)); err != nil {
				return err
			}
		}
		return b.file(fmt.Sprintf("modules/%02d-%s.ko", len(b.root.Children("modules")), name), extent.Bytes(data))
	}
	for _, name := range modules {
		if err := load(name); err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	return nil
}
