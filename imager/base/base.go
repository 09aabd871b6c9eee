// Package base reads and writes the base of an image: the kernel, the init
// cpio, the root file system and the boot loaders, built once and never changed
// by composing.
//
// A base is an OCI image layout with one manifest per architecture. Each part
// is one layer, stored as it is, and named by the annotation
// org.opencontainers.image.title; base.json among them describes the rest. The
// digest of the manifest is the identity of the base.
package base

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/ocilayout"
)

// PartType is the media type of the layers of a base.
const PartType types.MediaType = "application/vnd.kiln.base.part.v1"

const titleKey = "org.opencontainers.image.title"

// Names of the parts.
const (
	ConfigJSON     = "base.json"
	Vmlinuz        = "vmlinuz"
	Init           = "init.cpio.zst"
	RootFS         = "rootfs.sqsh"
	KernelConfig   = "kernel/config"
	SystemMap      = "kernel/System.map"
	Symvers        = "kernel/Module.symvers"   // if the kernel's headers were at hand
	Certificates   = "kernel/certificates.pem" // X.509, of the keys whose signatures of modules the kernel accepts
	ModuleFacts    = "kernel/modules.json.zst" // of the modules in the root file system
	ModulesOrder   = "kernel/modules.order"
	ModulesBuiltin = "kernel/modules.builtin"
	BuiltinModinfo = "kernel/modules.builtin.modinfo"
	Files          = "files.json.zst" // paths in the root file system
	SBOM           = "sbom.spdx.json"
	Stub           = "boot/systemd-stub.efi"
	Loader         = "boot/systemd-boot.efi"
	GrubBoot       = "boot/grub/boot.img"
	GrubCore       = "boot/grub/core.img"
	GrubCD         = "boot/grub/eltorito.img"
	maxConfig      = 1 << 20
)

// Config is the content of base.json.
type Config struct {
	Version  int      `json:"version"` // of this format: 1
	Arch     string   `json:"arch"`
	Release  string   `json:"release"` // of the kernel, as uname -r
	Epoch    int64    `json:"epoch"`   // time of everything in the base, seconds since 1970
	Kiln     string   `json:"kiln"`    // version of the tool that built it
	Packages []string `json:"packages,omitempty"`
}

// Part is one file of a base.
type Part struct {
	Name    string
	Content extent.Source
	SHA256  string // lower-case hexadecimal
}

// Base is a base that has been opened.
type Base struct {
	Config Config
	Digest string // of the manifest, "sha256:…"
	parts  map[string]Part
	layout *ocilayout.Manifest

	modules func() (*Modules, error)
}

// Errors returned, wrapped, by Open and Part.
var (
	ErrFormat = errors.New("not a kiln base")
	ErrPart   = errors.New("the base has no such part")
)

// Open opens the base for arch in the OCI image layout at path, or the only one
// if arch is "". Contents are read later; their sizes are checked now.
func Open(path, arch string) (*Base, error) {
	b, err := open(path, arch)
	if err != nil {
		return nil, fmt.Errorf("base %s: %w", path, err)
	}
	return b, nil
}

func open(path, arch string) (*Base, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("%w; build one with 'kiln base build'", err)
	}
	m, err := ocilayout.Open(path, arch)
	if errors.Is(err, ocilayout.ErrArch) {
		return nil, fmt.Errorf("%w; give --arch, or build the base of a kernel package for %s", layoutError(err), arch)
	}
	if err != nil {
		return nil, layoutError(err)
	}
	b := &Base{Digest: m.Digest.String(), parts: map[string]Part{}, layout: m}
	b.modules = sync.OnceValues(b.readModules)
	for _, l := range m.Layers {
		name := l.Annotations[titleKey]
		if l.MediaType != PartType || name == "" {
			return nil, fmt.Errorf("%w: layer %s is of type %s, want %s", ErrFormat, l.Digest, l.MediaType, PartType)
		}
		src, err := m.Blob(l)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, layoutError(err))
		}
		b.parts[name] = Part{Name: name, Content: src, SHA256: l.Digest.Hex}
	}
	part, err := b.Part(ConfigJSON)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	config, err := part.Bytes(maxConfig)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(config, &b.Config); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrFormat, ConfigJSON, err)
	}
	if b.Config.Version != 1 {
		return nil, fmt.Errorf("%w: %s: version %d, want 1", ErrFormat, ConfigJSON, b.Config.Version)
	}
	if arch != "" && b.Config.Arch != arch {
		return nil, fmt.Errorf("%w for %s: it is for %s", ErrFormat, arch, b.Config.Arch)
	}
	return b, nil
}

// Layout returns the files of an OCI image layout with this base alone, by their
// paths.
func (b *Base) Layout() (map[string]extent.Source, error) { return b.layout.Files(b.Config.Arch) }

// Part returns the part of the given name. A missing one is ErrPart.
func (b *Base) Part(name string) (Part, error) {
	p, ok := b.parts[name]
	if !ok {
		return Part{}, fmt.Errorf("%w: %s", ErrPart, name)
	}
	return p, nil
}

// Bytes reads the whole part, which may have at most limit bytes, and checks
// its digest.
func (p Part) Bytes(limit int64) ([]byte, error) {
	if n := p.Content.Size(); n > limit {
		return nil, fmt.Errorf("%w: %s: %d bytes, want at most %d", ErrFormat, p.Name, n, limit)
	}
	data := make([]byte, p.Content.Size())
	if _, err := io.ReadFull(extent.Reader(p.Content), data); err != nil {
		return nil, fmt.Errorf("%s: %w", p.Name, err)
	}
	return data, p.compare(context.Background(), extent.Bytes(data))
}

// layoutError marks what is wrong with the layout as ErrFormat.
func layoutError(err error) error {
	if errors.Is(err, ocilayout.ErrFormat) {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return err
}
