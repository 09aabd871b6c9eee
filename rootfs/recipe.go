// Package rootfs makes the root file system of an image out of a recipe: a YAML
// document that says which directories, files, links, accounts, Go programs,
// files of Debian packages, prebuilt programs and certificates it consists of.
//
// The result is a file tree that depends on the recipe and its sources only:
// every owner is 0:0 unless the recipe says otherwise, and every time is the
// one given. A path that two parts of the recipe provide is an error.
package rootfs

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnhq/kiln/internal/strictyaml"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// Version is the version of the recipe's format.
const Version = "v1alpha1"

// Recipe says what a root file system consists of. In all paths, and in the
// names of packages and trees, ${ARCH} stands for the architecture as Go and
// Debian name it (amd64, arm64), ${MUSL_ARCH} for musl's name (x86_64,
// aarch64) and ${VERSION} for the version of what is built. In the contents of
// files and the values of programs these three are replaced too, and anything
// else of that form is left alone.
//
// Where a parent directory is a symbolic link the path goes through it, so with
// /lib -> usr/lib the file /lib/x becomes /usr/lib/x.
type Recipe struct {
	Version      string        `yaml:"version"` // "v1alpha1"
	Name         string        `yaml:"name"`
	Extends      string        `yaml:"extends"` // a file next to this one: a recipe of which this one is more
	Directories  []Directory   `yaml:"directories"`
	Symlinks     []Symlink     `yaml:"symlinks"`
	Files        []File        `yaml:"files"`
	Users        []User        `yaml:"users"`
	Groups       []Group       `yaml:"groups"`
	Programs     []Program     `yaml:"programs"`
	Packages     []Package     `yaml:"packages"`
	Trees        []Prebuilt    `yaml:"trees"`
	Certificates *Certificates `yaml:"certificates"`

	// These describe the parts of a base that need the kernel. They are
	// checked here and used by whoever has it.
	Modules   Modules   `yaml:"modules"`
	Firmware  Firmware  `yaml:"firmware"`
	Initramfs Initramfs `yaml:"initramfs"`

	Limits Limits `yaml:"limits"`

	path string // of the recipe, for errors and relative sources
}

// Directory is an empty directory, or the mode and owner of one that others
// put files in.
type Directory struct {
	Path string `yaml:"path"`
	Mode Mode   `yaml:"mode"` // default 0755
	UID  uint32 `yaml:"uid"`
	GID  uint32 `yaml:"gid"`
}

// File is a regular file with a content that is written in the recipe or is in
// a file next to it.
type File struct {
	Path    string  `yaml:"path"`
	Mode    Mode    `yaml:"mode"` // default 0644
	UID     uint32  `yaml:"uid"`
	GID     uint32  `yaml:"gid"`
	Content *string `yaml:"content"`
	Source  string  `yaml:"source"` // relative to the recipe
}

// Symlink is a symbolic link.
type Symlink struct {
	Path   string `yaml:"path"`
	Target string `yaml:"target"`
}

// User is a line of /etc/passwd. A group of the same name is made for it if the
// recipe has none with its gid.
type User struct {
	Name  string `yaml:"name"`
	UID   uint32 `yaml:"uid"`
	GID   uint32 `yaml:"gid"`
	Home  string `yaml:"home"`  // default "/"
	Shell string `yaml:"shell"` // default "/usr/sbin/nologin"
}

// Group is a line of /etc/group.
type Group struct {
	Name    string   `yaml:"name"`
	GID     uint32   `yaml:"gid"`
	Members []string `yaml:"members"`
}

