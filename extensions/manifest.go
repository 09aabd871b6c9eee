package extensions

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/kilnhq/kiln/internal/strictyaml"
)

// ManifestVersion is the version of the manifest format that is read and
// written.
const ManifestVersion = "v1alpha1"

// Manifest is the manifest.yaml of a system extension. Version, metadata and
// compatibility are Talos' format; kernel is kiln's and may be left out.
type Manifest struct {
	Version  string   `yaml:"version" json:"version"`
	Metadata Metadata `yaml:"metadata" json:"metadata"`
	Kernel   Kernel   `yaml:"kernel,omitempty" json:"kernel,omitzero"`
}

// Metadata says what an extension is.
type Metadata struct {
	Name          string        `yaml:"name" json:"name"`
	Version       string        `yaml:"version" json:"version"`
	Author        string        `yaml:"author,omitempty" json:"author,omitempty"`
	Description   string        `yaml:"description,omitempty" json:"description,omitempty"`
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
	Release string   `yaml:"release,omitempty" json:"release,omitempty"` // as uname -r; empty is any
	Modules []Module `yaml:"modules,omitempty" json:"modules,omitempty"` // to load at boot, in this order
}

// Module is a kernel module to load when the node starts.
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
	if err := m.Validate(); err != nil {
		return Manifest{}, fmt.Errorf("%s: %w", file, err)
	}
	return m, nil
}

// Validate says what is wrong with m, or nil.
func (m *Manifest) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: %s", ErrManifest, fmt.Sprintf(format, args...)))
	}
	if m.Version != ManifestVersion {
		bad("version %q, want %q", m.Version, ManifestVersion)
	}
	if !nameRE.MatchString(m.Metadata.Name) {
		bad("metadata.name %q, want lower-case letters, digits, '.', '_' and '-', at most 64", m.Metadata.Name)
	}
	if m.Metadata.Version == "" || strings.ContainsAny(m.Metadata.Version, " \t\n,\"") || len(m.Metadata.Version) > 128 {
		bad("metadata.version %q, want one word", m.Metadata.Version)
	}
	for i, mod := range m.Kernel.Modules {
		if !moduleRE.MatchString(mod.Name) {
			bad("kernel.modules[%d].name %q, want a module's name without path and .ko", i, mod.Name)
		}
		if strings.ContainsAny(mod.Parameters, "\n\x00") {
			bad("kernel.modules[%d].parameters %q, want one line", i, mod.Parameters)
		}
	}
	return errors.Join(errs...)
}
