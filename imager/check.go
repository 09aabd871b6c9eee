package imager

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/extensions"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/kernel/depmod"
	"github.com/kilnhq/kiln/kernel/gate"
	"github.com/kilnhq/kiln/profiles"
)

// FindingsError says which modules would not work.
type FindingsError struct{ Findings []gate.Finding }

// Error returns one line for each finding.
func (e *FindingsError) Error() string {
	lines := make([]string, len(e.Findings))
	for i, f := range e.Findings {
		lines[i] = fmt.Sprintf("%s [%s]", f, f.Code)
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes the error ErrRefused.
func (e *FindingsError) Unwrap() error { return ErrRefused }

// Verdict is what checking extensions with a base has found.
type Verdict struct {
	Findings []gate.Finding

	modules [][]depmod.Module // of each extension, with paths below usr/lib/modules/RELEASE
}

// Err returns a FindingsError with the findings that are errors, or, if strict,
// warnings; nil if there are none.
func (v *Verdict) Err(strict bool) error {
	var bad []gate.Finding
	for _, f := range v.Findings {
		if f.Severity == gate.Error || strict && f.Severity == gate.Warning {
			bad = append(bad, f)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return &FindingsError{bad}
}

// CheckRequest is what to check.
type CheckRequest struct {
	Base       *base.Base
	Extensions []*extensions.Extension // lowest layer first

	// Profile may be nil: then nothing is asked of the platform's drivers, and
	// signatures matter only if the kernel itself insists on them.
	Profile    *profiles.Profile
	KernelArgs []string // after the profile's

	// Certificates are those whose keys the kernel will trust besides its own:
	// what the machine's firmware holds.
	Certificates []*x509.Certificate
}

// Check judges extensions, in this order, on a base: whether they can be stacked
// at all, which is an error, then all that package gate finds out about their
// modules and about the drivers the platform needs.
func Check(ctx context.Context, r CheckRequest) (*Verdict, error) {
	b := r.Base
	files, err := b.Files()
	if err != nil {
		return nil, err
	}
	if err := extensions.Check(extensions.Target{Release: b.Config.Release, Arch: b.Config.Arch, Files: files}, r.Extensions); err != nil {
		return nil, err
	}
	system, err := newSystem(b, files, r.Extensions)
	if err != nil {
		return nil, err
	}
	trusted, err := b.Trusted()
	if err != nil {
		return nil, err
	}
	trusted = append(trusted, r.Certificates...)
	args := r.KernelArgs
	if r.Profile != nil {
		args = slices.Concat(r.Profile.Kernel.CommandLine(), args)
	}
	system.SignatureRequired = gate.RequiredBy(system.Config, args)
	v := &Verdict{}
	layers, err := newLayers(ctx, r.Extensions, trusted)
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		v.modules = append(v.modules, indexable(b, l.Modules))
	}
	v.Findings = gate.Check(system, layers)
	if r.Profile != nil {
		var devices []gate.Device
		for _, d := range r.Profile.Devices {
			devices = append(devices, gate.Device(d))
		}
		v.Findings = append(v.Findings, gate.Unreachable(system, layers, devices)...)
	}
	return v, nil
}

// newSystem describes the base to the gate, with the files of all extensions.
func newSystem(b *base.Base, files map[string]fs.FileMode, all []*extensions.Extension) (*gate.System, error) {
	facts, err := b.Modules()
	if err != nil {
		return nil, err
	}
	in := gate.Files{SystemMap: facts.SystemMap, Order: facts.Order, Builtin: facts.Builtin, BuiltinModinfo: facts.BuiltinModinfo}
	for _, f := range []struct {
		part string
		data *[]byte
	}{{base.KernelConfig, &in.Config}, {base.Symvers, &in.Symvers}} {
		part, err := b.Part(f.part)
		if errors.Is(err, base.ErrPart) {
			continue
		}
		if err == nil {
			*f.data, err = part.Bytes(maxKernelFile)
		}
		if err != nil {
			return nil, err
		}
	}
	s, err := gate.NewSystem(b.Config.Release, b.Config.Arch, in, facts.Modules)
	if err != nil {
		return nil, fmt.Errorf("base: %w", err)
	}
	s.Files = func(name string) bool {
		if _, ok := files[name]; ok {
			return true
		}
		for _, e := range all {
			if e.RootFS.Lookup(name) != nil {
				return true
			}
		}
		return false
	}
	const firmware = "usr/lib/firmware/"
	for name := range files {
		if rest, ok := strings.CutPrefix(name, firmware); ok {
			s.Firmware = append(s.Firmware, rest)
		}
	}
	for _, e := range all {
		for name := range e.RootFS.All() {
			if rest, ok := strings.CutPrefix(name, firmware); ok {
				s.Firmware = append(s.Firmware, rest)
			}
		}
	}
	return s, nil
}

// maxKernelFile bounds the configuration and the list of symbols of a kernel.
const maxKernelFile = 64 << 20

// newLayers describes extensions to the gate.
func newLayers(ctx context.Context, all []*extensions.Extension, trusted []*x509.Certificate) ([]gate.Layer, error) {
	requests := func(list []extensions.Module) (out []gate.Request) {
		for _, m := range list {
			out = append(out, gate.Request{Name: m.Name, Parameters: m.Parameters})
		}
		return out
	}
	layers := make([]gate.Layer, len(all))
	for i, e := range all {
		modules, err := e.Modules(ctx, trusted)
		if err != nil {
			return nil, err
		}
		k := e.Manifest.Kernel
		layers[i] = gate.Layer{Name: e.String(), Modules: modules, Load: requests(k.Modules), Options: requests(k.Options)}
	}
	return layers, nil
}

// indexable returns the modules that belong into the index.
func indexable(b *base.Base, modules []gate.Module) []depmod.Module {
	var out []depmod.Module
	for _, m := range modules {
		if rel, ok := strings.CutPrefix(m.Path, extensions.ModulesDir+"/"+b.Config.Release+"/"); ok {
			out = append(out, depmod.Module{Path: rel, Info: m.Info})
		}
	}
	return out
}
