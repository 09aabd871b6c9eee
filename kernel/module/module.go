// Package module reads Linux kernel modules and selects sets of them.
//
// A module (foo.ko) is an ELF relocatable file, possibly compressed with gzip,
// xz or zstd and possibly followed by a signature. What the rest of the world
// needs to know of it is in these sections:
//
//	.modinfo          "key=value" strings, each ended by a NUL: license, alias,
//	                  depends, softdep, firmware, vermagic, parm, …
//	.symtab, .strtab  undefined symbols are what the module imports; the local
//	                  symbols __ksymtab_X and __crc_X name what it exports
//	__ksymtab[_gpl]   one entry for each export, the latter for GPL-only ones
//	__ksymtab_strings the names and name spaces of the exports
//	__kcrctab[_gpl]   the CRC of each export's type (CONFIG_MODVERSIONS)
//	__versions        64-byte entries, CRC (4 or 8 bytes) and name, of what the
//	                  module was built against: its imports and module_layout
//
// The layout is that of include/linux/export-internal.h, include/linux/module.h
// and scripts/mod/modpost.c of Linux 6.12 and of its predecessors since 5.4.
// Nothing here needs the kernel: the facts are a function of the file's bytes.
package module

import (
	"debug/elf"
	"errors"
	"path"
	"strings"

	"github.com/kilnhq/kiln/kernel/modalias"
)

// ErrFormat is wrapped by the errors of Parse for files that are not intact
// kernel modules.
var ErrFormat = errors.New("not a kernel module")

// ErrLimit is wrapped by the errors for files that decompress to more than
// allowed.
var ErrLimit = errors.New("larger than allowed")

// Info are the facts of one module that indexing, checking and selecting need.
// It encodes as compact JSON: an image base stores thousands of them.
type Info struct {
	Name     string      `json:"name"`               // as in /proc/modules, with '_' and never '-'
	Machine  elf.Machine `json:"machine"`            // of the ELF header
	Vermagic string      `json:"vermagic,omitempty"` // Release and the options the kernel compares too
	License  string      `json:"license,omitempty"`
	Version  string      `json:"version,omitempty"`
	Intree   bool        `json:"intree,omitempty"` // built as part of the kernel
	Signed   bool        `json:"signed,omitempty"` // a signature is appended; it was not verified

	Description string `json:"description,omitempty"`

	Depends    []string    `json:"depends,omitempty"`    // names of modules whose symbols it uses
	Softdeps   []string    `json:"softdeps,omitempty"`   // as in .modinfo: "pre: a b post: c"
	Weakdeps   []string    `json:"weakdeps,omitempty"`   // as in .modinfo: names the module may ask for
	Aliases    []string    `json:"aliases,omitempty"`    // shell patterns, in the file's order
	Firmware   []string    `json:"firmware,omitempty"`   // paths below /lib/firmware
	Parameters []Parameter `json:"parameters,omitempty"` // in the file's order

	Exports  Exports  `json:"exports,omitempty"`
	Imports  Imports  `json:"imports,omitempty"`
	ImportNS []string `json:"import_ns,omitempty"` // name spaces of symbols it may import
}

// Parameter is a module parameter.
type Parameter struct {
	Name string `json:"name"`
	Type string `json:"type,omitempty"` // "int", "charp", "array of uint", …
}

// Export is a symbol that a module offers to others.
type Export struct {
	Name      string
	CRC       uint32 // of its type; 0 if the module has none
	GPL       bool   // only for modules with a GPL-compatible license
	Namespace string
}

// Import is a symbol that a module needs from the kernel or another module.
type Import struct {
	Name string
	CRC  uint32 // of its type when the module was built; 0 if the module has none
	Weak bool   // may be missing
}

// Release returns the kernel release the module was built for, as uname -r
// prints it, or "" if the module does not say.
func (i *Info) Release() string {
	release, _, _ := strings.Cut(i.Vermagic, " ")
	return release
}

// Arch returns the module's architecture in Go's words ("amd64", "arm64"), or
// the ELF machine's name for others.
func (i *Info) Arch() string {
	switch i.Machine {
	case elf.EM_X86_64:
		return "amd64"
	case elf.EM_AARCH64:
		return "arm64"
	}
	return i.Machine.String()
}

// Versioned reports whether the module carries CRCs of its exports, that is,
// the kernel was configured with CONFIG_MODVERSIONS. It is false for modules
// without exports.
func (i *Info) Versioned() bool {
	for _, e := range i.Exports {
		if e.CRC != 0 {
			return true
		}
	}
	return false
}

// SoftDeps returns the module names and aliases that should be loaded before
// and after the module, in order. Modprobe ignores the names that a softdep
// puts behind neither "pre:" nor "post:", though some drivers list there what
// they will ask the kernel for later; they are returned as other.
func (i *Info) SoftDeps() (pre, post, other []string) {
	for _, line := range i.Softdeps {
		list := &other
		for _, word := range strings.Fields(line) {
			switch word {
			case "pre:":
				list = &pre
			case "post:":
				list = &post
			default:
				*list = append(*list, word)
			}
		}
	}
	return pre, post, other
}

// Name returns the module name that belongs to the path of a module file; see
// modalias.Name.
func Name(file string) string { return modalias.Name(file) }

// Fold returns a name or alias as modprobe compares it; see modalias.Fold.
func Fold(name string) string { return modalias.Fold(name) }

// IsFile reports whether a file of that path is a kernel module by its name:
// .ko, .ko.gz, .ko.xz or .ko.zst.
func IsFile(file string) bool {
	base := path.Base(TrimCompression(file))
	return len(base) > len(".ko") && strings.HasSuffix(base, ".ko")
}

// TrimCompression returns the path without the suffix of a compression.
func TrimCompression(file string) string {
	for _, suffix := range []string{".xz", ".zst", ".gz"} {
		if s, ok := strings.CutSuffix(file, suffix); ok {
			return s
		}
	}
	return file
}
