package base

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/kilnhq/kiln/kernel"
	"github.com/kilnhq/kiln/kernel/depmod"
	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/rootfs"
)

// moduleSet are the facts about all modules of a kernel package.
type moduleSet struct {
	byPath map[string]*module.Info
	set    *module.Set
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
	s := &moduleSet{byPath: map[string]*module.Info{}}
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
	s.set = module.NewSet(entries, builtin)
	return s, nil
}

// choose returns the modules that the patterns select, with all they depend on,
// and the firmware these name.
func (s *moduleSet) choose(include, exclude []rootfs.Pattern) ([]depmod.Module, []string, error) {
	var patterns []string
	for _, list := range []struct {
		patterns []rootfs.Pattern
		prefix   string
	}{{include, ""}, {exclude, "!"}} {
		for _, p := range list.patterns {
			if p.Optional() {
				if _, err := s.set.Select(p.Glob()); errors.Is(err, module.ErrNoMatch) {
					continue
				}
			}
			patterns = append(patterns, list.prefix+p.Glob())
		}
	}
	sel, err := s.set.Select(patterns...)
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
