package imager

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"slices"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/cache"
	"github.com/kilnhq/kiln/imager/cpio"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/iso"
	"github.com/kilnhq/kiln/kernel/depmod"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// layer is one squashfs image of the stack.
type layer struct {
	layers.Layer
	content extent.Source
}

// stack is what a system is made of besides the base's init.
type stack struct {
	layers []layer
	list   layers.List
	index  *cache.Entry // the merged module index, if there is one

	// If the layers are on BOOT, the file with them, and what the initramfs has
	// instead.
	file    extent.Source
	modules *tree.Tree
}

// stackLayers turns the base's root file system, the extensions and, if any of
// them says something of modules, their merged module index into a stack of
// layers.
func stackLayers(ctx context.Context, r Request, modules [][]depmod.Module) (*stack, error) {
	root, err := r.Base.Part(base.RootFS)
	if err != nil {
		return nil, err
	}
	var s stack
	s.add(layers.Layer{Kind: layers.RootFS, Name: "rootfs"}, root.Content, root.SHA256)
	merged := false
	for i, e := range r.Extensions {
		m := e.Manifest
		entry, hit, err := extensions.Layer(ctx, r.Cache, e.RootFS)
		if err != nil {
			return nil, fmt.Errorf("extension %s: %w", e, err)
		}
		r.Log.Info("extension", "name", m.Metadata.Name, "version", m.Metadata.Version,
			"digest", e.Digest, "bytes", entry.Content.Size(), "cached", hit)
		s.add(layers.Layer{Kind: layers.Extension, Name: m.Metadata.Name, Version: m.Metadata.Version}, entry.Content, entry.SHA256)
		for _, mod := range m.Kernel.Modules {
			s.list.Modules = append(s.list.Modules, layers.Module{Name: mod.Name, Parameters: mod.Parameters, Extension: m.Metadata.Name})
		}
		merged = merged || len(modules[i]) > 0 || len(m.Kernel.Options)+len(m.Kernel.Blacklist) > 0
	}
	if merged {
		index, err := indexTree(r.Base, r.Extensions, modules)
		if err != nil {
			return nil, err
		}
		entry, _, err := extensions.Layer(ctx, r.Cache, index)
		if err != nil {
			return nil, err
		}
		s.index = &entry
		s.add(layers.Layer{Kind: layers.Index, Name: "modules"}, entry.Content, entry.SHA256)
	}
	s.list.Version, s.list.Release, s.list.Kiln = 1, r.Base.Config.Release, r.Version
	return &s, nil
}

func (s *stack) add(l layers.Layer, content extent.Source, sum string) {
	l.Path = fmt.Sprintf("layers/%02d-%s.sqsh", len(s.layers), l.Name)
	l.Size, l.SHA256 = content.Size(), sum
	s.layers = append(s.layers, layer{l, content})
	s.list.Layers = append(s.list.Layers, l)
}

// indexTree is the topmost layer: modules.dep and its companions over the
// modules of the base and of all extensions, and what the manifests tell
// modprobe.
func indexTree(b *base.Base, all []*extensions.Extension, modules [][]depmod.Module) (*tree.Tree, error) {
	facts, err := b.Modules()
	if err != nil {
		return nil, err
	}
	merged := slices.Clone(facts.Modules)
	for _, m := range modules {
		merged = append(merged, m...)
	}
	res, err := depmod.Index(depmod.Input{Modules: merged, Order: facts.Order, Builtin: facts.Builtin, BuiltinModinfo: facts.BuiltinModinfo})
	if err != nil {
		return nil, err
	}
	t := tree.New()
	add := func(name string, data []byte) error {
		if err := t.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		return t.Add(name, &tree.Inode{Mode: 0o644, Content: bytes.NewReader(data)})
	}
	for name, data := range res.Files {
		if err := add(extensions.ModulesDir+"/"+b.Config.Release+"/"+name, data); err != nil {
			return nil, err
		}
	}
	for i, e := range all {
		if conf := modprobeConf(e.Manifest); conf != nil {
			if err := add(fmt.Sprintf("usr/lib/modprobe.d/%02d-%s.conf", i, e.Manifest.Metadata.Name), conf); err != nil {
				return nil, err
			}
		}
	}
	for _, ino := range t.All() {
		ino.ModTime = b.Config.Epoch
	}
	return t, nil
}

// modprobeConf is what a manifest says about modules in the words of
// modprobe.d(5); nil if that is nothing.
func modprobeConf(m extensions.Manifest) []byte {
	var b bytes.Buffer
	for _, o := range m.Kernel.Options {
		// A backslash at the end of a line would continue it.
		fmt.Fprintf(&b, "options %s %s \n", o.Name, o.Parameters)
	}
	for _, name := range m.Kernel.Blacklist {
		fmt.Fprintf(&b, "blacklist %s\n", name)
	}
	return b.Bytes()
}

// initramfs is the base's compressed init cpio, followed by stored cpios with
// the layers, which are compressed already, or with the modules to get at them.
func (s *stack) initramfs(b *base.Base, epoch int64) (extent.Source, error) {
	init, err := b.Part(base.Init)
	if err != nil {
		return nil, err
	}
	list, err := s.list.Encode()
	if err != nil {
		return nil, err
	}
	described, err := fileTree(map[string]tree.Content{layers.Name: bytes.NewReader(list)}, epoch)
	if err != nil {
		return nil, err
	}
	head, err := cpio.Build(described)
	if err != nil {
		return nil, err
	}
	// The list comes first, so that an initramfs that was cut off can still say
	// which layer is damaged. The kernel looks for the next archive at a multiple
	// of four bytes.
	if s.file != nil {
		modules, err := cpio.Build(s.modules)
		if err != nil {
			return nil, err
		}
		return extent.Concat(4, init.Content, head, modules)
	}
	files, err := fileTree(s.contents(), epoch)
	if err != nil {
		return nil, err
	}
	// Layers begin where a sector of a CD may: an ISO image has them once, in its
	// initramfs and as files of their own.
	all, err := cpio.BuildAligned(files, iso.SectorSize)
	if err != nil {
		return nil, err
	}
	if head, err = extent.Concat(4, init.Content, head); err != nil {
		return nil, err
	}
	return extent.Concat(iso.SectorSize, head, all)
}

func (s *stack) contents() map[string]tree.Content {
	files := map[string]tree.Content{}
	for _, l := range s.layers {
		files[l.Path] = l.content
	}
	return files
}
