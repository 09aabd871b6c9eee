package imager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
	"golang.org/x/sync/errgroup"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/kernel"
	"github.com/kilnhq/kiln/kernel/gate"
	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/kernel/sign"
	"github.com/kilnhq/kiln/rootfs/dir"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// ExtensionRequest is what to build a system extension from: kernel modules, other
// files, or both.
type ExtensionRequest struct {
	Base *base.Base

	// Manifest is completed: with what the kernel is, and with what the first of
	// the built modules says of itself.
	Manifest extensions.Manifest
	NoLoad   bool // do not make the node load a module that nothing could ask for

	// Built are modules that were built outside of the kernel's tree.
	Built []BuiltModule

	// Kernel are the packages that the base was built from, and InTree names of
	// modules in them, which the node will load. The modules that these and the
	// built ones need come along, as far as the base does not have them.
	Kernel []string
	InTree []string

	// Firmware are directories that become usr/lib/firmware.
	Firmware []string

	// Root are further files, by their paths in the root file system; it may be
	// nil. Without modules beside them the extension is for any kernel.
	Root *tree.Tree

	// Below are the extensions that this one builds upon; it will require those
	// whose symbols it uses.
	Below []*extensions.Extension

	Signer   *sign.Signer // of the built modules; nil leaves them as they are
	Compress bool         // the built modules, if the kernel can decompress them
}

// BuiltModule is the file of a module.
type BuiltModule struct {
	File string
	Dest string // directory below usr/lib/modules/RELEASE; empty is updates
}

// updates is where modprobe looks first.
const updates = "updates"

// BuiltExtension is an extension, and what checking it has found.
type BuiltExtension struct {
	*extensions.Extension
	Verdict *Verdict
}

// BuildExtension makes a system extension and checks it as composing an image
// would. A bad verdict is not an error.
func BuildExtension(ctx context.Context, r ExtensionRequest) (*BuiltExtension, error) {
	system, err := newSystem(r.Base, nil, nil)
	if err != nil {
		return nil, err
	}
	below, err := newLayers(ctx, r.Below, nil)
	if err != nil {
		return nil, err
	}
	r.Manifest.Version, r.Manifest.Kernel.Arch = extensions.ManifestVersion, r.Base.Config.Arch
	content := map[string]tree.Content{}
	for _, add := range []func(context.Context, *gate.System, map[string]tree.Content) error{r.built, r.inTree, r.firmware} {
		if err := add(ctx, system, content); err != nil {
			return nil, err
		}
	}
	if r.Root == nil || len(content) > 0 {
		r.Manifest.Kernel.Release = r.Base.Config.Release
	}
	if err := r.describe(content, below); err != nil {
		return nil, err
	}
	manifest, err := yaml.Marshal(r.Manifest)
	if err != nil {
		return nil, err
	}
	content["manifest.yaml"] = extent.Bytes(manifest)
	t, err := fileTree(content, r.Base.Config.Epoch)
	if err != nil {
		return nil, fmt.Errorf("extension %s: %w", r.Manifest.Metadata.Name, err)
	}
	if err := r.root(t); err != nil {
		return nil, fmt.Errorf("extension %s: %w", r.Manifest.Metadata.Name, err)
	}
	e, err := extensions.FromTree(r.Manifest.Metadata.Name, t)
	if err != nil {
		return nil, err
	}
	request := CheckRequest{Base: r.Base, Extensions: append(slices.Clone(r.Below), e)}
	if r.Signer != nil {
		request.Certificates = append(request.Certificates, r.Signer.Certificate)
	}
	verdict, err := Check(ctx, request)
	if err != nil {
		return nil, err
	}
	verdict.Findings = slices.DeleteFunc(verdict.Findings, func(f gate.Finding) bool { return f.Origin != e.String() })
	return &BuiltExtension{e, verdict}, nil
}