// Program is a main package of Go, built statically.
type Program struct {
	Path    string            `yaml:"path"`
	Package string            `yaml:"package"` // as for go build, in Module
	Tags    []string          `yaml:"tags"`    // build constraints that are met
	Values  map[string]string `yaml:"values"`  // for the linker's -X: import path and name to value

	// Module is a directory, relative to the recipe, with a go.mod and a go.sum
	// that pin the package's version and those of all it is made of; without
	// replacements by directories. By default it is the Go directory.
	Module string `yaml:"module"`

	// Sysroot is the name of a directory, found as those of Trees are, with musl
	// and the C libraries that the program uses. Without it a program has no C.
	Sysroot string `yaml:"sysroot"`
}

// Package is a Debian package some files are taken from. Its maintainer scripts
// are not run.
type Package struct {
	Name  string        `yaml:"name"`
	Files []PackageFile `yaml:"files"`
}

// PackageFile says which files to take out of a package and where to put them.
// In From, * and ? stand for parts of one name and ** for any number of names;
// a directory stands for everything in it. Packages from before and after the
// merge of /lib into /usr/lib are the same: both are taken as merged.
type PackageFile struct {
	From string `yaml:"from"`

	// To is the new path or, if it ends in a slash, the new directory of what
	// From names. With a pattern it takes the place of the directories before
	// the first wildcard. By default nothing is renamed.
	To string `yaml:"to"`
}

// Prebuilt is a directory with ready files, as programs in C, found in one of
// the directories the caller searches.
type Prebuilt struct {
	Source string `yaml:"source"` // name of the directory
	To     string `yaml:"to"`     // default "/"
}

// Certificates puts all certificate authorities of a package into one file.
type Certificates struct {
	Package string `yaml:"package"`
	To      string `yaml:"to"` // default "/etc/ssl/certs/ca-certificates.crt"
}

// Modules selects kernel modules.
type Modules struct {
	Include []Pattern `yaml:"include"`
	Exclude []Pattern `yaml:"exclude"`
}

// Firmware says where the firmware of the selected modules comes from.
type Firmware struct {
	Packages []string `yaml:"packages"`
	Include  []string `yaml:"include"` // more files, as patterns below /usr/lib/firmware
}

// Initramfs says what is needed before there is a root file system.
type Initramfs struct {
	Program string    `yaml:"program"` // a main package of Go that becomes /init
	Modules []Pattern `yaml:"modules"`
}

// Pattern selects kernel modules: by name as the kernel writes it, with
// underscores ("virtio_net", "nf_*") or, with a slash in it, by path below
// lib/modules/RELEASE without the file's extension ("kernel/fs/ext4/**"). What
// is built into the kernel matches as well. A question mark at the end is no
// wildcard: it says that some kernels have no such module.
type Pattern string

// Optional says whether the pattern may match nothing.
func (p Pattern) Optional() bool { return strings.HasSuffix(string(p), "?") }

// Glob returns the pattern without the mark that it is optional.
func (p Pattern) Glob() string { return strings.TrimSuffix(string(p), "?") }

// Match says whether the pattern selects the module in file, a path below
// lib/modules/RELEASE as files there and lines of modules.builtin have it
// ("kernel/fs/ext4/ext4.ko.xz").
func (p Pattern) Match(file string) bool {
	base := path.Base(file)
	stem, _, ok := strings.Cut(base, ".ko")
	if !ok {
		return false
	}
	if strings.Contains(p.Glob(), "/") {
		return matchGlob(p.Glob(), strings.TrimSuffix(file, base)+stem)
	}
	return matchGlob(p.Glob(), strings.ReplaceAll(stem, "-", "_"))
}

// Mode is permissions with setuid, setgid and sticky bits, written in octal as
// chmod(1) takes them: "0755", "1777".
type Mode fs.FileMode

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *Mode) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 8, 32)
	if err != nil || n > 0o7777 {
		return fmt.Errorf("mode %q, want octal digits as in \"0755\"", text)
	}
	*m = Mode(n & 0o777)
	for _, bit := range []struct {
		octal uint64
		mode  fs.FileMode
	}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}} {
		if n&bit.octal != 0 {
			*m |= Mode(bit.mode)
		}
	}
	return nil
}

