package main

import (
	"context"
	"crypto"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/imager"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/internal/progress"
	"github.com/kilnhq/kiln/kernel/gate"
	"github.com/kilnhq/kiln/kernel/kit"
	"github.com/kilnhq/kiln/kernel/sign"
	"github.com/kilnhq/kiln/rootfs"
)

type extensionBuild struct {
	extensionFlags

	base, arch, output string

	// where modules come from
	kernel, inTree []string
	ko             []string
	source, kit    string
	symvers        []string
	below          []string

	// what the manifest says
	manifest                                    string
	name, version, author, description, license string
	load, options, blacklist                    []string
	noLoad                                      bool
	requires, conflicts, firmware               []string

	signKey, signCert, signHash string
	noCompress, strict          bool

	recipe recipeFlags
}

func newExtensionBuild(g *globals) *cobra.Command {
	var f extensionBuild
	c := &cobra.Command{
		Use:   "build",
		Short: "Build a system extension of kernel modules or programs",
		Long: `Build a system extension, check it against the base, and store it. What is in it
besides kernel modules, a recipe says, as that of a base does ('kiln base build').
Kernel modules come from

  --module-source  a directory with a Makefile, or a DKMS package (.deb): they
                   are built with a kernel kit (see 'kiln kernel kit'), make and gcc
  --ko             files that were built before
  --module         the kernel package given with --kernel

Whatever other modules of the kernel package they need comes along, as far as the
base does not ship it.

Modules that were built are stripped of debug information, signed if a key is
given, and compressed as the base's kernel can undo it. What would fail on the
node fails here; see 'kiln extension check'.

The node loads the modules that --load and --module name when it starts, others
when a device or a program asks for them. A single module that nothing could ask
for is loaded, too.`,
		Example: `  kiln extension build --module-source v4l2loopback-dkms_0.12.7-2_all.deb --kit kit --base base -o v4l2loopback.oci
  kiln extension build --ko spl.ko --ko zfs.ko --name zfs --version 2.2.6 --base base -o zfs.oci
  kiln extension build --ko zfs.ko --below spl.oci --sign-key keys/key.pem --sign-cert keys/cert.pem -o zfs.oci
  kiln extension build --name wireguard --version 6.12.117 --module wireguard \
    --kernel debs/linux-image-6.12.117+deb12-cloud-amd64_6.12.117-1_amd64.deb --base base -o wireguard.oci`,
		Args: args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := g.reporter()
			if err != nil {
				return err
			}
			return f.run(c, r)
		},
	}
	s := c.Flags()
	s.StringVar(&f.base, "base", "base", "base the extension is for")
	s.StringVar(&f.arch, "arch", "", "architecture, if the base is for several: amd64 or arm64")
	s.StringVar(&f.source, "module-source", "", "source of modules to build: a directory or a DKMS package (.deb); its makefiles are run")
	s.StringVar(&f.kit, "kit", "kit", "kernel kit to build with, from 'kiln kernel kit'")
	s.StringArrayVar(&f.symvers, "symvers", nil, "Module.symvers of other modules, whose symbols the source uses (repeatable)")
	s.StringArrayVar(&f.ko, "ko", nil, "module that was built before (repeatable)")
	s.StringArrayVar(&f.kernel, "kernel", nil, "kernel package (.deb, repeatable) or a directory with boot/ and lib/modules/: the one the base was built from")
	s.StringArrayVar(&f.inTree, "module", nil, "module of the kernel package to add and to load at boot (repeatable)")
	s.StringVar(&f.recipe.file, "recipe", "", "recipe of further files")
	f.recipe.add(s)
	s.StringArrayVar(&f.firmware, "firmware", nil, "directory whose files become usr/lib/firmware (repeatable)")
	s.StringArrayVar(&f.below, "below", nil, "extension that this one builds upon, with symbols it uses (repeatable)")
	s.StringVar(&f.manifest, "manifest", "", "manifest.yaml to start from")
	s.StringVar(&f.name, "name", "", "name of the extension (default: that of the source or of the first module)")
	s.StringVar(&f.version, "version", "", "version of the extension (default: that of the source or of the first module)")
	s.StringVar(&f.author, "author", "", "who made it")
	s.StringVar(&f.description, "description", "", "what the extension is for (default: the first module's description)")
	s.StringVar(&f.license, "license", "", "SPDX license expression")
	s.StringArrayVar(&f.load, "load", nil, "module to load when the node starts, and its parameters: \"NAME [PARAMETER=VALUE…]\" (repeatable)")
	s.BoolVar(&f.noLoad, "no-load", false, "load no module when the node starts")
	s.StringArrayVar(&f.options, "option", nil, "parameters for whenever a module is loaded: \"NAME PARAMETER=VALUE…\" (repeatable)")
	s.StringArrayVar(&f.blacklist, "blacklist", nil, "module that no device may cause to be loaded (repeatable)")
	s.StringArrayVar(&f.requires, "requires", nil, "extension that must be in the image, too (repeatable)")
	s.StringArrayVar(&f.conflicts, "conflicts", nil, "extension that must not be in the image (repeatable)")
	s.StringVar(&f.signKey, "sign-key", "", "private key (PEM) to sign built modules with")
	s.StringVar(&f.signCert, "sign-cert", "", "certificate of the key (PEM or DER)")
	s.StringVar(&f.signHash, "sign-hash", "sha256", "digest that is signed: sha256, sha384 or sha512")
	s.BoolVar(&f.noCompress, "no-compress", false, "leave built modules uncompressed")
	s.BoolVar(&f.strict, "strict", false, "treat warnings as errors")
	f.add(s)
	s.StringVarP(&f.output, "output", "o", "", "what to write: FILE.tar for a tar that 'docker load' takes too, FILE.raw for a systemd-sysext, otherwise an OCI image layout")
	c.MarkFlagRequired("output")
	return c
}

