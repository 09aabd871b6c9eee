package imager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/cpio"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/kernel/depmod"
	"github.com/kilnhq/kiln/machine/layers"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// check refuses extensions that would not work on the base and returns the
// facts about their modules.
func check(ctx context.Context, r Request) ([][]depmod.Module, error) {
	if r.Base.Config.Arch != r.Profile.Arch {
		return nil, refuse("profile %s is for %s, the base for %s", r.Profile.Name, r.Profile.Arch, r.Base.Config.Arch)
	}
	if len(r.Extensions) == 0 {
		return nil, nil
	}
	files, err := r.Base.Files()
	if err != nil {
		return nil, err
	}
	facts, err := r.Base.Modules()
	if err != nil {
		return nil, err
	}
	target := extensions.Target{Release: r.Base.Config.Release, Arch: r.Base.Config.Arch, Files: files, Modules: facts.Names()}
	return extensions.Check(ctx, target, r.Extensions)
}

// layer is one squashfs image of the stack.
type layer struct {
	layers.Layer
	content extent.Source
}

// stack is what the initramfs carries besides the base's init.
type stack struct {
	layers []layer
	list   layers.List
}

// stackLayers turns the base's root file system, the extensions and, if any of
// them has modules, their merged module index into a stack of layers.
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
		merged = merged || len(modules[i]) > 0
	}
	if merged {
		index, err := indexTree(r.Base, modules)
		if err != nil {
			return nil, err
		}
		entry, _, err := extensions.Layer(ctx, r.Cache, index)
		if err != nil {
			return nil, err
		}
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
// modules of the base and of all extensions.
func indexTree(b *base.Base, modules [][]depmod.Module) (*tree.Tree, error) {
	facts, err := b.Modules()
	if err != nil {
		return nil, err
	}
	all := slices.Clone(facts.Modules)
	for _, m := range modules {
		all = append(all, m...)
	}
	res, err := depmod.Index(depmod.Input{Modules: all, Order: facts.Order, Builtin: facts.Builtin, BuiltinModinfo: facts.BuiltinModinfo, SystemMap: facts.SystemMap})
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, sh := range res.Shadowed {
		if sh.Tie {
			errs = append(errs, fmt.Errorf("%w: module %s: there is %s already; put the one that is meant to win into updates/",
				extensions.ErrIncompatible, sh.Path, sh.By))
		}
	}
	if len(res.Unresolved)+len(errs) > 0 {
		for _, u := range res.Unresolved {
			errs = append(errs, fmt.Errorf("%w: %s: needs symbol %s, which neither the kernel nor any module exports", extensions.ErrIncompatible, u.Path, u.Symbol))
		}
		return nil, errors.Join(errs...)
	}
	t := tree.New()
	dir := extensions.ModulesDir + "/" + b.Config.Release
	if err := t.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	for name, data := range res.Files {
		if err := t.Add(dir+"/"+name, &tree.Inode{Mode: 0o644, Content: bytes.NewReader(data)}); err != nil {
			return nil, err
		}
	}
	for _, ino := range t.All() {
		ino.ModTime = b.Config.Epoch
	}
	return t, nil
}

// initramfs is the base's compressed init cpio, followed by stored cpios with
// the layers, which are compressed already.
func (s *stack) initramfs(b *base.Base, epoch int64) (extent.Source, error) {
	init, err := b.Part(base.Init)
	if err != nil {
		return nil, err
	}
	list, err := s.list.Encode()
	if err != nil {
		return nil, err
	}
	archives := []extent.Source{init.Content}
	// The list comes first, so that an initramfs that was cut off can still say
	// which layer is damaged.
	for _, files := range []map[string]tree.Content{{layers.Name: bytes.NewReader(list)}, s.contents()} {
		t, err := fileTree(files, epoch)
		if err != nil {
			return nil, err
		}
		archive, err := cpio.Build(t)
		if err != nil {
			return nil, err
		}
		archives = append(archives, archive)
	}
	// The kernel looks for the next archive at a multiple of four bytes.
	return extent.Concat(4, archives...)
}

func (s *stack) contents() map[string]tree.Content {
	files := map[string]tree.Content{}
	for _, l := range s.layers {
		files[l.Path] = l.content
	}
	return files
}
