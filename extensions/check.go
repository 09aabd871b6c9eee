package extensions

import (
	"errors"
	"fmt"
	"io/fs"
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

// Check says why the extensions, in this order, cannot be stacked on the
// target, naming every reason. It does not look into kernel modules; package
// gate does.
func Check(target Target, all []*Extension) error {
	var errs []error
	owners := map[string]*Extension{}
	names := map[string]*Extension{}
	for _, e := range all {
		if other := names[e.Manifest.Metadata.Name]; other != nil {
			errs = append(errs, fmt.Errorf("%w: %s and %s have the same name", ErrIncompatible, other, e))
		}
		names[e.Manifest.Metadata.Name] = e
		if want := e.Manifest.Kernel.Release; want != "" && want != target.Release {
			errs = append(errs, fmt.Errorf("%w: %s: manifest.yaml: kernel.release is %s, the base has %s; rebuild the extension for the base's kernel",
				ErrIncompatible, e, want, target.Release))
		}
		errs = append(errs, conflicts(target, e, owners)...)
	}
	return errors.Join(errs...)
}

// conflicts finds paths of e that the base or an earlier extension has, and
// records the others in owners.
func conflicts(target Target, e *Extension, owners map[string]*Extension) []error {
	var errs []error
	hidden := "" // a path that is in conflict already, with all below it
	for name, ino := range e.RootFS.All() {
		if name == "." || hidden != "" && strings.HasPrefix(name, hidden+"/") {
			continue
		}
		if mode, ok := target.Files[name]; ok && !(mode.IsDir() && ino.Mode.IsDir()) {
			hint := "remove it from the extension"
			if mode&fs.ModeSymlink != 0 && ino.Mode.IsDir() {
				hint = "the base has a symbolic link there; use usr/" + name + " if that is meant"
			}
			errs = append(errs, fmt.Errorf("%w: %s: %s is in the base already; %s", ErrIncompatible, e, name, hint))
			hidden = name
			continue
		}
		other, ok := owners[name]
		switch {
		case !ok:
			owners[name] = e
		case !ino.Mode.IsDir() || !other.RootFS.Lookup(name).Mode.IsDir():
			errs = append(errs, fmt.Errorf("%w: %s and %s both have %s; remove one", ErrIncompatible, other, e, name))
			hidden = name
		}
	}
	return errs
}
