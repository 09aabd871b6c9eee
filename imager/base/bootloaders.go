package base

import (
	"context"
	"fmt"

	"github.com/kilnhq/kiln/imager/arch"
	"github.com/kilnhq/kiln/imager/extent"
)

// Debian packages with the boot loaders.
const (
	efiPackage  = "systemd-boot-efi"
	grubPackage = "grub-pc-bin"
	efiDir      = "usr/lib/systemd/boot/efi"
	grubDir     = "usr/lib/grub/i386-pc"
)

// bootLoaders are the parts that firmware starts: systemd-boot and its stub
// and, where there is a BIOS, GRUB.
func (r Request) bootLoaders(ctx context.Context) (map[string]extent.Source, error) {
	a, err := arch.For(r.Sources.Arch)
	if err != nil {
		return nil, err
	}
	parts := map[string]extent.Source{}
	take := func(pkg string, files map[string]string) error {
		d, err := r.Sources.OpenPackage(pkg)
		if err != nil {
			return fmt.Errorf("boot loaders: %w", err)
		}
		t, err := d.Tree(ctx, func(name string) bool { return files[name] != "" })
		if err != nil {
			return err
		}
		for name, part := range files {
			ino := t.Lookup(name)
			if ino == nil || !ino.Mode.IsRegular() {
				return fmt.Errorf("%s: no file /%s, want it for the boot loaders", d.Name(), name)
			}
			parts[part] = ino.Content
		}
		return nil
	}
	if err := take(efiPackage, map[string]string{efiDir + "/" + a.Stub: Stub, efiDir + "/" + a.Loader: Loader}); err != nil {
		return nil, err
	}
	if !a.BIOS {
		return parts, nil
	}
	if err := take(grubPackage, map[string]string{grubDir + "/boot.img": GrubBoot}); err != nil {
		return nil, err
	}
	if parts[GrubCore], err = extent.File(r.GrubCore); err != nil {
		return nil, fmt.Errorf("GRUB core image: %w", err)
	}
	if r.GrubCD != "" {
		if parts[GrubCD], err = extent.File(r.GrubCD); err != nil {
			return nil, fmt.Errorf("GRUB's boot program of a CD: %w", err)
		}
	}
	return parts, nil
}
