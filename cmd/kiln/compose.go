package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/imager"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/internal/progress"
	"github.com/kilnhq/kiln/profiles"
)

// composeFlags are the flags of commands that compose.
type composeFlags struct {
	extensionFlags

	base       string
	extensions []string
	images     []string
	kernelArgs []string
	config     string
	cache      string
	certs      []string
	set        []string
	strict     bool

	// What an installer image has of its own.
	profile string
	epoch   int64
}

func (f *composeFlags) add(c *cobra.Command) {
	f.extensionFlags.add(c.Flags())
	c.Flags().StringVar(&f.base, "base", "base", "OCI image layout of the base, from 'kiln base build'")
	c.Flags().StringArrayVar(&f.extensions, "extension", nil, "system extension: a directory, tar, squashfs or OCI image layout, or HOST/NAME:TAG in a registry (repeatable; lowest layer first)")
	c.Flags().StringArrayVar(&f.images, "image-cache", nil, "container images that the node has without a network: [NAME=]PATH of an OCI image layout, a directory or tar, or of an archive from docker save (repeatable)")
	c.Flags().StringArrayVar(&f.kernelArgs, "kernel-arg", nil, "kernel argument to append (repeatable)")
	c.Flags().StringArrayVar(&f.set, "set", nil, setUsage)
	c.Flags().StringArrayVar(&f.certs, "module-certificate", nil, moduleCertificateUsage)
	c.Flags().BoolVar(&f.strict, "strict", false, "refuse what 'kiln extension check' warns of")
	c.Flags().StringVar(&f.cache, "cache", "", "directory of the cache of compressed layers (default: kiln in the user's cache directory)")
}

// use takes from an installer image what was not said otherwise.
func (f *composeFlags) use(c *cobra.Command, dir string) error {
	s, err := imager.OpenSource(dir)
	if err != nil {
		return err
	}
	f.profile, f.epoch, f.strict = s.Profile, s.Epoch, f.strict || s.Strict
	if !c.Flags().Changed("base") {
		f.base = s.Base
	}
	if !c.Flags().Changed("cache") {
		f.cache = s.Cache
	}
	f.extensions = slices.Concat(s.Extensions, f.extensions)
	if s.ImageCache != "" {
		f.images = slices.Insert(f.images, 0, s.ImageCache)
	}
	f.kernelArgs = slices.Concat(s.KernelArgs, f.kernelArgs)
	f.certs = slices.Concat(s.Certificates, f.certs)
	return nil
}

// load loads a profile for the given architecture or, if that is "", for that of
// the base, if it has one only. It comes first: the rest of the profile, and what
// --set says, is to be understood with it in mind.
func (f *composeFlags) load(name, arch string) (*profiles.Profile, error) {
	if arch == "" {
		b, err := base.Open(f.base, "")
		if err != nil { // there are several, or request says what is wrong
			return loadProfile(name, f.set)
		}
		arch = b.Config.Arch
	}
	return loadProfile(name, slices.Concat([]string{"arch=" + arch}, f.set))
}

// request opens what a composed image of the profile is made of. The caller must
// call done when it is no longer needed.
func (f *composeFlags) request(ctx context.Context, r *progress.Reporter, p *profiles.Profile) (req imager.Request, done func(), err error) {
	b, err := base.Open(f.base, p.Arch)
	if err != nil {
		return req, nil, err
	}
	req = imager.Request{Profile: p, Base: b, KernelArgs: f.kernelArgs, Version: version, Strict: f.strict, Log: r.Logger()}
	if req.Epoch, err = epoch(cmp.Or(f.epoch, b.Config.Epoch)); err != nil {
		return req, nil, err
	}
	if f.config != "" {
		if p.MachineConfig, err = validConfig(ctx, f.config); err != nil {
			return req, nil, err
		}
	}
	if req.Extensions, err = f.open(ctx, slices.Concat(p.Extensions, f.extensions), p.Arch); err != nil {
		return req, nil, err
	}
	if req.ImageCache, err = openImages(ctx, slices.Concat(p.ImageCache, f.images), p.Arch); err != nil {
		return req, nil, err
	}
	if req.Certificates, err = loadCertificates(f.certs); err != nil {
		return req, nil, err
	}
	if p.UKI.Splash != "" {
		if req.Splash, err = readLimited(p.UKI.Splash, maxSplash); err != nil {
			return req, nil, fmt.Errorf("uki.splash: %w", err)
		}
	}
	req.Cache, done, err = cacheDir(f.cache)
	return req, done, err
}

// maxSplash bounds the picture in a UKI, in bytes.
const maxSplash = 16 << 20
