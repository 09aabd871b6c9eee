// Package gate finds out, while an image is built, which kernel modules would
// fail on the node, and why.
//
// It does what the kernel does when a module is loaded, in kernel/module/ of
// Linux 6.12: compare the ELF header, the version magic, the CRC of every
// imported symbol, the license of who uses GPL-only symbols, the symbol name
// spaces, duplicate modules and symbols, and the signature. It then looks at
// what the kernel would only notice later: compression it cannot undo, firmware
// that is nowhere, soft dependencies and parameters that do not exist, drivers
// that no early boot could reach.
//
// Everything is judged from facts about the modules (package module), from the
// kernel's own Module.symvers, System.map and configuration; no kernel is run.
package gate

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// Severity says what becomes of a finding.
type Severity string

// Severities.
const (
	Error   Severity = "error"   // the module, or the image, would not work
	Warning Severity = "warning" // it may work, or work only in part
	Info    Severity = "info"    // it works, but there is something to know
)

// Level returns the level at which to log a finding.
func (s Severity) Level() slog.Level {
	switch s {
	case Info:
		return slog.LevelInfo
	case Warning:
		return slog.LevelWarn
	}
	return slog.LevelError
}

// Code identifies a kind of finding. Codes do not change from version to
// version.
type Code string

// Codes of findings.
const (
	Arch             Code = "arch"              // built for another processor
	Release          Code = "release"           // built for another kernel
	Vermagic         Code = "vermagic"          // built for another configuration of the kernel
	Directory        Code = "directory"         // where modprobe does not look
	Compression      Code = "compression"       // the kernel cannot decompress it
	Depends          Code = "depends"           // needs a module that is nowhere
	SymbolMissing    Code = "symbol-missing"    // needs a symbol that nothing exports
	SymbolVersion    Code = "symbol-version"    // built against another definition of a symbol
	SymbolUnversed   Code = "symbol-unversed"   // has no CRCs though the kernel wants them
	SymbolGPL        Code = "symbol-gpl"        // uses GPL-only symbols without a compatible license
	SymbolNamespace  Code = "symbol-namespace"  // does not import a symbol's name space
	SymbolDuplicate  Code = "symbol-duplicate"  // exports what is exported already
	ModuleDuplicate  Code = "module-duplicate"  // there is a module of that name
	ModuleShadow     Code = "module-shadow"     // takes the place of another module
	ModuleUnknown    Code = "module-unknown"    // asked for by a manifest, but nowhere
	Parameter        Code = "parameter"         // the module has no such parameter
	Softdep          Code = "softdep"           // soft dependency that is nowhere
	Firmware         Code = "firmware"          // none of the firmware it may ask for is there
	FirmwarePartial  Code = "firmware-partial"  // some of the firmware is not there
	SignatureMissing Code = "signature-missing" // is not signed
	SignatureUnknown Code = "signature-unknown" // signed by a key the kernel does not trust
	SignatureBad     Code = "signature-bad"     // changed after it was signed
	Driver           Code = "driver"            // a device of the platform has no driver
)

// A Finding is something that is wrong with a module.
type Finding struct {
	Code     Code     `json:"code"`
	Severity Severity `json:"severity"`
	Origin   string   `json:"origin,omitempty"` // the extension that brings the file
	File     string   `json:"file"`
	Found    string   `json:"found"`
	Wanted   string   `json:"wanted"`
	Fix      string   `json:"fix"`               // what to do
	Symbols  []string `json:"symbols,omitempty"` // all that are concerned
}

// String returns the finding as one line.
func (f Finding) String() string {
	var b strings.Builder
	if f.Origin != "" {
		fmt.Fprintf(&b, "extension %s: ", f.Origin)
	}
	fmt.Fprintf(&b, "%s: %s, %s; %s", f.File, f.Found, f.Wanted, f.Fix)
	return b.String()
}

// Count returns the number of findings of a severity.
func Count(list []Finding, s Severity) int {
	n := 0
	for _, f := range list {
		if f.Severity == s {
			n++
		}
	}
	return n
}

// Layer is what one extension brings.
type Layer struct {
	Name    string   // in findings: "zfs@sha256:1f…"
	Modules []Module // paths are those in the root file system
	Load    []Request
	Options []Request
}

// Request is a module that a manifest names.
type Request struct {
	Name       string
	Parameters string
}

// Check judges the layers' modules, in the order of the layers and of the files
// in them. It looks at modules of the system itself only where a layer's module
// takes the place of another.
func Check(s *System, layers []Layer) []Finding {
	c := &checker{system: s, release: s.Release}
	c.collect(layers)
	for i := range c.all {
		c.module(&c.all[i])
	}
	for _, l := range layers {
		c.requests(l)
	}
	order := map[string]int{}
	for i, l := range layers {
		order[l.Name] = i
	}
	slices.SortStableFunc(c.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(order[a.Origin], order[b.Origin]), strings.Compare(a.File, b.File))
	})
	return c.findings
}

// shown is how many symbols of a finding its text names.
const shown = 4

func some(list []string) string {
	if len(list) <= shown {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:shown], ", "), len(list)-shown)
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return fmt.Sprintf("%d %s", n, many)
}
