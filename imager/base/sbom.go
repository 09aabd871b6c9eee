package base

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/kernel"
	"github.com/kilnhq/kiln/rootfs/sbom"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// sbom lists what the base is made of: the packages that the recipe and the boot
// loaders come from, the kernel, and what the programs in the root file system
// were built from.
func (r Request) sbom(ctx context.Context, k *kernel.Package, root *tree.Tree) (extent.Source, error) {
	packages, err := sbom.Scan(ctx, root)
	if err != nil {
		return nil, fmt.Errorf("SBOM: %w", err)
	}
	names := slices.Clone(r.Recipe.Firmware.Packages)
	for _, p := range r.Recipe.Packages {
		names = append(names, p.Name)
	}
	if c := r.Recipe.Certificates.Package; c != "" {
		names = append(names, c)
	}
	names = append(names, efiPackage)
	if r.GrubCore != "" {
		names = append(names, grubPackage)
	}
	for _, name := range names {
		d, err := r.Sources.OpenPackage(name)
		if err != nil {
			return nil, fmt.Errorf("SBOM: %w", err)
		}
		packages = append(packages, sbom.Deb(d.Package, d.Version, d.Architecture))
	}
	// A kernel package calls itself NAME_VERSION.
	if name, version, ok := strings.Cut(k.Source, "_"); ok {
		packages = append(packages, sbom.Deb(name, version, k.Arch))
	} else {
		packages = append(packages, sbom.Package{Name: "linux", Version: k.Release, Comment: "from " + k.Source})
	}
	digest, err := root.Digest()
	if err != nil {
		return nil, err
	}
	doc := sbom.Document{Name: "kiln base, Linux " + k.Release, ID: "base:" + hex.EncodeToString(digest[:]), Created: r.Sources.ModTime, Tool: "kiln-" + r.Version, Packages: packages}
	data, err := doc.Encode()
	return extent.Bytes(data), err
}
