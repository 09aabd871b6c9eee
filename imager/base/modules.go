package base

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/kilnhq/kiln/kernel"
	"github.com/kilnhq/kiln/kernel/depmod"
	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/rootfs"
)

// moduleSet are the facts about all modules of a kernel package.
type moduleSet struct {
	paths   []string
	byPath  map[string]*module.Info
	builtin []string // lines of modules.builtin
	set     *module.Set
}

// readModules parses every module of the package, several at a time.
func readModules(ctx context.Context, k *kernel.Package) (*moduleSet, error) {
	var paths []string
	for name, ino := range k.Modules.All() {
		if ino.Mode.IsRegular() && module.IsFile(name) {
			paths = append(paths, name)
		}
	}
	infos := make([]*module.Info, len(paths))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i, name := range paths {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			data, err := content(k.Modules.Lookup(name))
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			infos[i], err = module.Parse(name, data)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	s := &moduleSet{paths: paths, byPath: map[string]*module.Info{}}
	var entries []module.Entry
	for i, name := range paths {
		if got := infos[i].Release(); got != k.Release {
			return nil, fmt.Errorf("%w: %s: built for %s, the kernel is %s", ErrRefused, name, got, k.Release)
		}
		s.byPath[name] = infos[i]
		entries = append(entries, module.Entry{Path: name, Info: infos[i]})
	}
	var builtin []byte
	if ino := k.Modules.Lookup("modules.builtin"); ino != nil {
		var err error
		if builtin, err = content(ino); err != nil {
			return nil, fmt.Errorf("modules.builtin: %w", err)
		}
	}
	s.builtin = strings.Fields(string(builtin))
	s.set = module.NewSet(entries, builtin)
	return s, nil
}

// choose returns the modules that match include and do not match exclude, with
// all they depend on, and the firmware these name. A pattern must match a module
// or what is built into the kernel, unless it is optional.
func (s *moduleSet) choose(include, exclude []rootfs.Pattern) ([]depmod.Module, []string, error) {
	used := make([]bool, len(include))
	for _, b := range s.builtin {
		for i, p := range include {
			used[i] = used[i] || p.Match(b)
		}
	}
	var chosen []string
	for _, file := range s.paths {
		match := false
		for i, p := range include {
			if p.Match(file) {
				used[i], match = true, true
			}
		}
		if match && !slices.ContainsFunc(exclude, func(p rootfs.Pattern) bool { return p.Match(file) }) {
			chosen = append(chosen, file)
		}
	}
	for i, p := range include {
		if !used[i] && !p.Optional() {
			return nil, nil, fmt.Errorf("%w: pattern %q matches no module; append \"?\" if not every kernel has one", ErrRefused, p)
		}
	}
	if len(chosen) == 0 {
		return nil, nil, nil
	}
	sel, err := s.set.Select(chosen...)
	if err != nil {
		return nil, nil, err
	}
	out := make([]depmod.Module, len(sel.Paths))
	for i, p := range sel.Paths {
		out[i] = depmod.Module{Path: p, Info: s.byPath[p]}
	}
	return out, sel.Firmware, nil
}

// SelectModules returns the paths of the modules of a kernel package that the
// patterns select, with all they depend on.
func SelectModules(ctx context.Context, k *kernel.Package, patterns []string) ([]string, error) {
	all, err := readModules(ctx, k)
	if err != nil {
		return nil, err
	}
	sel, err := all.set.Select(patterns...)
	if err != nil {
		return nil, err
	}
	return sel.Paths, nil
}
