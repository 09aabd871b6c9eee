package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/kernel/deb"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// openPackage opens the package with the given name for the architecture, or
// for all of them, from the first directory that has one.
func (b *builder) openPackage(name string) (*deb.Package, error) {
	name, err := b.expand(name)
	if err != nil {
		return nil, err
	}
	for _, d := range b.src.PackageDirs {
		entries, err := os.ReadDir(d)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var found []string
		for _, e := range entries {
			part := strings.Split(strings.TrimSuffix(e.Name(), ".deb"), "_")
			if strings.HasSuffix(e.Name(), ".deb") && len(part) == 3 && part[0] == name && (part[2] == b.src.Arch || part[2] == "all") {
				found = append(found, filepath.Join(d, e.Name()))
			}
		}
		switch len(found) {
		case 0:
			continue
		case 1:
		default:
			return nil, fmt.Errorf("package %s: both %s and %s are there; remove one", name, found[0], found[1])
		}
		p, err := deb.Open(found[0])
		if err != nil {
			return nil, err
		}
		if p.Control.Package != name || p.Architecture != b.src.Arch && p.Architecture != "all" {
			return nil, fmt.Errorf("%s: holds package %s for %s, want %s for %s", found[0], p.Control.Package, p.Architecture, name, b.src.Arch)
		}
		return p, nil
	}
	return nil, fmt.Errorf("package %s: %w: no %s_VERSION_%s.deb in %s; apt-get download %s fetches it", name, ErrNoPackage, name, b.src.Arch, orNothing(b.src.PackageDirs), name)
}

// merged returns the path that name has once /bin, /sbin, /lib and /lib64 are
// links into /usr.
func merged(name string) string {
	switch top, _, _ := strings.Cut(name, "/"); top {
	case "bin", "sbin", "lib", "lib64":
		return "usr/" + name
	}
	return name
}

// A selection is a PackageFile with its variables replaced and its paths made
// those of a tree, usr-merged.
type selection struct {
	from string
	to   string // may be ""
	used bool
}

// target returns where the file called name, usr-merged, goes, if it is
// selected.
func (s *selection) target(name string) (string, bool) {
	prefix, wild := fixedPrefix(s.from)
	var rest string
	switch {
	case wild && matchGlob(s.from, name):
		rest = strings.TrimPrefix(name, prefix)
		if s.to == "" {
			return name, true
		}
		return path.Join(s.to, rest), true
	case wild:
		return "", false
	case name == s.from:
	case strings.HasPrefix(name, s.from+"/"):
		rest = name[len(s.from):]
	default:
		return "", false
	}
	switch {
	case s.to == "":
		return name, true
	case strings.HasSuffix(s.to, "/"):
		return path.Join(s.to, path.Base(s.from), rest), true
	}
	return path.Join(s.to, rest), true
}

func (b *builder) packages(ctx context.Context) error {
	for i, p := range b.Packages {
		if err := b.addPackage(ctx, p); err != nil {
			return fmt.Errorf("packages[%d]: %w", i, err)
		}
	}
	return nil
}

func (b *builder) addPackage(ctx context.Context, want Package) error {
	p, err := b.openPackage(want.Name)
	if err != nil {
		return err
	}
	var sel []*selection
	for _, f := range want.Files {
		from, err := b.expand(f.From)
		if err != nil {
			return err
		}
		to, err := b.expand(f.To)
		if err != nil {
			return err
		}
		sel = append(sel, &selection{from: merged(path.Clean(from)[1:]), to: to})
	}
	t, err := p.Tree(ctx, func(name string) bool {
		return slices.ContainsFunc(sel, func(s *selection) bool { _, ok := s.target(merged(name)); return ok })
	})
	if err != nil {
		return err
	}
	for name, ino := range t.All() {
		for _, s := range sel {
			to, ok := s.target(merged(name))
			if !ok {
				continue
			}
			s.used = true
			ino.UID, ino.GID = 0, 0
			if err := b.put(to, ino, "package "+p.Name()); err != nil {
				return err
			}
		}
	}
	for i, s := range sel {
		if !s.used {
			return fmt.Errorf("package %s: from %s: nothing in the package matches", p.Name(), want.Files[i].From)
		}
	}
	return nil
}

// FirmwareTree returns the named firmware files, as modules name them in
// .modinfo, with those the recipe includes for other reasons, at their paths in
// the root file system. They are taken from the recipe's firmware packages, the
// first that has a file wins. Compressed files (.xz, .zst) serve as well, as
// the kernel takes them. missing lists the names that no package has.
func (r *Recipe) FirmwareTree(ctx context.Context, src Sources, names []string) (t *tree.Tree, missing []string, err error) {
	b, err := r.builder(src)
	if err != nil {
		return nil, nil, err
	}
	found := map[string]bool{}
	for _, name := range r.Firmware.Packages {
		if err := b.addFirmware(ctx, name, names, found); err != nil {
			return nil, nil, fmt.Errorf("%s: firmware: %w", r.path, err)
		}
	}
	for _, p := range r.Firmware.Include {
		if !found[p] {
			return nil, nil, fmt.Errorf("%s: firmware: include %s: no package has such a file", r.path, p)
		}
	}
	for _, name := range names {
		if !found[name] && !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
	}
	slices.Sort(missing)
	for _, ino := range b.tree.All() {
		ino.ModTime = src.ModTime
	}
	return b.tree, missing, nil
}

// firmwareDir is where the kernel looks for firmware, usr-merged.
const firmwareDir = "usr/lib/firmware"

func (b *builder) addFirmware(ctx context.Context, pkg string, names []string, found map[string]bool) error {
	p, err := b.openPackage(pkg)
	if err != nil {
		return err
	}
	t, err := p.Tree(ctx, func(name string) bool { return strings.HasPrefix(merged(name), firmwareDir+"/") })
	if err != nil {
		return err
	}
	dir := firmwareDir
	if t.Lookup(dir) == nil {
		dir = strings.TrimPrefix(dir, "usr/")
	}
	for file, ino := range t.All() {
		rel, ok := strings.CutPrefix(file, dir+"/")
		if !ok || ino.Mode.IsDir() {
			continue
		}
		plain := strings.TrimSuffix(strings.TrimSuffix(rel, ".xz"), ".zst")
		for _, pattern := range slices.Concat(names, b.Firmware.Include) {
			if pattern != plain && !matchGlob(pattern, plain) {
				continue
			}
			found[pattern] = true
			if err := b.copyFirmware(t, file, "package "+p.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyFirmware puts a file and, if it is a symbolic link, what it leads to.
func (b *builder) copyFirmware(t *tree.Tree, file, origin string) error {
	for range 8 {
		ino := t.Lookup(file)
		if ino == nil {
			return fmt.Errorf("%s: a symbolic link leads to /%s, which is not in it", origin, file)
		}
		if b.tree.Lookup(merged(file)) == nil {
			ino.UID, ino.GID = 0, 0
			if err := b.put(merged(file), ino, origin); err != nil {
				return err
			}
		}
		if ino.Mode.Type() != fs.ModeSymlink {
			return nil
		}
		if strings.HasPrefix(ino.Target, "/") {
			file = path.Clean(ino.Target)[1:]
		} else {
			file = path.Join(path.Dir(file), ino.Target)
		}
	}
	return fmt.Errorf("%s: /%s: %w", origin, file, tree.ErrLoop)
}
