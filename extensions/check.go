package extensions

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/kilnhq/kiln/kernel/depmod"
	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// ErrIncompatible is wrapped by the errors for an extension that would not work
// with the base or with another extension.
var ErrIncompatible = errors.New("incompatible extension")

// ModulesDir is where the modules of all kernels are in a root file system.
const ModulesDir = "usr/lib/modules"

// maxModule bounds one kernel module, as it is on disk.
const maxModule = 256 << 20

// Target is what extensions are to be added to.
type Target struct {
	Release string                 // of the base's kernel
	Arch    string                 // "amd64" or "arm64"
	Files   map[string]fs.FileMode // of the base's root file system
	Modules map[string]bool        // names of the base's modules, built-in ones too, with '_'
}

// Check says why the extensions, in this order, cannot be stacked on the
// target, naming every reason. It returns the facts about the kernel modules of
// each extension.
func Check(ctx context.Context, target Target, all []*Extension) ([][]depmod.Module, error) {
	var errs []error
	modules := make([][]depmod.Module, len(all))
	owners := map[string]*Extension{}
	names := map[string]*Extension{}
	for i, e := range all {
		if other := names[e.Manifest.Metadata.Name]; other != nil {
			errs = append(errs, fmt.Errorf("%w: %s and %s have the same name", ErrIncompatible, other, e))
		}
		names[e.Manifest.Metadata.Name] = e
		errs = append(errs, conflicts(target, e, owners)...)
		var err error
		if modules[i], err = e.modules(ctx); err != nil {
			return nil, err
		}
		errs = append(errs, e.checkModules(target, modules[i])...)
	}
	errs = append(errs, missingModules(target, all, modules)...)
	return modules, errors.Join(errs...)
}

// missingModules finds modules that need one which nobody brings.
func missingModules(target Target, all []*Extension, modules [][]depmod.Module) []error {
	have := map[string]bool{}
	for _, list := range modules {
		for _, m := range list {
			have[m.Info.Name] = true
		}
	}
	var errs []error
	for i, list := range modules {
		for _, m := range list {
			for _, need := range m.Info.Depends {
				if name := module.Fold(need); !have[name] && !target.Modules[name] {
					errs = append(errs, fmt.Errorf("%w: %s: %s: needs module %s, which is neither in the base nor in an extension; add it",
						ErrIncompatible, all[i], path.Base(m.Path), name))
				}
			}
		}
	}
	return errs
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

// modules parses the kernel modules in the extension.
func (e *Extension) modules(ctx context.Context) ([]depmod.Module, error) {
	var names []string
	for name, ino := range e.RootFS.All() {
		if strings.HasPrefix(name, ModulesDir+"/") && ino.Mode.IsRegular() && module.IsFile(name) {
			names = append(names, name)
		}
	}
	out := make([]depmod.Module, len(names))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i, name := range names {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			data, err := readAll(e.RootFS.Lookup(name))
			if err != nil {
				return fmt.Errorf("extension %s: %s: %w", e, name, err)
			}
			info, err := module.Parse(name, data)
			if err != nil {
				return fmt.Errorf("%w: extension %s: %w", ErrIncompatible, e, err)
			}
			out[i] = depmod.Module{Path: name, Info: info}
			return nil
		})
	}
	return out, group.Wait()
}

func readAll(ino *tree.Inode) ([]byte, error) {
	if ino.Size() > maxModule {
		return nil, fmt.Errorf("%w: %d bytes, want at most %d", ErrHostile, ino.Size(), maxModule)
	}
	data := make([]byte, ino.Size())
	if len(data) == 0 {
		return data, nil
	}
	_, err := io.ReadFull(io.NewSectionReader(ino.Content, 0, ino.Size()), data)
	return data, err
}

// checkModules compares what the modules were built for with the target, and
// makes their paths relative to the target's modules directory.
func (e *Extension) checkModules(target Target, modules []depmod.Module) []error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: %s: %s", ErrIncompatible, e, fmt.Sprintf(format, args...)))
	}
	const hint = "rebuild the extension for the base's kernel"
	if want := e.Manifest.Kernel.Release; want != "" && want != target.Release {
		bad("manifest.yaml: kernel.release is %s, the base has %s; %s", want, target.Release, hint)
	}
	own := map[string]bool{}
	for i, m := range modules {
		release, rest, _ := strings.Cut(strings.TrimPrefix(m.Path, ModulesDir+"/"), "/")
		switch built := m.Info.Release(); {
		case built != target.Release:
			bad("%s: built for %s, the base has %s; %s", m.Path, built, target.Release, hint)
		case release != target.Release:
			bad("%s: in the directory of kernel %s, the base has %s; move it to %s/%s", m.Path, release, target.Release, ModulesDir, target.Release)
		case m.Info.Arch() != target.Arch:
			bad("%s: built for %s, the base is for %s; %s", m.Path, m.Info.Arch(), target.Arch, hint)
		}
		own[m.Info.Name] = true
		modules[i].Path = rest
	}
	for _, m := range e.Manifest.Kernel.Modules {
		if name := strings.ReplaceAll(m.Name, "-", "_"); !own[name] && !target.Modules[name] {
			bad("manifest.yaml: kernel.modules: %s is neither in the extension nor in the base", m.Name)
		}
	}
	return errs
}