// Symvers returns the symbols that the modules of extensions export, as a
// Module.symvers to build other modules with.
func Symvers(ctx context.Context, all []*extensions.Extension) ([]byte, error) {
	layers, err := newLayers(ctx, all, nil)
	if err != nil {
		return nil, err
	}
	var infos []*module.Info
	for _, l := range layers {
		for _, m := range l.Modules {
			infos = append(infos, m.Info)
		}
	}
	return gate.Symvers(infos), nil
}

func (r *ExtensionRequest) modulesDir() string {
	return "rootfs/" + extensions.ModulesDir + "/" + r.Base.Config.Release + "/"
}

// inTree adds modules of the kernel's packages.
func (r *ExtensionRequest) inTree(ctx context.Context, system *gate.System, content map[string]tree.Content) error {
	if len(r.Kernel) == 0 {
		return nil
	}
	names := slices.Clone(r.InTree)
	infos, err := parseModules(content)
	if err != nil {
		return err
	}
	for _, info := range infos {
		for _, im := range info.Imports {
			if by := system.Symbols[im.Name].Module; by != "" && !im.Weak {
				names = append(names, by)
			}
		}
	}
	if len(names) == 0 {
		return nil
	}
	k, err := kernel.Import(ctx, r.Kernel...)
	if err != nil {
		return err
	}
	if k.Release != r.Base.Config.Release {
		return refuse("kernel package is %s, the base has %s; give the package the base was built from", k.Release, r.Base.Config.Release)
	}
	slices.Sort(names)
	paths, err := base.SelectModules(ctx, k, slices.Compact(names))
	if err != nil {
		return err
	}
	files, err := r.Base.Files()
	if err != nil {
		return err
	}
	found := len(r.Built) > 0
	for _, p := range paths {
		if _, have := files[extensions.ModulesDir+"/"+k.Release+"/"+p]; !have {
			content[r.modulesDir()+p] = k.Modules.Lookup(p).Content
			found = true
		}
	}
	if !found {
		return refuse("the base has %v already, with all they need", r.InTree)
	}
	for _, n := range r.InTree {
		r.Manifest.Kernel.Modules = append(r.Manifest.Kernel.Modules, extensions.Module{Name: n})
	}
	return nil
}

