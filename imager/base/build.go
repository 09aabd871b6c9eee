package base

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path"
	"strings"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/imager/cpio"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/kernel"
	"github.com/kilnhq/kiln/kernel/depmod"
	"github.com/kilnhq/kiln/rootfs"
	"github.com/kilnhq/kiln/rootfs/closure"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// ErrRefused is wrapped by errors for inputs that would make a base that does
// not work.
var ErrRefused = errors.New("refused")

// Request is what to build a base from.
type Request struct {
	Recipe   *rootfs.Recipe
	Sources  rootfs.Sources // of the recipe's parts; Arch is taken from the kernel, Cache must be given
	Kernel   []string       // .deb files, or one directory
	GrubCore string         // file with the GRUB core image; empty for an architecture without BIOS
	GrubCD   string         // file with GRUB's boot program of a CD; empty if there are to be none for BIOS
	Version  string         // of kiln
	Log      *slog.Logger
}

// modulesDir is where the modules of all kernels are, in the root file system
// and in the initramfs.
const modulesDir = "usr/lib/modules"

// Build builds a base and stores it as an OCI image layout at output.
func Build(ctx context.Context, r Request, output string) error {
	k, err := kernel.Import(ctx, r.Kernel...)
	if err != nil {
		return err
	}
	r.Sources.Arch = k.Arch
	r.Log.Info("kernel", "release", k.Release, "arch", k.Arch, "from", k.Source)
	all, err := readModules(ctx, k)
	if err != nil {
		return err
	}
	root, shipped, err := r.root(ctx, k, all)
	if err != nil {
		return err
	}
	init, err := r.init(ctx, k, all)
	if err != nil {
		return err
	}
	boot, err := r.bootLoaders(ctx)
	if err != nil {
		return err
	}
	parts, err := facts(k, root, shipped)
	if err != nil {
		return err
	}
	for name, content := range boot {
		parts[name] = content
	}
	parts[Vmlinuz], parts[Init] = k.Vmlinuz, init
	symvers, err := r.symvers(ctx, k.Release)
	if err != nil {
		return err
	}
	if symvers != nil {
		parts[Symvers] = symvers
	}

	certificates, err := k.Certificates()
	if err != nil {
		return err
	}
	var pemFile bytes.Buffer
	for _, c := range certificates {
		if err := pem.Encode(&pemFile, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
			return err
		}
	}
	parts[Certificates] = extent.Bytes(pemFile.Bytes())

	if parts[SBOM], err = r.sbom(ctx, k, root); err != nil {
		return err
	}

	sqsh, cached, err := extensions.Layer(ctx, r.Sources.Cache, root)
	if err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	size := sqsh.Content.Size()
	r.Log.Info("root file system", "files", root.Len(), "modules", len(shipped), "squashfs", size, "limit", r.Recipe.Limits.Squashfs, "cached", cached)
	for _, s := range rootfs.Largest(root, 10) {
		r.Log.Debug("before compression", "path", "/"+s.Path, "bytes", s.Bytes)
	}
	if err := r.Recipe.CheckSize(root, size); err != nil {
		return fmt.Errorf("%w: root file system: %w", ErrRefused, err)
	}
	parts[RootFS] = sqsh.Content
	config := Config{Version: 1, Arch: k.Arch, Release: k.Release, Epoch: r.Sources.ModTime, Kiln: r.Version, Packages: []string{k.Source}}
	return Write(ctx, output, config, parts)
}

// root makes the root file system's tree with its modules, their firmware and
// their index, and returns the modules in it.
func (r Request) root(ctx context.Context, k *kernel.Package, all *moduleSet) (*tree.Tree, []depmod.Module, error) {
	t, err := r.Recipe.Tree(ctx, r.Sources)
	if err != nil {
		return nil, nil, err
	}
	shipped, firmware, err := all.choose(r.Recipe.Modules.Include, r.Recipe.Modules.Exclude)
	if err != nil {
		return nil, nil, fmt.Errorf("modules: %w", err)
	}
	dir := modulesDir + "/" + k.Release
	if err := addModules(t, dir, k, shipped, r.Sources.ModTime); err != nil {
		return nil, nil, err
	}
	if k.Config != nil { // where kubeadm and the node look for it
		if err := t.Add(dir+"/config", &tree.Inode{Mode: 0o644, ModTime: r.Sources.ModTime, Content: k.Config}); err != nil {
			return nil, nil, err
		}
	}
	files, missing, err := r.Recipe.FirmwareTree(ctx, r.Sources, firmware)
	if err != nil {
		return nil, nil, err
	}
	if len(missing) > 0 && len(r.Recipe.Firmware.Packages) > 0 {
		r.Log.Warn("firmware that modules name is in none of the recipe's packages", "files", len(missing), "first", missing[0])
	}
	for name, ino := range files.All() {
		if old := t.Lookup(name); old != nil && old.Mode.IsDir() && ino.Mode.IsDir() {
			continue
		}
		if err := t.Add(name, ino); err != nil {
			return nil, nil, fmt.Errorf("firmware: %w", err)
		}
	}
	if err := closure.Check(ctx, t, k.Arch); err != nil {
		return nil, nil, fmt.Errorf("%w: root file system: %w", ErrRefused, err)
	}
	return t, shipped, nil
}