func (f *extensionBuild) run(c *cobra.Command, r *progress.Reporter) error {
	ctx := c.Context()
	if f.source == "" && len(f.ko)+len(f.inTree) == 0 && f.recipe.file == "" {
		return usageError{fmt.Errorf("%s needs modules or files: --module-source, --ko, --module or --recipe", c.CommandPath())}
	}
	if len(f.inTree) > 0 && len(f.kernel) == 0 {
		return usageError{fmt.Errorf("--module needs --kernel, the package the base was built from")}
	}
	b, err := base.Open(f.base, f.arch)
	if err != nil {
		return err
	}
	req := imager.ExtensionRequest{Base: b, Kernel: f.kernel, InTree: f.inTree, Firmware: f.firmware, NoLoad: f.noLoad, Compress: !f.noCompress}
	for _, file := range f.ko {
		req.Built = append(req.Built, imager.BuiltModule{File: file})
	}
	if req.Signer, err = f.signer(); err != nil {
		return err
	}
	if req.Below, err = f.open(ctx, f.below, b.Config.Arch); err != nil {
		return err
	}
	if f.source != "" {
		tmp, err := os.MkdirTemp("", "kiln-extension-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		if err := f.compile(ctx, r, tmp, &req); err != nil {
			return err
		}
	}
	if err := f.describe(&req); err != nil {
		return err
	}
	var recipe *rootfs.Recipe
	src, done, err := f.recipe.sources(req.Manifest.Metadata.Version, b.Config.Epoch, r)
	if err != nil {
		return err
	}
	defer done()
	if f.recipe.file != "" {
		src.Arch = b.Config.Arch
		if recipe, err = rootfs.Load(f.recipe.file); err != nil {
			return err
		}
		if req.Root, err = recipe.Tree(ctx, src); err != nil {
			return err
		}
	}
	e, err := imager.BuildExtension(ctx, req)
	if err != nil {
		return err
	}
	logFindings(ctx, r, e.Verdict.Findings)
	if err := e.Verdict.Err(f.strict); err != nil {
		return err
	}
	if recipe != nil {
		layer, _, err := extensions.Layer(ctx, src.Cache, e.RootFS)
		if err != nil {
			return err
		}
		r.Logger().Info("extension", "squashfs", layer.Content.Size(), "limit", recipe.Limits.Squashfs)
		if err := recipe.CheckSize(e.RootFS, layer.Content.Size()); err != nil {
			return fmt.Errorf("%w: %w", imager.ErrRefused, err)
		}
	}
	if err := save(ctx, e.Extension, f.output, formOf(f.output), b.Config.Arch, b.Config.Epoch); err != nil {
		return err
	}
	r.Logger().Info("extension", "name", e.Manifest.Metadata.Name, "version", e.Manifest.Metadata.Version, "digest", e.Digest)
	_, err = fmt.Fprintln(c.OutOrStdout(), f.output)
	return err
}

// logFindings tells what is not an error.
func logFindings(ctx context.Context, r *progress.Reporter, list []gate.Finding) {
	for _, f := range list {
		if f.Severity != gate.Error {
			r.Logger().Log(ctx, f.Severity.Level(), f.String(), "code", f.Code)
		}
	}
}

