package extensions

import (
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"

	"github.com/kilnhq/kiln/internal/strictyaml"
)

// ManifestVersion is the version of the manifest format that is read and
// written.
const ManifestVersion = "v1alpha1"

// Manifest is the manifest.yaml of a system extension. Version, metadata and
// compatibility are Talos' format; the rest is kiln's and may be left out.
type Manifest struct {
	Version  string   `yaml:"version" json:"version"`
	Metadata Metadata `yaml:"metadata" json:"metadata"`
	Kernel   Kernel   `yaml:"kernel,omitempty" json:"kernel,omitzero"`

	// Requires names the extensions that must be in the image too, and
	// Conflicts those that must not.
	Requires  []string `yaml:"requires,omitempty" json:"requires,omitempty"`
	Conflicts []string `yaml:"conflicts,omitempty" json:"conflicts,omitempty"`

	// Replaces are paths, relative to the root, that this extension may have
	// though the base or an extension below it has them: a file, or a directory
	// with all that is in it.
	Replaces []string `yaml:"replaces,omitempty" json:"replaces,omitempty"`
}

// Metadata says what an extension is.
type Metadata struct {
	Name          string        `yaml:"name" json:"name"`
	Version       string        `yaml:"version" json:"version"`
	Author        string        `yaml:"author,omitempty" json:"author,omitempty"`
	Description   string        `yaml:"description,omitempty" json:"description,omitempty"`
	License       string        `yaml:"license,omitempty" json:"license,omitempty"` // SPDX expression
	Compatibility Compatibility `yaml:"compatibility,omitempty" json:"compatibility,omitzero"`
	ExtraInfo     string        `yaml:"extraInfo,omitempty" json:"extraInfo,omitempty"`
}

// Compatibility is kept for Talos; kiln checks the modules themselves.
type Compatibility struct {
	Talos VersionRange `yaml:"talos,omitempty" json:"talos,omitzero"`
}

// VersionRange is a range of versions such as ">= v1.5.0".
type VersionRange struct {
	Version string `yaml:"version,omitempty" json:"version,omitempty"`
}

// Kernel is what an extension needs of the kernel and asks of the node.
type Kernel struct {
	Release   string   `yaml:"release,omitempty" json:"release,omitempty"`     // as uname -r; empty is any
	Arch      string   `yaml:"arch,omitempty" json:"arch,omitempty"`           // amd64 or arm64; empty is any
	Modules   []Module `yaml:"modules,omitempty" json:"modules,omitempty"`     // to load at boot, in this order
	Options   []Module `yaml:"options,omitempty" json:"options,omitempty"`     // parameters for whenever a module is loaded
	Blacklist []string `yaml:"blacklist,omitempty" json:"blacklist,omitempty"` // modules no alias may load
}

// Module is a kernel module and its parameters.
type Module struct {
	Name       string `yaml:"name" json:"name"`
	Parameters string `yaml:"parameters,omitempty" json:"parameters,omitempty"` // as on modprobe's command line
}

// ErrManifest is wrapped by the errors for a manifest that is well-formed YAML
// but not a valid manifest.
var ErrManifest = errors.New("invalid extension manifest")

var (
	nameRE   = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$`)
	moduleRE = regexp.MustCompile(`^[A-Za-z0-9_-]{1,55}$`) // MODULE_NAME_LEN
)

// ParseManifest decodes and validates a manifest. file stands for it in errors.
func ParseManifest(file string, data []byte) (Manifest, error) {
	var m Manifest
	if err := strictyaml.Decode(file, data, &m); err != nil {
		return Manifest{}, err
	}
	var errs []error
	for _, f := range m.faults() {
		line, column := strictyaml.Find(data, f.key)
		errs = append(errs, fmt.Errorf("%s:%d:%d: %w", file, line, column, f))
	}
	if len(errs) > 0 {
		return Manifest{}, errors.Join(errs...)
	}
	return m, nil
}

// fault is a value that a manifest may not have.
type fault struct{ key, text string }

func (f fault) Error() string { return fmt.Sprintf("%v: %s %s", ErrManifest, f.key, f.text) }
func (f fault) Unwrap() error { return ErrManifest }

// Validate says what is wrong with m, or nil.
func (m *Manifest) Validate() error {
	var errs []error
	for _, f := range m.faults() {
		errs = append(errs, f)
	}
	return errors.Join(errs...)
}

func (m *Manifest) faults() []fault {
	var all []fault
	bad := func(key, format string, args ...any) {
		all = append(all, fault{key, fmt.Sprintf(format, args...)})
	}
	if m.Version != ManifestVersion {
		bad("version", "%q, want %q", m.Version, ManifestVersion)
	}
	if !nameRE.MatchString(m.Metadata.Name) {
		bad("metadata.name", "%q, want lower-case letters, digits, '.', '_' and '-', at most 64", m.Metadata.Name)
	}
	if v := m.Metadata.Version; v == "" || len(v) > 128 || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' || r == ',' || r == '"' }) {
		bad("metadata.version", "%q, want one word", m.Metadata.Version)
	}
	m.Kernel.validate(bad)
	for _, list := range []struct {
		key   string
		names []string
	}{{"requires", m.Requires}, {"conflicts", m.Conflicts}} {
		for i, name := range list.names {
			switch {
			case !nameRE.MatchString(name):
				bad(at(list.key, i), "%q, want the name of an extension", name)
			case name == m.Metadata.Name:
				bad(at(list.key, i), "%q is this extension", name)
			}
		}
	}
	for i, name := range m.Replaces {
		if name == "." || !fs.ValidPath(name) {
			bad(at("replaces", i), "%q, want a path relative to the root, without . and ..", name)
		}
	}
	return all
}

func (k *Kernel) validate(bad func(key, format string, args ...any)) {
	if k.Arch != "" && k.Arch != "amd64" && k.Arch != "arm64" {
		bad("kernel.arch", "%q, want amd64 or arm64", k.Arch)
	}
	if strings.ContainsFunc(k.Release, func(r rune) bool { return r <= ' ' || r == '/' || r > '~' }) {
		bad("kernel.release", "%q, want one word, as uname -r prints it", k.Release)
	}
	for _, list := range []struct {
		key     string
		modules []Module
	}{{"kernel.modules", k.Modules}, {"kernel.options", k.Options}} {
		for i, mod := range list.modules {
			if !moduleRE.MatchString(mod.Name) {
				bad(at(list.key, i)+".name", "%q, want a module's name without path and .ko", mod.Name)
			}
			if strings.ContainsFunc(mod.Parameters, control) {
				bad(at(list.key, i)+".parameters", "%q, want one line", mod.Parameters)
			}
		}
	}
	for i, mod := range k.Options {
		if strings.TrimSpace(mod.Parameters) == "" {
			bad(at("kernel.options", i)+".parameters", "is empty, want parameters for %s", mod.Name)
		}
	}
	for i, name := range k.Blacklist {
		if !moduleRE.MatchString(name) {
			bad(at("kernel.blacklist", i), "%q, want a module's name without path and .ko", name)
		}
	}
}

// at is the key of element i of a list.
func at(key string, i int) string { return fmt.Sprintf("%s[%d]", key, i) }
