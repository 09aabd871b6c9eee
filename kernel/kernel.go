// Package kernel imports Linux kernels: the boot image, the files that describe
// it and its modules, out of a distribution's packages or a directory.
//
// A kernel is found where distributions put it:
//
//	boot/vmlinuz-RELEASE          the boot image; or lib/modules/RELEASE/vmlinuz
//	boot/System.map-RELEASE       addresses of its symbols
//	boot/config-RELEASE           what it was configured with
//	lib/modules/RELEASE/          its modules; or usr/lib/modules/RELEASE/
package kernel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/kernel/deb"
	"github.com/kilnhq/kiln/rootfs/dir"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// Errors that errors of Import wrap.
var (
	ErrNoKernel  = errors.New("no kernel")
	ErrNoModules = errors.New("kernel without modules")
	ErrTwo       = errors.New("two kernels")
	ErrRelease   = errors.New("releases differ")
	ErrArch      = errors.New("unsupported architecture")
	ErrFormat    = errors.New("not a kernel image")
)

// Package is a kernel with its modules.
type Package struct {
	Release string // as uname -r
	Arch    string // "amd64" or "arm64"
	Source  string // where Vmlinuz is from: the package as name_version, or the directory

	Vmlinuz   tree.Content // bzImage (amd64) or Image (arm64)
	SystemMap tree.Content // nil if there is none; Debian ships it with the debug symbols only
	Config    tree.Content // nil if there is none

	// Modules is the content of lib/modules/RELEASE as the kernel's build made
	// it: kernel/fs/…, modules.builtin, modules.builtin.modinfo, modules.order.
	// What depmod generates is left out, and symbolic links are.
	Modules *tree.Tree
}

// Import reads a kernel from one or more .deb files, or from one directory that
// has boot/ and lib/modules/ in it.
func Import(ctx context.Context, paths ...string) (*Package, error) {
	var im importer
	for _, p := range paths {
		fi, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		switch {
		case !fi.IsDir():
			err = im.addDeb(ctx, p)
		case len(paths) > 1:
			err = fmt.Errorf("%s: a directory; want .deb files only, or one directory alone", p)
		default:
			err = im.addDir(ctx, p)
		}
		if err != nil {
			return nil, err
		}
	}
	p, err := im.kernel()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(paths, ", "), err)
	}
	return p, nil
}

// An importer collects candidates from all sources before it decides.
type importer struct {
	images  []candidate
	boot    map[string]tree.Content // config-RELEASE and System.map-RELEASE
	modules map[string]*tree.Tree   // by release
	arches  map[string]string       // architecture to the package that has it
}

type candidate struct {
	release string // by the file's name
	path    string
	source  string
	content tree.Content
}

