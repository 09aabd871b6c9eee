// Package imager composes images: a profile, a base and system extensions
// become boot assets, partitions, a disk, and the file or stream it is written
// to. Nothing is written, mounted or executed on the way; Compose returns an
// extent map whose contents still are in the base and in the cache.
package imager

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/imager/arch"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/imager/cache"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/imager/imagecache"
	"github.com/kilnhq/kiln/profiles"
)

// ErrRefused is wrapped by errors for inputs that do not fit together.
var ErrRefused = errors.New("refused")

// Request is what to compose.
type Request struct {
	Profile    *profiles.Profile
	Base       *base.Base
	Extensions []*extensions.Extension // lowest layer first
	KernelArgs []string                // after the profile's
	Cache      cache.Dir               // of compressed layers

	// Splash is the content of the profile's uki.splash.
	Splash []byte

	// ImageCache has container images for the node; nil is none.
	ImageCache *imagecache.Cache

	// Certificates are those whose keys the kernel will trust besides its own.
	// They are not put into the image: the machine's firmware must hold them.
	Certificates []*x509.Certificate

	// Instance tells apart what is otherwise the same: the identifiers of the disk
	// derive from it, too. A machine with two disks must find the right one.
	Instance string

	// Tool is kiln itself, for installer and ISO images.
	Tool extent.Source

	Strict  bool   // refuse what Check only warns of
	Version string // of kiln
	Epoch   int64  // time of everything that is made, seconds since 1970
	Log     *slog.Logger
}

// slowUKI is the size in bytes from which a unified kernel image is a burden for
// firmware: it reads a few MB/s on some machines, and all copies of the image
// that are made on the way are in memory at once.
const slowUKI = 128 * mib

// Image is a composed disk.
type Image struct {
	Disk  *extent.Map
	Table *gpt.Table

	request Request
	id      identity
	assets  *assets // of the disk
	inRAM   *assets // of what has no disk: all layers are in the initramfs
	index   *cache.Entry
	warned  sync.Once // that an ISO image does not install; it is laid out more than once

	converted bool // from an image that was there
}

// Compose makes the disk image of a request. It reads what it must check, and
// compresses extensions that are not in the cache; everything else waits for
// the caller to write the disk.
func Compose(ctx context.Context, r Request) (*Image, error) {
	machine, err := arch.For(r.Profile.Arch)
	if err != nil {
		return nil, err
	}
	id, err := r.identity()
	if err != nil {
		return nil, err
	}
	if r.Base.Config.Arch != r.Profile.Arch {
		return nil, refuse("profile %s is for %s, the base for %s", r.Profile.Name, r.Profile.Arch, r.Base.Config.Arch)
	}
	verdict, err := Check(ctx, CheckRequest{Base: r.Base, Profile: r.Profile, Extensions: r.Extensions, KernelArgs: r.KernelArgs, Certificates: r.Certificates})
	if err != nil {
		return nil, err
	}
	if err := verdict.Err(r.Strict); err != nil {
		return nil, err
	}
	for _, f := range verdict.Findings {
		r.Log.Log(ctx, f.Severity.Level(), f.String(), "code", f.Code)
	}
	stack, err := stackLayers(ctx, r, verdict.modules)
	if err != nil {
		return nil, err
	}
	inRAM, err := bootAssets(r, stack)
	if err != nil {
		return nil, err
	}
	assets := inRAM
	if r.Profile.Disk.Layers == profiles.OnBoot {
		onBoot, err := stack.onBoot(ctx, r, verdict.modules)
		if err != nil {
			return nil, err
		}
		if assets, err = bootAssets(r, onBoot); err != nil {
			return nil, err
		}
	}
	parts, err := partitions(r, machine, id, assets)
	if err != nil {
		return nil, err
	}
	if n := assets.uki.Size(); n > slowUKI && r.Profile.Disk.BootLoader != profiles.BIOS {
		r.Log.Warn(fmt.Sprintf("the UKI has %d MiB: some firmware loads it slowly, and it wants %d MiB of memory; set disk.layers: boot, or leave extensions out", n/mib, (4*n)/mib+140))
	}
	disk, table, err := assemble(r, id, parts)
	if err != nil {
		return nil, err
	}
	return &Image{Disk: disk, Table: table, request: r, id: id, assets: assets, inRAM: inRAM, index: stack.index}, nil
}

// identity is the namespace from which all identifiers of an image derive: a
// digest of everything the disk is a function of, in whatever form it is written.
func (r Request) identity() (identity, error) {
	profile := *r.Profile
	profile.Output, profile.Machine = profiles.Output{}, profiles.Machine{}
	profile.Extensions, profile.ImageCache = nil, nil // where they lie does not matter, what they are is below
	in := struct {
		Profile    *profiles.Profile
		Base       string
		Extensions []string
		KernelArgs []string
		Version    string
		Epoch      int64
		Splash     []byte
		Instance   string
		ImageCache string `json:",omitempty"`
	}{Splash: r.Splash, Instance: r.Instance, Profile: &profile, Base: r.Base.Digest, KernelArgs: r.KernelArgs, Version: r.Version, Epoch: r.Epoch}
	for _, e := range r.Extensions {
		in.Extensions = append(in.Extensions, e.Digest)
	}
	if r.ImageCache != nil {
		in.ImageCache = r.ImageCache.Digest()
	}
	data, err := json.Marshal(in)
	if err != nil {
		return identity{}, err
	}
	return identity(sha256.Sum256(data)), nil
}

type identity [sha256.Size]byte

// uuid derives the identifier of what (RFC 9562, version 8: SHA-256 in the way
// of version 5).
func (id identity) uuid(what string) uuid.UUID {
	return uuid.NewHash(sha256.New(), uuid.UUID(id[:16]), append(id[16:], what...), 8)
}

// volumeID derives the 32-bit serial number of a FAT file system.
func (id identity) volumeID(what string) uint32 {
	u := id.uuid(what)
	return uint32(u[0])<<24 | uint32(u[1])<<16 | uint32(u[2])<<8 | uint32(u[3])
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))
}