// addModules adds modules and their index to t.
func addModules(t *tree.Tree, dir string, k *kernel.Package, modules []depmod.Module, modTime int64) error {
	in := depmod.Input{Modules: modules}
	for name, data := range map[string]*[]byte{
		"modules.order": &in.Order, "modules.builtin": &in.Builtin, "modules.builtin.modinfo": &in.BuiltinModinfo,
	} {
		ino := k.Modules.Lookup(name)
		if ino == nil {
			continue
		}
		var err error
		if *data, err = content(ino); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	index, err := depmod.Index(in)
	if err != nil {
		return err
	}
	files := map[string]tree.Content{}
	for name, data := range index.Files {
		files[name] = bytes.NewReader(data)
	}
	for _, name := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
		if ino := k.Modules.Lookup(name); ino != nil {
			files[name] = ino.Content
		}
	}
	for _, m := range modules {
		files[m.Path] = k.Modules.Lookup(m.Path).Content
	}
	for name, c := range files {
		full := dir + "/" + name
		if err := t.MkdirAll(path.Dir(full), 0o755); err != nil {
			return err
		}
		if err := t.Add(full, &tree.Inode{Mode: 0o644, ModTime: modTime, Content: c}); err != nil {
			return err
		}
	}
	for name, ino := range t.All() {
		if strings.HasPrefix(dir+"/", name+"/") || strings.HasPrefix(name, dir+"/") {
			ino.ModTime = modTime
		}
	}
	return nil
}

// init is the compressed cpio with /init and the modules it needs to reach the
// root file system.
func (r Request) init(ctx context.Context, k *kernel.Package, all *moduleSet) (extent.Source, error) {
	modules, _, err := all.choose(r.Recipe.Initramfs.Modules, nil)
	if err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	program, err := rootfs.BuildProgram(ctx, r.Sources, rootfs.Program{Package: r.Recipe.Initramfs.Program})
	if err != nil {
		return nil, fmt.Errorf("initramfs: %w", err)
	}
	ino := &tree.Inode{Mode: 0o755, ModTime: r.Sources.ModTime, Content: extent.Bytes(program)}
	t := tree.New()
	if err := t.Add("init", ino); err != nil {
		return nil, err
	}
	if err := addModules(t, strings.TrimPrefix(modulesDir, "usr/")+"/"+k.Release, k, modules, r.Sources.ModTime); err != nil {
		return nil, err
	}
	// What the kernel's console needs before devtmpfs is mounted.
	if err := t.Add("dev", &tree.Inode{Mode: fs.ModeDir | 0o755, ModTime: r.Sources.ModTime}); err != nil {
		return nil, err
	}
	for _, node := range []struct {
		name         string
		major, minor uint32
	}{{"dev/console", 5, 1}, {"dev/null", 1, 3}} {
		ino := &tree.Inode{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: node.major, Minor: node.minor, ModTime: r.Sources.ModTime}
		if err := t.Add(node.name, ino); err != nil {
			return nil, err
		}
	}
	archive, err := cpio.Build(t)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	if err := cpio.Compress(&buf, archive); err != nil {
		return nil, err
	}
	r.Log.Info("initramfs", "modules", len(modules), "bytes", buf.Len())
	return extent.Bytes(buf.Bytes()), nil
}

// facts are the parts that describe the kernel and the root file system.
func facts(k *kernel.Package, root *tree.Tree, shipped []depmod.Module) (map[string]extent.Source, error) {
	files := map[string]fs.FileMode{}
	for name, ino := range root.All() {
		files[name] = ino.Mode
	}
	parts := map[string]extent.Source{}
	var err error
	if parts[Files], err = encodeFacts(files); err != nil {
		return nil, err
	}
	if parts[ModuleFacts], err = encodeFacts(shipped); err != nil {
		return nil, err
	}
	for name, c := range map[string]tree.Content{
		KernelConfig: k.Config, SystemMap: k.SystemMap,
		ModulesOrder: file(k.Modules, "modules.order"), ModulesBuiltin: file(k.Modules, "modules.builtin"),
		BuiltinModinfo: file(k.Modules, "modules.builtin.modinfo"),
	} {
		if c != nil {
			parts[name] = c
		}
	}
	return parts, nil
}

// file returns the content of a regular file, or nil.
func file(t *tree.Tree, name string) tree.Content {
	if ino := t.Lookup(name); ino != nil {
		return ino.Content
	}
	return nil
}

// content reads a whole file into memory.
func content(ino *tree.Inode) ([]byte, error) {
	data := make([]byte, ino.Size())
	if len(data) == 0 {
		return data, nil
	}
	_, err := io.ReadFull(io.NewSectionReader(ino.Content, 0, ino.Size()), data)
	return data, err
}