// built adds modules that were built outside of the kernel's tree: without debug
// information, signed, and compressed as the kernel can undo it, in this order.
func (r *ExtensionRequest) built(ctx context.Context, system *gate.System, content map[string]tree.Content) error {
	type result struct {
		name string
		data []byte
	}
	results := make([]result, len(r.Built))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i, b := range r.Built {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			data, err := os.ReadFile(b.File)
			if err != nil {
				return err
			}
			plain, err := module.Decompress(b.File, data, module.MaxSize)
			if err != nil {
				return err
			}
			info, err := module.Parse(b.File, plain)
			if err != nil {
				return err
			}
			name := module.TrimCompression(filepath.Base(b.File))
			if !module.IsFile(name) || module.Name(name) != info.Name {
				return refuse("%s: it is module %s, and modprobe goes by the names of files; rename it to %s.ko", b.File, info.Name, info.Name)
			}
			if data, err = r.prepare(b.File, plain); err != nil {
				return err
			}
			suffix := ""
			if format := system.ModuleCompression(); r.Compress && format != "" {
				if data, suffix, err = module.Compress(format, data); err != nil {
					return err
				}
			}
			dest := strings.Trim(b.Dest, "/")
			if dest == "" {
				dest = updates
			}
			results[i] = result{r.modulesDir() + path.Join(dest, name+suffix), data}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i, res := range results {
		if content[res.name] != nil {
			return refuse("%s: the extension has a module of that name already", r.Built[i].File)
		}
		content[res.name] = extent.Bytes(res.data)
	}
	return nil
}

// prepare strips and signs a module. One that is signed already, and is not to be
// signed anew, stays as it is.
func (r *ExtensionRequest) prepare(file string, plain []byte) ([]byte, error) {
	elf, _, err := sign.Split(plain)
	if r.Signer == nil && !errors.Is(err, sign.ErrUnsigned) {
		return plain, nil
	}
	stripped, err := module.Strip(elf)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if r.Signer == nil {
		return stripped, nil
	}
	signed, err := r.Signer.Sign(stripped)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return signed, nil
}

// firmware adds the files of the firmware directories.
func (r *ExtensionRequest) firmware(ctx context.Context, _ *gate.System, content map[string]tree.Content) error {
	for _, name := range r.Firmware {
		t, err := dir.Read(ctx, name, dir.Options{})
		if err != nil {
			return err
		}
		for p, ino := range t.All() {
			if ino.Mode.IsDir() {
				continue
			}
			if !ino.Mode.IsRegular() {
				return refuse("%s/%s: %s among firmware; want files", name, p, ino.Mode.Type())
			}
			content["rootfs/usr/lib/firmware/"+p] = ino.Content
		}
	}
	return nil
}

// root adds the further files to the extension t.
func (r *ExtensionRequest) root(t *tree.Tree) error {
	if r.Root == nil {
		return nil
	}
	for name, ino := range r.Root.All() {
		name = path.Join("rootfs", name)
		if old := t.Lookup(name); old != nil && old.Mode.IsDir() && ino.Mode.IsDir() {
			if err := t.Set(name, ino); err != nil {
				return err
			}
			continue
		}
		if err := t.Add(name, ino); err != nil {
			return err
		}
	}
	return nil
}

// parseModules returns the facts about the modules among files, by their paths.
func parseModules(content map[string]tree.Content) ([]*module.Info, error) {
	var infos []*module.Info
	for _, name := range slices.Sorted(maps.Keys(content)) {
		if !module.IsFile(name) {
			continue
		}
		data, err := io.ReadAll(io.NewSectionReader(content[name], 0, content[name].Size()))
		if err != nil {
			return nil, err
		}
		info, err := module.Parse(name, data)
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// describe completes the manifest.
func (r *ExtensionRequest) describe(content map[string]tree.Content, below []gate.Layer) error {
	if len(content) == 0 && r.Root == nil {
		return refuse("an extension without any file; name modules")
	}
	infos, err := parseModules(content)
	if err != nil {
		return err
	}
	m := &r.Manifest
	if len(r.Built) > 0 {
		first := infos[slices.IndexFunc(infos, func(i *module.Info) bool { return i.Name == module.Name(r.Built[0].File) })]
		m.Metadata.Name = cmp.Or(m.Metadata.Name, strings.ToLower(first.Name))
		m.Metadata.Version = cmp.Or(m.Metadata.Version, first.Version)
		m.Metadata.Description = cmp.Or(m.Metadata.Description, first.Description)
		if len(r.Built) == 1 && len(first.Aliases)+len(m.Kernel.Modules) == 0 && !r.NoLoad {
			m.Kernel.Modules = []extensions.Module{{Name: first.Name}}
		}
	}
	r.require(infos, below)
	return m.Validate()
}

// require makes the manifest require the extensions whose symbols the modules
// use.
func (r *ExtensionRequest) require(infos []*module.Info, below []gate.Layer) {
	exporter := map[string]int{} // index of the extension
	for i, l := range below {
		for _, m := range l.Modules {
			for _, x := range m.Info.Exports {
				exporter[x.Name] = i
			}
		}
	}
	for _, info := range infos {
		for _, im := range info.Imports {
			i, ok := exporter[im.Name]
			if !ok {
				continue
			}
			name := r.Below[i].Manifest.Metadata.Name
			if !slices.Contains(r.Manifest.Requires, name) {
				r.Manifest.Requires = append(r.Manifest.Requires, name)
			}
		}
	}
	slices.Sort(r.Manifest.Requires)
}