// formOf is the form of an extension that a file's name stands for.
func formOf(name string) string {
	switch filepath.Ext(name) {
	case ".tar":
		return "tar"
	case ".raw":
		return "sysext"
	}
	return "layout"
}

func (f *extensionBuild) signer() (*sign.Signer, error) {
	if f.signKey == "" && f.signCert == "" {
		return nil, nil
	}
	if f.signKey == "" || f.signCert == "" {
		return nil, usageError{fmt.Errorf("--sign-key and --sign-cert belong together")}
	}
	hash, ok := map[string]crypto.Hash{"sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512}[f.signHash]
	if !ok {
		return nil, usageError{fmt.Errorf("--sign-hash %q, want sha256, sha384 or sha512", f.signHash)}
	}
	key, err := sign.LoadKey(f.signKey)
	if err != nil {
		return nil, err
	}
	cert, err := sign.LoadCertificate(f.signCert)
	if err != nil {
		return nil, err
	}
	return &sign.Signer{Key: key, Certificate: cert, Hash: hash}, nil
}

// compile builds the source's modules in the directory tmp.
func (f *extensionBuild) compile(ctx context.Context, r *progress.Reporter, tmp string, req *imager.ExtensionRequest) error {
	k, err := kit.Open(f.kit, req.Base.Config.Arch)
	if err != nil {
		return err
	}
	if k.Config.Release != req.Base.Config.Release {
		return fmt.Errorf("%w: kernel kit %s is for %s, the base has %s; make one with 'kiln kernel kit'",
			imager.ErrRefused, f.kit, k.Config.Release, req.Base.Config.Release)
	}
	symvers := f.symvers
	if len(req.Below) > 0 {
		file := filepath.Join(tmp, "below.symvers")
		data, err := imager.Symvers(ctx, req.Below)
		if err == nil {
			err = os.WriteFile(file, data, 0o600)
		}
		if err != nil {
			return err
		}
		symvers = append(symvers, file)
	}
	r.Logger().Info("build modules", "source", f.source, "kernel", k.Config.Release)
	built, err := k.Compile(ctx, kit.Job{Source: f.source, Output: filepath.Join(tmp, "built"), Symvers: symvers, Log: io.Discard})
	if err != nil {
		return err
	}
	for _, w := range built.Warnings {
		r.Logger().Warn(w)
	}
	for _, m := range built.Modules {
		req.Built = append(req.Built, imager.BuiltModule{File: m.Path, Dest: dest(m.Dest)})
	}
	req.Manifest.Metadata.Name, req.Manifest.Metadata.Version = extensionName(built.Name), built.Version
	return nil
}

// dest is where a module goes that its source wants elsewhere: below updates/,
// which modprobe prefers to the kernel's own modules, as DKMS does.
func dest(want string) string {
	want = strings.Trim(want, "/")
	if want == "" || want == "extra" || strings.HasPrefix(want, "updates") {
		return ""
	}
	return "updates/" + strings.TrimPrefix(want, "kernel/")
}

// extensionName makes a name of an extension out of another one.
func extensionName(s string) string {
	return strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '.', r == '-', r == '_':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, s), ".-_")
}

// describe makes the manifest: what the source says, over it the file given, and
// the flags over all.
func (f *extensionBuild) describe(req *imager.ExtensionRequest) error {
	m := &req.Manifest
	if f.manifest != "" {
		data, err := os.ReadFile(f.manifest)
		if err != nil {
			return err
		}
		if *m, err = extensions.ParseManifest(f.manifest, data); err != nil {
			return err
		}
	}
	for to, from := range map[*string]string{
		&m.Metadata.Name: f.name, &m.Metadata.Version: f.version, &m.Metadata.Author: f.author,
		&m.Metadata.Description: f.description, &m.Metadata.License: f.license,
	} {
		if from != "" {
			*to = from
		}
	}
	m.Requires, m.Conflicts = append(m.Requires, f.requires...), append(m.Conflicts, f.conflicts...)
	m.Kernel.Blacklist = append(m.Kernel.Blacklist, f.blacklist...)
	for _, list := range []struct {
		from []string
		to   *[]extensions.Module
	}{{f.load, &m.Kernel.Modules}, {f.options, &m.Kernel.Options}} {
		for _, word := range list.from {
			name, parameters, _ := strings.Cut(strings.TrimSpace(word), " ")
			*list.to = append(*list.to, extensions.Module{Name: name, Parameters: strings.TrimSpace(parameters)})
		}
	}
	return nil
}