// Load reads and checks the recipe in the file at path, and the one it extends.
func Load(path string) (*Recipe, error) {
	r, err := load(path)
	if err != nil {
		return nil, err
	}
	if r.Extends != "" {
		under, err := load(filepath.Join(filepath.Dir(path), r.Extends))
		if err != nil {
			return nil, fmt.Errorf("%s: extends: %w", path, err)
		}
		if under.Extends != "" {
			return nil, fmt.Errorf("%s: extends: %s extends %s itself; want a recipe that extends none", path, under.path, under.Extends)
		}
		r.extend(under)
		c := &checker{file: path}
		if r.validateAccounts(c); len(c.errs) > 0 {
			return nil, errors.Join(c.errs...)
		}
	}
	return r, nil
}

func load(path string) (*Recipe, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parse(path, data)
}

// parse reads a recipe and checks all that can be checked without the one it
// extends.
func parse(path string, data []byte) (*Recipe, error) {
	r := &Recipe{path: path}
	if err := strictyaml.Decode(path, data, r); err != nil {
		return nil, err
	}
	if err := r.validate(); err != nil {
		return nil, err
	}
	return r, nil
}

// extend puts what under has before what r has.
func (r *Recipe) extend(under *Recipe) {
	r.Directories = slices.Concat(under.Directories, r.Directories)
	r.Symlinks = slices.Concat(under.Symlinks, r.Symlinks)
	r.Files = slices.Concat(under.Files, r.Files)
	r.Users = slices.Concat(under.Users, r.Users)
	r.Groups = slices.Concat(under.Groups, r.Groups)
	r.Programs = slices.Concat(under.Programs, r.Programs)
	r.Packages = slices.Concat(under.Packages, r.Packages)
	r.Trees = slices.Concat(under.Trees, r.Trees)
	if r.Certificates == nil {
		r.Certificates = under.Certificates
	}
	r.Modules.Include = slices.Concat(under.Modules.Include, r.Modules.Include)
	r.Modules.Exclude = slices.Concat(under.Modules.Exclude, r.Modules.Exclude)
	r.Firmware.Packages = slices.Concat(under.Firmware.Packages, r.Firmware.Packages)
	r.Firmware.Include = slices.Concat(under.Firmware.Include, r.Firmware.Include)
	r.Initramfs.Program = cmp.Or(r.Initramfs.Program, under.Initramfs.Program)
	r.Initramfs.Modules = slices.Concat(under.Initramfs.Modules, r.Initramfs.Modules)
	r.Limits.Squashfs = cmp.Or(r.Limits.Squashfs, under.Limits.Squashfs)
}

// A checker collects what is wrong with a recipe.
type checker struct {
	file string
	errs []error
}

func (c *checker) fail(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf("%s: %w", c.file, fmt.Errorf(format, args...)))
}

// path checks an absolute path.
func (c *checker) path(where, p string) {
	if !strings.HasPrefix(p, "/") || slices.Contains(strings.Split(p, "/"), "..") || !tree.Valid(path.Clean(p)[1:]) {
		c.fail("%s: %q, want a path that begins with / and has no ..", where, p)
	}
}

// word checks what must be there and must not break a line or a path.
func (c *checker) word(where, s string) {
	if s == "" || strings.ContainsAny(s, " \t\n\x00:/") {
		c.fail("%s: %q, want a name", where, s)
	}
}

func (c *checker) relative(where, s string) {
	if !fs.ValidPath(s) || s == "." {
		c.fail("%s: %q, want a relative path without ..", where, s)
	}
}

func (c *checker) glob(where, s string) {
	if s == "" || strings.ContainsAny(s, "[]\\\x00") {
		c.fail("%s: %q, want a name or a pattern with *, ** and ?", where, s)
	}
}