// wanted says whether a file can be of interest, by its path.
func wanted(name string) bool {
	for _, prefix := range []string{"boot/", "lib/modules/", "usr/lib/modules/", "usr/lib/debug/boot/System.map-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

func (im *importer) addDeb(ctx context.Context, name string) error {
	p, err := deb.Open(name)
	if err != nil {
		return err
	}
	t, err := p.Tree(ctx, wanted)
	if err != nil {
		return err
	}
	if p.Architecture != "all" {
		if im.arches == nil {
			im.arches = map[string]string{}
		}
		im.arches[p.Architecture] = name
	}
	return im.add(t, p.Control.Package+"_"+p.Version, name)
}

func (im *importer) addDir(ctx context.Context, name string) error {
	above := []string{"boot", "lib", "lib/modules", "usr", "usr/lib", "usr/lib/modules", "usr/lib/debug", "usr/lib/debug/boot"}
	t, err := dir.Read(ctx, name, dir.Options{Keep: func(name string, mode fs.FileMode) bool {
		return (wanted(name) || slices.Contains(above, name)) && (mode.IsDir() || mode.IsRegular())
	}})
	if err != nil {
		return err
	}
	return im.add(t, filepath.Clean(name), name)
}

// add takes what is of interest in t. name stands for t in paths of errors.
func (im *importer) add(t *tree.Tree, source, name string) error {
	if im.boot == nil {
		im.boot, im.modules = map[string]tree.Content{}, map[string]*tree.Tree{}
	}
	for _, d := range []string{"boot", "usr/lib/debug/boot"} {
		for _, base := range t.Children(d) {
			ino := t.Lookup(path.Join(d, base))
			if !ino.Mode.IsRegular() || ino.Content == nil {
				continue
			}
			if release, ok := strings.CutPrefix(base, "vmlinuz-"); ok && d == "boot" {
				im.images = append(im.images, candidate{release, path.Join(name, d, base), source, ino.Content})
			} else if !placeholder(base, ino.Content) {
				im.boot[base] = ino.Content
			}
		}
	}
	for _, d := range []string{"lib/modules", "usr/lib/modules"} {
		for _, release := range t.Children(d) {
			if err := im.addModules(t, path.Join(d, release), source, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// placeholder recognises the one line that Debian ships as System.map, which
// says that the real one is in another package.
func placeholder(base string, c tree.Content) bool {
	if !strings.HasPrefix(base, "System.map-") || c.Size() > 512 {
		return false
	}
	b, err := io.ReadAll(extent.Reader(c))
	return err == nil && strings.HasPrefix(string(b), "ffffffffffffffff B The real System.map is in ")
}

// addModules takes lib/modules/RELEASE, which is at prefix in t.
func (im *importer) addModules(t *tree.Tree, prefix, source, name string) error {
	release := path.Base(prefix)
	for file, ino := range t.All() {
		rel, ok := strings.CutPrefix(file, prefix+"/")
		if !ok || !ino.Mode.IsRegular() || generated(rel) {
			continue
		}
		switch rel {
		case "vmlinuz": // often a copy of the one in boot
			if ino.Content != nil && !slices.ContainsFunc(im.images, func(c candidate) bool { return c.release == release }) {
				im.images = append(im.images, candidate{release, path.Join(name, file), source, ino.Content})
			}
			continue
		case "System.map", "config":
			if key := rel + "-" + release; im.boot[key] == nil {
				im.boot[key] = ino.Content
			}
			continue
		}
		m := im.modules[release]
		if m == nil {
			m = tree.New()
			im.modules[release] = m
		}
		if err := m.MkdirAll(path.Dir(rel), 0o755); err != nil {
			return fmt.Errorf("%s: %s: %w", name, prefix, err)
		}
		if err := m.Add(rel, ino); err != nil {
			return fmt.Errorf("%s: %s: %w", name, prefix, err)
		}
	}
	return nil
}

// generated says whether a file below lib/modules/RELEASE is made by depmod on
// the installed system.
func generated(rel string) bool {
	switch rel {
	case "modules.alias", "modules.dep", "modules.devname", "modules.softdep", "modules.symbols", "modules.weakdep":
		return true
	}
	return strings.HasPrefix(rel, "modules.") && strings.HasSuffix(rel, ".bin")
}

// isModule says whether a file is a kernel module, by its name.
func isModule(name string) bool {
	for _, suffix := range []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// kernel decides what was found.
func (im *importer) kernel() (*Package, error) {
	switch len(im.images) {
	case 0:
		return nil, fmt.Errorf("%w: neither boot/vmlinuz-RELEASE nor lib/modules/RELEASE/vmlinuz is there", ErrNoKernel)
	case 1:
	default:
		return nil, fmt.Errorf("%w: %s and %s; want one", ErrTwo, im.images[0].path, im.images[1].path)
	}
	c := im.images[0]
	img, err := readImage(c.content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.path, err)
	}
	if img.release == "" {
		img.release = c.release
	}
	for _, arch := range slices.Sorted(maps.Keys(im.arches)) {
		if arch != img.arch {
			return nil, fmt.Errorf("%s: %w: the package is for %s, the kernel %s for %s", im.arches[arch], ErrArch, arch, c.path, img.arch)
		}
	}
	modules, err := im.modulesOf(img.release, c.path)
	if err != nil {
		return nil, err
	}
	return &Package{
		Release:   img.release,
		Arch:      img.arch,
		Source:    c.source,
		Vmlinuz:   c.content,
		SystemMap: im.boot["System.map-"+img.release],
		Config:    im.boot["config-"+img.release],
		Modules:   modules,
	}, nil
}

func (im *importer) modulesOf(release, vmlinuz string) (*tree.Tree, error) {
	var found []string
	for r, t := range im.modules {
		for name := range t.All() {
			if isModule(name) {
				found = append(found, r)
				break
			}
		}
	}
	slices.Sort(found)
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("%w: %s is release %s, and lib/modules/%s has no module; add the package that has them", ErrNoModules, vmlinuz, release, release)
	case len(found) > 1:
		return nil, fmt.Errorf("%w: modules of %s; want one release", ErrTwo, strings.Join(found, " and "))
	case found[0] != release:
		return nil, fmt.Errorf("%w: %s is release %s, the modules are in lib/modules/%s", ErrRelease, vmlinuz, release, found[0])
	}
	return im.modules[release], nil
}
