// Package closure checks that every program in a root file system finds the
// loader and the libraries it needs there, and that they are musl's.
//
// It follows what musl's loader does (ldso/dynlink.c, "Dynamic linker" in
// musl's manual): a needed library is looked for in the RPATH and RUNPATH of
// the object that needs it and of those that led to it, then in the directories
// of /etc/ld-musl-ARCH.path or, without that file, in /lib, /usr/local/lib and
// /usr/lib. The names of the C library's parts (libc, libm, libpthread, …) mean
// the loader itself.
//
// Kernel modules, firmware and other files that no program loader touches are
// not looked at.
package closure

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// Finding is one fault of one file.
type Finding struct {
	Path string // in the tree
	Text string
}

func (f Finding) String() string { return f.Path + ": " + f.Text }

// Error lists all findings, ordered by path.
type Error struct{ Findings []Finding }

func (e *Error) Error() string {
	lines := make([]string, len(e.Findings))
	for i, f := range e.Findings {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

// abi is what an architecture calls itself in ELF files and in musl.
type abi struct {
	machine elf.Machine
	name    string // musl's
}

func abiOf(arch string) (abi, error) {
	switch arch {
	case "amd64":
		return abi{elf.EM_X86_64, "x86_64"}, nil
	case "arm64":
		return abi{elf.EM_AARCH64, "aarch64"}, nil
	}
	return abi{}, fmt.Errorf("unknown architecture %q, want amd64 or arm64", arch)
}

// Check checks all executables and shared objects in t, the root file system
// of an image for arch, "amd64" or "arm64". If there is anything to complain
// about the error is an *Error.
func Check(ctx context.Context, t *tree.Tree, arch string) error {
	a, err := abiOf(arch)
	if err != nil {
		return err
	}
	c := checker{tree: t, abi: a, files: map[string]*binaryFile{}, reached: map[string]bool{}, loaded: map[string]bool{}, seen: map[Finding]bool{}}
	if c.system, err = c.systemPath(); err != nil {
		return err
	}
	for name, ino := range t.All() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !ino.Mode.IsRegular() || ino.Content == nil || foreign(name) || !isELF(ino.Content) {
			continue
		}
		b, err := readELF(ino.Content)
		switch {
		case errors.Is(err, errNotELF):
		case err != nil:
			c.find(name, "damaged ELF file: %v", err)
		default:
			c.files[name] = b
		}
	}
	names := make([]string, 0, len(c.files))
	for name := range c.files {
		names = append(names, name)
	}
	slices.Sort(names)
	var sound []string // the rest's libraries would only repeat the fault
	for _, name := range names {
		if c.checkFile(name, c.files[name]) {
			sound = append(sound, name)
		}
	}
	// Libraries are looked at the way programs reach them, because the
	// program's RPATH counts for them; then those that no program names.
	for _, name := range sound {
		if c.files[name].interp != "" {
			c.load(name, nil, nil)
		}
	}
	for _, name := range sound {
		if !c.reached[name] {
			c.load(name, nil, nil)
		}
	}
	if c.loads > maxLoads {
		return fmt.Errorf("more than %d ways in which libraries need each other", maxLoads)
	}
	if len(c.findings) == 0 {
		return nil
	}
	slices.SortStableFunc(c.findings, func(a, b Finding) int { return strings.Compare(a.Path, b.Path) })
	return &Error{c.findings}
}

// foreign says whether a file is for the kernel or for other processors.
func foreign(name string) bool {
	for _, dir := range []string{"lib/modules/", "lib/firmware/"} {
		if strings.HasPrefix(strings.TrimPrefix(name, "usr/"), dir) {
			return true
		}
	}
	return false
}

type checker struct {
	tree     *tree.Tree
	abi      abi
	system   []string               // directories searched last
	files    map[string]*binaryFile // by resolved path
	reached  map[string]bool        // those whose needs have been looked at
	loaded   map[string]bool        // the same, with the directories searched
	loads    int                    // size of loaded
	seen     map[Finding]bool
	findings []Finding
}

func (c *checker) find(name, format string, args ...any) {
	f := Finding{name, fmt.Sprintf(format, args...)}
	if !c.seen[f] {
		c.seen[f] = true
		c.findings = append(c.findings, f)
	}
}

// systemPath returns the directories of musl's path file, or the default.
func (c *checker) systemPath() ([]string, error) {
	name, err := c.tree.Resolve("etc/ld-musl-" + c.abi.name + ".path")
	if err != nil {
		return nil, err
	}
	ino := c.tree.Lookup(name)
	if ino == nil || !ino.Mode.IsRegular() {
		return []string{"/lib", "/usr/local/lib", "/usr/lib"}, nil
	}
	if ino.Size() > 1<<16 {
		return nil, fmt.Errorf("%s: %d bytes, want at most %d", name, ino.Size(), 1<<16)
	}
	if ino.Content == nil {
		return nil, nil
	}
	b, err := io.ReadAll(extent.Reader(ino.Content))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return strings.FieldsFunc(string(b), func(r rune) bool { return r == ':' || r == '\n' }), nil
}

// checkFile checks one file by itself and says whether its libraries are worth
// looking for.
func (c *checker) checkFile(name string, b *binaryFile) bool {
	if b.machine != c.abi.machine || b.class != elf.ELFCLASS64 {
		c.find(name, "built for %s, the root file system is for %s", machine(b), machine(&binaryFile{machine: c.abi.machine, class: elf.ELFCLASS64}))
		return false
	}
	if sign := glibc(b); sign != "" {
		c.find(name, "built for glibc (%s), the root file system is musl; build it with musl-gcc or statically", sign)
		return false
	}
	if b.interp == "" {
		return true
	}
	want := "/lib/ld-musl-" + c.abi.name + ".so.1"
	resolved, err := c.tree.Resolve(b.interp)
	switch {
	case err != nil:
		c.find(name, "interpreter %s: %v", b.interp, err)
	case path.Base(b.interp) != path.Base(want):
		c.find(name, "interpreter %s is not musl's; want %s", b.interp, want)
	case c.tree.Lookup(resolved) == nil:
		c.find(name, "needs the interpreter %s, which is not in the tree; add the package musl", b.interp)
	case c.files[resolved] == nil:
		c.find(name, "interpreter %s: %s is not an ELF executable or shared object", b.interp, resolved)
	}
	return true
}

// glibc returns what shows that b was built for glibc, or "".
func glibc(b *binaryFile) string {
	switch {
	case strings.HasPrefix(path.Base(b.interp), "ld-linux"):
		return "interpreter " + b.interp
	case slices.Contains(b.needed, "libc.so.6"):
		return "needs libc.so.6"
	case b.glibc != "":
		return "needs " + b.glibc
	}
	return ""
}

func machine(b *binaryFile) string {
	switch b.machine {
	case elf.EM_X86_64:
		if b.class == elf.ELFCLASS32 {
			return "x32"
		}
		return "x86-64"
	case elf.EM_386:
		return "i386"
	case elf.EM_AARCH64:
		return "aarch64"
	}
	return strings.ToLower(strings.TrimPrefix(b.machine.String(), "EM_"))
}

// maxLoads bounds the work that hostile RPATHs can make.
const maxLoads = 1 << 16

// load looks for what the named file needs, when it was loaded by the files in
// chain, whose RPATHs are inherited.
func (c *checker) load(name string, chain, inherited []string) {
	search := slices.Concat(c.rpath(name), inherited)
	key := name + "\x00" + strings.Join(search, ":")
	if c.loaded[key] || c.loads > maxLoads {
		return
	}
	c.loaded[key], c.reached[name] = true, true
	c.loads++
	chain = append(slices.Clip(chain), name)
	for _, lib := range c.files[name].needed {
		found, fault := c.library(lib, search)
		switch {
		case fault != "":
			c.find(name, "needs %s, %s", lib, fault)
		case len(chain) > 256:
			c.find(name, "needs %s, the last of more than 256 libraries that need each other", lib)
		case found != "" && !slices.Contains(chain, found):
			c.load(found, chain, search)
		}
	}
}

// rpath returns the directories that the named file asks to be searched.
func (c *checker) rpath(name string) []string {
	var dirs []string
	for _, d := range c.files[name].rpath {
		d = strings.ReplaceAll(d, "${ORIGIN}", "$ORIGIN")
		d = strings.ReplaceAll(d, "$ORIGIN", "/"+path.Dir(name))
		if d != "" && !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// library returns the file that is meant by lib, "" if it is the loader, or
// the end of a sentence that says what is wrong.
func (c *checker) library(lib string, search []string) (found, fault string) {
	if reserved(lib) {
		return "", ""
	}
	candidates := []string{lib}
	if !strings.Contains(lib, "/") {
		candidates = nil
		for _, dir := range slices.Concat(search, c.system) {
			candidates = append(candidates, path.Join(dir, lib))
		}
	}
	for _, p := range candidates {
		resolved, err := c.tree.Resolve(p)
		if err != nil {
			continue
		}
		if ino := c.tree.Lookup(resolved); ino == nil || !ino.Mode.IsRegular() {
			continue
		}
		if c.files[resolved] == nil {
			return "", fmt.Sprintf("but %s is not an ELF executable or shared object", resolved)
		}
		return resolved, ""
	}
	return "", "which is not in the tree"
}

// reserved says whether a library's name means musl itself.
func reserved(lib string) bool {
	for _, part := range []string{"c", "pthread", "rt", "m", "dl", "util", "xnet"} {
		if strings.HasPrefix(lib, "lib"+part+".") {
			return true
		}
	}
	return false
}
