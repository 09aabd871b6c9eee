package kit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/kilnhq/kiln/kernel/deb"
	"github.com/kilnhq/kiln/kernel/kit/dkms"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// prepare copies the source into the temporary directory, and what the build
// needs beside it.
func (b *build) prepare(ctx context.Context) error {
	fi, err := os.Stat(b.Source)
	if err != nil {
		return err
	}
	b.src = filepath.Join(b.tmp, "unpacked")
	if err := os.Mkdir(b.src, 0o755); err != nil {
		return err
	}
	if fi.IsDir() {
		abs, err := filepath.Abs(b.Source)
		if err != nil {
			return err
		}
		b.result.Name = filepath.Base(abs)
		err = b.copyDir()
		if err != nil {
			return err
		}
	} else if err := b.unpack(ctx); err != nil {
		return err
	}
	if err := b.readConf(); err != nil {
		return err
	}
	if err := redirect(b.src, filepath.Join(b.Kit, buildDir)); err != nil {
		return err
	}
	if err := b.uname(); err != nil {
		return err
	}
	config, err := os.ReadFile(filepath.Join(b.Kit, buildDir, ".config"))
	if err != nil {
		return err
	}
	b.tools.dwarf = strings.Contains(string(config), "\nCONFIG_GENDWARFKSYMS=y\n")
	return b.copySymvers()
}

// readConf reads dkms.conf if there is one, and moves the source to where dkms
// would build it. Without one there has to be a makefile.
func (b *build) readConf() error {
	data, err := os.ReadFile(filepath.Join(b.src, "dkms.conf"))
	if errors.Is(err, fs.ErrNotExist) {
		for _, name := range []string{"Kbuild", "Makefile"} {
			if _, err := os.Stat(filepath.Join(b.src, name)); err == nil {
				return nil
			}
		}
		return fmt.Errorf("%w: no Kbuild, Makefile or dkms.conf", ErrBuild)
	}
	if err != nil {
		return err
	}
	b.conf, err = dkms.Parse(data, map[string]string{
		"kernelver": b.config.Release, "arch": machine[b.config.Arch], "kernel_source_dir": filepath.Join(b.Kit, buildDir),
	})
	if err != nil {
		return err
	}
	b.result.Name, b.result.Version = b.conf.Name, b.conf.Version
	if len(b.conf.Depends) > 0 {
		b.result.Warnings = append(b.result.Warnings, "dkms.conf wants these built before: "+strings.Join(b.conf.Depends, ", "))
	}
	home := filepath.Join(b.tmp, "dkms", b.conf.Name, b.conf.Version)
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	if err := os.Rename(b.src, filepath.Join(home, "build")); err != nil {
		return err
	}
	b.src = filepath.Join(home, "build")
	if err := os.Mkdir(filepath.Join(b.tmp, "source"), 0o755); err != nil {
		return err
	}
	for _, link := range []string{filepath.Join(home, "source"), filepath.Join(b.tmp, "source", b.conf.Name+"-"+b.conf.Version)} {
		if err := os.Symlink(b.src, link); err != nil {
			return err
		}
	}
	return nil
}

