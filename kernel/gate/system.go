package gate

import (
	"path"
	"strings"

	"github.com/kilnhq/kiln/kernel/depmod"
	"github.com/kilnhq/kiln/kernel/kconfig"
	"github.com/kilnhq/kiln/kernel/modalias"
)

// System is what modules are to be loaded into: a kernel and the root file
// system that comes with it.
type System struct {
	Release string // of the kernel, as uname -r
	Arch    string // "amd64" or "arm64"

	// Symbols are what the kernel and its modules export, those included that
	// are not in Modules. Versioned says that they have CRCs.
	Symbols   map[string]Symbol
	Versioned bool

	Vermagic string // of the kernel's own modules; empty if unknown
	Config   kconfig.Config
	Modules  []depmod.Module // in the root file system
	Builtin  map[string]bool // names of the modules in the kernel itself
	Intree   map[string]bool // names of all modules the kernel was built with

	// BuiltinAliases are the aliases of the modules in the kernel itself.
	BuiltinAliases []string

	// Files reports whether the root file system, extensions included, has the
	// path.
	Files func(path string) bool

	// Firmware are the paths of all firmware files, below usr/lib/firmware.
	Firmware []string

	// SignatureRequired is why the kernel refuses modules without a signature
	// that it can verify, for example "module.sig_enforce=1"; it is empty if the
	// kernel does not.
	SignatureRequired string
}

// Files of a kernel that a System is made from.
type Files struct {
	Config         []byte // as /boot/config-RELEASE
	Symvers        []byte // Module.symvers; nil if it is not at hand
	SystemMap      []byte
	Order          []byte // modules.order
	Builtin        []byte // modules.builtin
	BuiltinModinfo []byte // modules.builtin.modinfo
}

// NewSystem returns the system of a kernel and its modules.
func NewSystem(release, arch string, files Files, modules []depmod.Module) (*System, error) {
	s := &System{Release: release, Arch: arch, Modules: modules,
		Builtin: moduleNames(files.Builtin), Intree: moduleNames(files.Order), Files: func(string) bool { return false }}
	var err error
	if files.Config != nil {
		if s.Config, err = kconfig.Parse(files.Config); err != nil {
			return nil, err
		}
	}
	if files.Symvers != nil {
		if s.Symbols, err = ParseSymvers(files.Symvers); err != nil {
			return nil, err
		}
		s.Versioned = true
	} else {
		s.Symbols = systemMapExports(files.SystemMap)
		s.learn()
	}
	for _, m := range modules {
		if m.Info.Intree && m.Info.Vermagic != "" {
			s.Vermagic = m.Info.Vermagic
			break
		}
	}
	for entry := range strings.SplitSeq(string(files.BuiltinModinfo), "\x00") {
		key, value, _ := strings.Cut(entry, "=")
		if strings.HasSuffix(key, ".alias") {
			s.BuiltinAliases = append(s.BuiltinAliases, value)
		}
	}
	return s, nil
}

// learn takes the CRCs of the kernel's symbols from the modules that were built
// with it, as a substitute for Module.symvers.
func (s *System) learn() {
	for _, m := range s.Modules {
		if !m.Info.Intree {
			continue
		}
		for _, im := range m.Info.Imports {
			if known, ok := s.Symbols[im.Name]; ok && known.CRC == 0 {
				s.Symbols[im.Name] = Symbol{CRC: im.CRC}
			}
		}
	}
}

// moduleNames returns the names of the modules whose paths are lines of list.
func moduleNames(list []byte) map[string]bool {
	names := map[string]bool{}
	for line := range strings.Lines(string(list)) {
		if line = strings.TrimSpace(line); line != "" {
			names[moduleName(line)] = true
		}
	}
	return names
}

func moduleName(file string) string { return modalias.Name(path.Base(file)) }

// ModuleCompression returns the format in which the kernel takes compressed
// modules: "gzip", "xz", "zstd", or "" if it takes none.
func (s *System) ModuleCompression() string {
	for _, format := range []string{"zstd", "xz", "gzip"} {
		if s.Config.Yes("MODULE_DECOMPRESS") && s.Config.Yes(formats[format].option) {
			return format
		}
	}
	return ""
}
