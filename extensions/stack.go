package extensions

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// ErrIncompatible is wrapped by the errors for an extension that would not work
// with the base or with another extension.
var ErrIncompatible = errors.New("incompatible extension")

// ModulesDir is where the modules of all kernels are in a root file system.
const ModulesDir = "usr/lib/modules"

// Target is what extensions are to be added to.
type Target struct {
	Release string                 // of the base's kernel
	Arch    string                 // "amd64" or "arm64"
	Files   map[string]fs.FileMode // of the base's root file system
}

// Check says why the extensions, lowest layer first, cannot be stacked on the
// target, naming every reason. It does not look into kernel modules; package
// gate does.
func Check(target Target, all []*Extension) error {
	_, err := stack(target, all)
	return err
}

// Replacement is a path that an extension has though something below it has it
// too, as its manifest says.
type Replacement struct {
	Path string `json:"path"`
	Of   string `json:"of"` // the extension, or "base"
}

// stack is Check, and says what each extension replaces.
func stack(target Target, all []*Extension) ([][]Replacement, error) {
	errs := relations(target, all)
	owners := map[string]*Extension{}
	replaced := make([][]Replacement, len(all))
	for i, e := range all {
		l := layering{target: target, owners: owners, used: map[string]bool{}}
		l.add(e)
		for _, name := range e.Manifest.Replaces {
			if !l.used[name] {
				l.errs = append(l.errs, fmt.Errorf("%w: %s: manifest.yaml: replaces: %s replaces nothing: neither the base nor an extension below has what the extension has there; remove it, or put the extension above the one it replaces files of",
					ErrIncompatible, e, name))
			}
		}
		errs, replaced[i] = append(errs, l.errs...), l.replaced
	}
	return replaced, errors.Join(errs...)
}

// relations checks what the manifests say of the base and of each other.
func relations(target Target, all []*Extension) []error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: %s", ErrIncompatible, fmt.Sprintf(format, args...)))
	}
	names := map[string]*Extension{}
	for _, e := range all {
		if other := names[e.Manifest.Metadata.Name]; other != nil {
			bad("%s and %s have the same name; remove one", other, e)
			continue
		}
		names[e.Manifest.Metadata.Name] = e
	}
	for _, e := range all {
		m := e.Manifest
		if want := m.Kernel.Release; want != "" && target.Release != "" && want != target.Release {
			bad("%s: manifest.yaml: kernel.release is %s, the base has %s; rebuild the extension for the base's kernel", e, want, target.Release)
		}
		if want := m.Kernel.Arch; want != "" && target.Arch != "" && want != target.Arch {
			bad("%s: manifest.yaml: kernel.arch is %s, the base is for %s; use the extension for %s", e, want, target.Arch, target.Arch)
		}
		for _, name := range m.Requires {
			if names[name] == nil {
				bad("%s needs the extension %s, which is not there; add it with --extension", e, name)
			}
		}
		for _, name := range m.Conflicts {
			if other := names[name]; other != nil {
				bad("%s does not work together with %s, as its manifest says; remove one", e, other)
			}
		}
	}
	// What one was built for the others must be for too, even with no base.
	var first *Extension
	for _, e := range all {
		switch k := e.Manifest.Kernel; {
		case target.Release != "" || k.Release == "":
		case first == nil:
			first = e
		case first.Manifest.Kernel.Release != k.Release:
			bad("%s is for kernel %s, %s for %s; rebuild one of them", first, first.Manifest.Kernel.Release, e, k.Release)
		}
	}
	return errs
}

// layering puts one extension above what is there.
type layering struct {
	target   Target
	owners   map[string]*Extension // of paths, the topmost that has one
	used     map[string]bool       // entries of the manifest's replaces
	replaced []Replacement
	errs     []error
}

func (l *layering) add(e *Extension) {
	hidden := "" // a path that is in conflict already, with all below it
	for name, ino := range e.RootFS.All() {
		if name == "." || hidden != "" && strings.HasPrefix(name, hidden+"/") {
			continue
		}
		other := l.owners[name]
		mode, inBase := l.target.Files[name]
		of := "base"
		switch {
		case other != nil:
			mode, of = other.RootFS.Lookup(name).Mode, other.Manifest.Metadata.Name
		case !inBase:
			l.owners[name] = e
			continue
		}
		if mode.IsDir() && ino.Mode.IsDir() {
			continue // overlayfs merges them
		}
		if l.replaces(e, name) {
			l.replaced = append(l.replaced, Replacement{name, of})
			l.owners[name] = e
			continue
		}
		hidden = name
		l.errs = append(l.errs, l.conflict(e, other, name, mode, ino.Mode))
	}
}

// replaces says whether the manifest of e lets it replace name.
func (l *layering) replaces(e *Extension, name string) bool {
	found := false
	for _, dir := range e.Manifest.Replaces {
		if below(name, dir) {
			l.used[dir], found = true, true
		}
	}
	return found
}

func (l *layering) conflict(e, other *Extension, name string, lower, upper fs.FileMode) error {
	if other == nil {
		hint := "remove it from the extension, or name it in replaces of its manifest.yaml"
		if lower&fs.ModeSymlink != 0 && upper.IsDir() {
			hint = "the base has a symbolic link there; use usr/" + name + " if that is meant"
		}
		return fmt.Errorf("%w: %s: %s is in the base already; %s", ErrIncompatible, e, name, hint)
	}
	hint := "remove one, or name it in replaces of the manifest.yaml of the upper one"
	if slices.ContainsFunc(other.Manifest.Replaces, func(dir string) bool { return below(name, dir) }) {
		hint = fmt.Sprintf("%s may replace it, but is below: put it after %s", other, e)
	}
	return fmt.Errorf("%w: %s and %s both have %s; %s", ErrIncompatible, other, e, name, hint)
}