// uname makes a program that tells makefiles which ask for the running kernel
// that it is the kit's.
func (b *build) uname() error {
	bin := filepath.Join(b.tmp, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	real, err := exec.LookPath("uname")
	if err != nil {
		return missing("uname", "coreutils")
	}
	script := "#!/bin/sh\ncase $* in\n-r|--kernel-release) echo '" + b.config.Release + "' ;;\n*) exec '" + real + "' \"$@\" ;;\nesac\n"
	return os.WriteFile(filepath.Join(bin, "uname"), []byte(script), 0o755)
}

// copySymvers copies the symbols of other modules to a path that make takes.
func (b *build) copySymvers() error {
	list := make([]string, len(b.Job.Symvers))
	for i, name := range b.Job.Symvers {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		list[i] = filepath.Join(b.tmp, "symvers-"+strconv.Itoa(i))
		if err := os.WriteFile(list[i], data, 0o644); err != nil {
			return err
		}
	}
	b.Job.Symvers = list
	return nil
}

// copyDir copies the user's directory without the repository and without what a
// build for another kernel has left: kbuild keeps a .NAME.cmd for what it makes.
func (b *build) copyDir() error {
	root, err := os.OpenRoot(b.src)
	if err != nil {
		return err
	}
	defer root.Close()
	return filepath.WalkDir(b.Source, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(b.Source, name)
		if err != nil || rel == "." {
			return err
		}
		base := d.Name()
		if base == ".git" && d.IsDir() {
			return filepath.SkipDir
		}
		_, noCmd := os.Lstat(filepath.Join(filepath.Dir(name), "."+base+".cmd"))
		if noCmd == nil || strings.HasSuffix(base, ".cmd") && base[0] == '.' || strings.HasSuffix(base, ".ko") ||
			strings.HasSuffix(base, ".mod.c") || base == "Module.symvers" || base == "modules.order" {
			return nil
		}
		switch d.Type() {
		case fs.ModeDir:
			return root.Mkdir(rel, 0o755)
		case fs.ModeSymlink:
			target, err := os.Readlink(name)
			if err != nil {
				return err
			}
			if filepath.IsAbs(target) || !filepath.IsLocal(filepath.Join(filepath.Dir(rel), target)) {
				return fmt.Errorf("%w: %s links to %s, which is not below the source; copy it there", ErrBuild, rel, target)
			}
			return root.Symlink(target, rel)
		case 0:
			f, err := os.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			fi, err := f.Stat()
			if err != nil {
				return err
			}
			return writeFile(root, rel, fi.Mode(), f)
		default:
			return fmt.Errorf("%w: %s: %s, want directories, files and symbolic links", ErrBuild, rel, d.Type())
		}
	})
}

// unpack takes the source out of a Debian package: the directory of
// /usr/src/*/dkms.conf.
func (b *build) unpack(ctx context.Context) error {
	d, err := deb.Open(b.Source)
	if err != nil {
		return err
	}
	t, err := d.Tree(ctx, func(name string) bool { return strings.HasPrefix(name, "usr/src/") })
	if err != nil {
		return err
	}
	var dirs []string
	for name := range t.All() {
		if ok, _ := path.Match("usr/src/*/dkms.conf", name); ok {
			dirs = append(dirs, path.Dir(name))
		}
	}
	if len(dirs) != 1 {
		return fmt.Errorf("%w: %s has %d files /usr/src/*/dkms.conf, want one: a package NAME-dkms", ErrBuild, d.Name(), len(dirs))
	}
	root, err := os.OpenRoot(b.src)
	if err != nil {
		return err
	}
	defer root.Close()
	for name, ino := range t.All() {
		rel, ok := strings.CutPrefix(name, dirs[0]+"/")
		if !ok {
			continue
		}
		if err := unpackEntry(root, rel, ino); err != nil {
			return fmt.Errorf("/%s: %w", name, err)
		}
	}
	return nil
}

func unpackEntry(root *os.Root, name string, ino *tree.Inode) error {
	switch {
	case ino.Mode.IsDir():
		return root.Mkdir(name, 0o755)
	case ino.Mode.IsRegular() && ino.Content == nil:
		return writeFile(root, name, ino.Mode, strings.NewReader(""))
	case ino.Mode.IsRegular():
		return writeFile(root, name, ino.Mode, io.NewSectionReader(ino.Content, 0, ino.Size()))
	case ino.Mode&fs.ModeSymlink != 0 && filepath.IsLocal(path.Join(path.Dir(name), ino.Target)) && !path.IsAbs(ino.Target):
		return root.Symlink(ino.Target, name)
	case ino.Mode&fs.ModeSymlink != 0:
		return nil // to documentation in another place of the package
	default:
		return fmt.Errorf("%w: %s", ErrRefused, ino.Mode.Type())
	}
}