func (r *Recipe) validate() error {
	c := &checker{file: r.path}
	if r.Version != Version {
		c.fail("version: %q, want %q", r.Version, Version)
	}
	c.word("name", r.Name)
	if r.Extends != "" {
		c.word("extends", r.Extends)
	}
	for i, d := range r.Directories {
		c.path(fmt.Sprintf("directories[%d].path", i), d.Path)
	}
	for i, l := range r.Symlinks {
		c.path(fmt.Sprintf("symlinks[%d].path", i), l.Path)
		if l.Target == "" || strings.IndexByte(l.Target, 0) >= 0 {
			c.fail("symlinks[%d].target: %q, want a path", i, l.Target)
		}
	}
	for i, f := range r.Files {
		c.path(fmt.Sprintf("files[%d].path", i), f.Path)
		switch {
		case (f.Content == nil) == (f.Source == ""):
			c.fail("files[%d]: %s: want either content or source", i, f.Path)
		case f.Source != "":
			c.relative(fmt.Sprintf("files[%d].source", i), f.Source)
		}
	}
	for i, p := range r.Programs {
		c.path(fmt.Sprintf("programs[%d].path", i), p.Path)
		if p.Package == "" || strings.HasPrefix(p.Package, "-") {
			c.fail("programs[%d].package: %q, want a Go package", i, p.Package)
		}
		if p.Module != "" {
			c.relative(fmt.Sprintf("programs[%d].module", i), p.Module)
		}
		if p.Sysroot != "" {
			c.relative(fmt.Sprintf("programs[%d].sysroot", i), p.Sysroot)
		}
		for j, tag := range p.Tags {
			if tag == "" || strings.ContainsAny(tag, " ,-\x00") {
				c.fail("programs[%d].tags[%d]: %q, want a build constraint", i, j, tag)
			}
		}
		for k, v := range p.Values {
			if strings.ContainsAny(k+v, "'\"\n\x00") || !strings.Contains(k, ".") {
				c.fail("programs[%d].values: %s=%q, want importpath.name and a value without quotes", i, k, v)
			}
		}
	}
	for i, p := range r.Packages {
		c.word(fmt.Sprintf("packages[%d].name", i), p.Name)
		if len(p.Files) == 0 {
			c.fail("packages[%d]: %s: no files; want at least one", i, p.Name)
		}
		for j, f := range p.Files {
			where := fmt.Sprintf("packages[%d].files[%d]", i, j)
			c.path(where+".from", f.From)
			c.glob(where+".from", f.From)
			if f.To != "" {
				c.path(where+".to", f.To)
			}
		}
	}
	for i, t := range r.Trees {
		c.relative(fmt.Sprintf("trees[%d].source", i), t.Source)
		if t.To != "" && t.To != "/" {
			c.path(fmt.Sprintf("trees[%d].to", i), t.To)
		}
	}
	if r.Certificates != nil {
		c.word("certificates.package", r.Certificates.Package)
		if r.Certificates.To != "" {
			c.path("certificates.to", r.Certificates.To)
		}
	}
	for i, p := range r.Firmware.Packages {
		c.word(fmt.Sprintf("firmware.packages[%d]", i), p)
	}
	for i, p := range r.Firmware.Include {
		c.glob(fmt.Sprintf("firmware.include[%d]", i), p)
	}
	for _, list := range []struct {
		where    string
		patterns []Pattern
	}{{"modules.include", r.Modules.Include}, {"modules.exclude", r.Modules.Exclude}, {"initramfs.modules", r.Initramfs.Modules}} {
		for i, p := range list.patterns {
			c.glob(fmt.Sprintf("%s[%d]", list.where, i), p.Glob())
		}
	}
	if r.Limits.Squashfs < 0 {
		c.fail("limits.squashfs: %d, want a number of bytes", r.Limits.Squashfs)
	}
	if r.Extends == "" {
		r.validateAccounts(c)
	}
	return errors.Join(c.errs...)
}
