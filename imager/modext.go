package imager

import (
	"context"
	"fmt"

	"go.yaml.in/yaml/v4"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/kernel"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// ModuleExtension makes the tree of a system extension: the named modules of a
// kernel package, and the modules they need, as far as the base does not have
// them. The node loads those that are named.
func ModuleExtension(ctx context.Context, b *base.Base, kernelPaths []string, m extensions.Manifest, names []string) (*tree.Tree, error) {
	k, err := kernel.Import(ctx, kernelPaths...)
	if err != nil {
		return nil, err
	}
	if k.Release != b.Config.Release {
		return nil, refuse("kernel package is %s, the base has %s; give the package the base was built from", k.Release, b.Config.Release)
	}
	paths, err := base.SelectModules(ctx, k, names)
	if err != nil {
		return nil, err
	}
	files, err := b.Files()
	if err != nil {
		return nil, err
	}
	m.Kernel.Release = k.Release
	for _, n := range names {
		m.Kernel.Modules = append(m.Kernel.Modules, extensions.Module{Name: n})
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	manifest, err := yaml.Marshal(m)
	if err != nil {
		return nil, err
	}
	content := map[string]tree.Content{"manifest.yaml": extent.Bytes(manifest)}
	dir := extensions.ModulesDir + "/" + k.Release
	for _, p := range paths {
		if _, have := files[dir+"/"+p]; !have {
			content["rootfs/"+dir+"/"+p] = k.Modules.Lookup(p).Content
		}
	}
	if len(content) == 1 {
		return nil, refuse("the base has %v already, with all they need", names)
	}
	t, err := fileTree(content, b.Config.Epoch)
	if err != nil {
		return nil, fmt.Errorf("extension %s: %w", m.Metadata.Name, err)
	}
	return t, nil
}