// installed matches where an installed kernel's headers are, the release being
// text, a variable, or a command: /lib/modules/$(shell uname -r)/build.
var installed = regexp.MustCompile(`(?:/usr)?/lib/modules/(?:\$\([^()\n]*(?:\([^()\n]*\)[^()\n]*)*\)|\$\{[^}\n]*\}|` + "`[^`\n]*`" + `|\$\w+|[\w.+-]+)/(?:build|source)\b`)

// redirect makes makefiles that look for the headers of an installed kernel
// look into the kit. Variables for it have many names (KDIR, KERNELDIR, KSRC,
// …), but their values are all alike.
func redirect(dir, build string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		base := strings.ToLower(d.Name())
		if !strings.HasPrefix(base, "makefile") && base != "gnumakefile" && base != "kbuild" && path.Ext(base) != ".mk" {
			return nil
		}
		data, err := root.ReadFile(name)
		if err != nil || !installed.Match(data) {
			return err
		}
		return root.WriteFile(name, installed.ReplaceAllLiteral(data, []byte(build)), 0o644)
	})
}

// exclusive refuses kernels that a dkms.conf is not for.
func (b *build) exclusive() error {
	e := b.conf.Exclusive
	for _, x := range []struct{ name, pattern, got string }{
		{"BUILD_EXCLUSIVE_KERNEL", e.Kernel, b.config.Release}, {"BUILD_EXCLUSIVE_ARCH", e.Arch, machine[b.config.Arch]},
	} {
		ok, err := match(x.pattern, x.got)
		if err != nil {
			return fmt.Errorf("%w: dkms.conf: %s: %w", ErrBuild, x.name, err)
		}
		if !ok {
			return fmt.Errorf("%w: dkms.conf is for %s %q, this is %s", ErrBuild, x.name, x.pattern, x.got)
		}
	}
	if e.Min != "" && older(b.config.Release, e.Min) {
		return fmt.Errorf("%w: dkms.conf is for kernels from %s, this is %s", ErrBuild, e.Min, b.config.Release)
	}
	if e.Max != "" && older(e.Max, b.config.Release) {
		return fmt.Errorf("%w: dkms.conf is for kernels up to %s, this is %s", ErrBuild, e.Max, b.config.Release)
	}
	if len(e.Options) == 0 {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(b.Kit, buildDir, ".config"))
	if err != nil {
		return err
	}
	set := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && (value == "y" || value == "m") {
			set[name] = true
		}
	}
	for _, option := range e.Options {
		if name, not := strings.CutPrefix(option, "!"); set[name] == not {
			return fmt.Errorf("%w: dkms.conf is for kernels with %s; kernel %s is not configured so", ErrBuild, option, b.config.Release)
		}
	}
	return nil
}

// match matches an extended regular expression, as bash's =~ does.
func match(pattern, s string) (bool, error) {
	if pattern == "" {
		return true, nil
	}
	re, err := regexp.CompilePOSIX(pattern)
	return err == nil && re.MatchString(s), err
}

// older compares the numbers that two kernel releases begin with.
func older(a, b string) bool {
	x, y := numbers(a), numbers(b)
	for i := range x {
		if x[i] != y[i] {
			return x[i] < y[i]
		}
	}
	return false
}

func numbers(release string) (list [3]int) {
	for i, s := range strings.SplitN(release, ".", 3) {
		end := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
		if end < 0 {
			end = len(s)
		}
		list[i], _ = strconv.Atoi(s[:end])
	}
	return list
}

// patch applies the patches that a dkms.conf names for the kernel.
func (b *build) patch(ctx context.Context) error {
	for _, p := range b.conf.Patches {
		ok, err := match(p.Match, b.config.Release)
		if err != nil {
			return fmt.Errorf("%w: dkms.conf: PATCH_MATCH: %w", ErrBuild, err)
		}
		if !ok {
			continue
		}
		if _, err := exec.LookPath("patch"); err != nil {
			return missing("patch", "patch")
		}
		err = b.command(ctx, b.src, nil, "patch", "-p1", "--batch", "--input", filepath.Join("patches", p.File))
		if err != nil {
			return b.failure("patch "+p.File, err)
		}
	}
	return nil
}
