package kit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnhq/kiln/kernel/deb"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// Request is what to make a kit from.
type Request struct {
	Packages []string // .deb files: linux-headers-RELEASE, linux-headers-…-common, linux-kbuild-…

	// The kernel that the kit has to be for.
	Arch    string
	Release string
	Symvers []byte // its Module.symvers

	Epoch int64 // time of the artifact, seconds since 1970
}

// sourceArch are the kernel's names for architectures.
var sourceArch = map[string]string{"amd64": "x86", "arm64": "arm64"}

// maxFile bounds the files that are read as a whole. Module.symvers has 1 MB.
const maxFile = 64 << 20

// Build makes a kit and stores it as an OCI image layout at output, replacing
// one that is there.
func Build(ctx context.Context, r Request, output string) error {
	if sourceArch[r.Arch] == "" {
		return fmt.Errorf("kernel kit: architecture %q, want amd64 or arm64", r.Arch)
	}
	if !validRelease(r.Release) {
		return fmt.Errorf("kernel kit: kernel release %q", r.Release)
	}
	p := packer{Request: r, config: Config{Version: 1, Arch: r.Arch, Release: r.Release}, parts: map[string]string{}, from: tree.New(), kit: tree.New()}
	for _, name := range r.Packages {
		if err := p.read(ctx, name); err != nil {
			return fmt.Errorf("kernel kit: %w", err)
		}
	}
	if err := p.pack(); err != nil {
		return fmt.Errorf("kernel kit: %w", err)
	}
	return write(ctx, output, p.config, p.kit, r.Epoch)
}

type packer struct {
	Request
	config Config
	parts  map[string]string // directory in the packages -> directory of the kit
	from   *tree.Tree        // the packages' files
	kit    *tree.Tree
}

var (
	headersPath = regexp.MustCompile(`^usr/src/(linux-headers-[^/]+)$`)
	kbuildPath  = regexp.MustCompile(`^usr/lib/linux-kbuild-[^/]+$`)
)

// read adds the files of a package.
func (p *packer) read(ctx context.Context, name string) error {
	d, err := deb.Open(name)
	if err != nil {
		return err
	}
	t, err := d.Tree(ctx, func(n string) bool { return !strings.HasPrefix(n, "usr/share/") })
	if err != nil {
		return err
	}
	var found string
	for n, ino := range t.All() {
		if ino.Mode.IsDir() {
			if m := headersPath.FindStringSubmatch(n); m != nil {
				found = n
				if err := p.headers(d, n, m[1]); err != nil {
					return err
				}
			} else if kbuildPath.MatchString(n) {
				found = n
				p.parts[n], p.config.Host = kbuildDir, d.Architecture
			}
		}
		if old := p.from.Lookup(n); old != nil && old.Mode.IsDir() && ino.Mode.IsDir() {
			continue
		}
		if err := p.from.Add(n, ino); err != nil {
			return fmt.Errorf("%s: %w", d.Name(), err)
		}
	}
	if found == "" {
		return fmt.Errorf("%w: %s: has neither /usr/src/linux-headers-… nor /usr/lib/linux-kbuild-…", ErrRefused, d.Name())
	}
	p.config.Packages = append(p.config.Packages, d.Name())
	return nil
}

// headers takes a directory of headers: those of the kernel or common ones.
func (p *packer) headers(d *deb.Package, dir, name string) error {
	if strings.HasSuffix(name, "-common") {
		p.parts[dir] = commonDir
		return nil
	}
	if release := strings.TrimPrefix(name, "linux-headers-"); release != p.Release {
		return fmt.Errorf("%w: %s is for kernel %s, the base has %s", ErrRefused, d.Name(), release, p.Release)
	}
	if d.Architecture != p.Arch {
		return fmt.Errorf("%w: %s is for %s, the base is for %s", ErrRefused, d.Name(), d.Architecture, p.Arch)
	}
	p.parts[dir] = buildDir
	return nil
}

func (p *packer) pack() error {
	build := p.dir(buildDir)
	if build == "" {
		return fmt.Errorf("%w: none of the packages is linux-headers-%s", ErrRefused, p.Release)
	}
	if p.config.Host == "" { // headers of 'make bindeb-pkg' bring their own
		p.config.Host = p.Arch
	}
	if err := p.check(build); err != nil {
		return err
	}
	for old, dir := range p.parts {
		for name, ino := range p.from.All() {
			rest, ok := strings.CutPrefix(name, old)
			if !ok || rest != "" && rest[0] != '/' || p.unneeded(dir+rest) {
				continue
			}
			ino, err := p.relocate(name, dir+rest, ino)
			if err != nil {
				return fmt.Errorf("/%s: %w", name, err)
			}
			if err := p.kit.Add(dir+rest, ino); err != nil {
				return fmt.Errorf("/%s: %w", name, err)
			}
		}
	}
	slices.Sort(p.config.Packages)
	return nil
}

// dir returns the directory in the packages that becomes the kit's.
func (p *packer) dir(name string) string {
	for old, dir := range p.parts {
		if dir == name {
			return old
		}
	}
	return ""
}

// unneeded says what of the packages is left out: headers of other
// architectures, half of all, and vmlinux, which only has the kernel's BTF. With
// it, modules would get BTF if a program to make it happens to be installed, and
// would be different on two machines.
func (p *packer) unneeded(name string) bool {
	if rest, ok := strings.CutPrefix(name, commonDir+"/arch/"); ok {
		dir, _, _ := strings.Cut(rest, "/")
		old := p.from.Lookup(p.dir(commonDir) + "/arch/" + dir)
		return dir != sourceArch[p.Arch] && old != nil && old.Mode.IsDir()
	}
	return name == buildDir+"/vmlinux"
}

// check compares the headers with the kernel they have to be for, and reads what
// else is to know of it.
func (p *packer) check(build string) error {
	release, err := p.file(build + "/include/config/kernel.release")
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(string(release)); got != p.Release {
		return fmt.Errorf("%w: the headers are for kernel %s, the base has %s", ErrRefused, got, p.Release)
	}
	symvers, err := p.file(build + "/Module.symvers")
	if err != nil {
		return err
	}
	if !bytes.Equal(symvers, p.Symvers) {
		return fmt.Errorf("%w: Module.symvers of the headers is not that of the base: %s; take the headers of the same build of kernel %s",
			ErrRefused, difference(symvers, p.Symvers), p.Release)
	}
	sum := sha256.Sum256(symvers)
	p.config.Symvers = hex.EncodeToString(sum[:])
	config, err := p.file(build + "/.config")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(config)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "CONFIG_CC_VERSION_TEXT":
			p.config.Compiler, _ = strconv.Unquote(value)
		case "CONFIG_GCC_VERSION": // 120200 for 12.2.0
			n, _ := strconv.Atoi(value)
			p.config.GCC = n / 10000
		}
	}
	if p.config.Compiler == "" {
		return fmt.Errorf("%w: /%s/.config: no CONFIG_CC_VERSION_TEXT", ErrRefused, build)
	}
	return nil
}

// difference names the first symbol in which two Module.symvers differ.
func difference(headers, base []byte) string {
	crcs := func(data []byte) map[string]string {
		m := map[string]string{}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) >= 2 {
				m[f[1]] = f[0]
			}
		}
		return m
	}
	a, b := crcs(headers), crcs(base)
	for line := range strings.Lines(string(base)) {
		if f := strings.Fields(line); len(f) >= 2 && a[f[1]] != b[f[1]] {
			return fmt.Sprintf("%s is %q, in the base %q", f[1], a[f[1]], b[f[1]])
		}
	}
	return fmt.Sprintf("%d symbols, in the base %d", len(a), len(b))
}

func (p *packer) file(name string) ([]byte, error) {
	ino := p.from.Lookup(name)
	if ino == nil || !ino.Mode.IsRegular() {
		return nil, fmt.Errorf("%w: no file /%s in the packages", ErrRefused, name)
	}
	if ino.Size() > maxFile {
		return nil, fmt.Errorf("%w: /%s: %d bytes, want at most %d", ErrRefused, name, ino.Size(), maxFile)
	}
	if ino.Content == nil {
		return nil, nil
	}
	return io.ReadAll(io.NewSectionReader(ino.Content, 0, ino.Size()))
}

// relocate returns the file old of the packages as it is in the kit, where
// nothing may depend on where the packages would be installed. Debian's headers
// do in three places:
//
//   - build/Makefile is one line, "include /usr/src/linux-headers-…-common/Makefile".
//     It names the same file by where the line itself stands. The kernel's
//     Makefile takes the source tree to be where it is included from.
//   - scripts and tools are links to /usr/lib/linux-kbuild-….
//   - build/.kernelvariables chooses the compiler by its Debian name, with a
//     prefix that only Debian's compilers have. In the kit it takes KILN_CC and
//     CROSS_COMPILE of the environment.
func (p *packer) relocate(old, name string, ino *tree.Inode) (*tree.Inode, error) {
	result := &tree.Inode{Mode: ino.Mode.Type() | 0o644, Content: ino.Content}
	switch {
	case ino.Mode.IsDir() || ino.Mode&0o111 != 0 && ino.Mode.IsRegular():
		result.Mode = ino.Mode.Type() | 0o755
	case ino.Mode&fs.ModeSymlink != 0:
		target, err := p.target(old, name, ino.Target)
		if err != nil {
			return nil, err
		}
		result.Mode, result.Target = fs.ModeSymlink|0o777, target
	case !ino.Mode.IsRegular():
		return nil, fmt.Errorf("%w: %s, want directories, files and symbolic links", ErrRefused, ino.Mode.Type())
	}
	var edit func(string) (string, error)
	switch name {
	case buildDir + "/Makefile":
		edit = p.makefile
	case buildDir + "/.kernelvariables":
		edit = p.variables
	default:
		return result, nil
	}
	data, err := p.file(old)
	if err != nil {
		return nil, err
	}
	text, err := edit(string(data))
	if err != nil {
		return nil, err
	}
	result.Content = bytes.NewReader([]byte(text))
	return result, nil
}

// target translates the target of a symbolic link.
func (p *packer) target(old, name, target string) (string, error) {
	at := path.Join("/", path.Dir(old), target)
	if path.IsAbs(target) {
		at = path.Clean(target)
	}
	resolved, err := p.from.Resolve(strings.TrimPrefix(at, "/"))
	if err != nil {
		return "", err
	}
	for from, dir := range p.parts {
		rest, ok := strings.CutPrefix(resolved, from)
		if !ok || rest != "" && rest[0] != '/' {
			continue
		}
		if p.from.Lookup(resolved) == nil {
			break
		}
		up := strings.Repeat("../", strings.Count(name, "/"))
		if dir == strings.SplitN(name, "/", 2)[0] && !path.IsAbs(target) {
			return target, nil
		}
		return up + dir + rest, nil
	}
	return "", fmt.Errorf("%w: links to %s, which is in none of the packages; give the package that has it too (%s)", ErrRefused, at, packageOf(at))
}

var include = regexp.MustCompile(`(?m)^include /(usr/src/[^/\s]+)/Makefile$`)

func (p *packer) makefile(text string) (string, error) {
	m := include.FindStringSubmatch(text)
	if m == nil {
		return text, nil
	}
	if p.parts[m[1]] != commonDir {
		return "", fmt.Errorf("%w: includes /%s/Makefile, which is in none of the packages; give the package that has it too (%s)", ErrRefused, m[1], packageOf("/"+m[1]))
	}
	return strings.Replace(text, m[0], "include $(dir $(lastword $(MAKEFILE_LIST)))../"+commonDir+"/Makefile", 1), nil
}

func (p *packer) variables(text string) (string, error) {
	var b strings.Builder
	for line := range strings.Lines(text) {
		f := strings.Fields(strings.TrimPrefix(line, "override "))
		if len(f) > 0 && (f[0] == "CC" || f[0] == "CCACHE" || f[0] == "CROSS_COMPILE" || f[0] == "DEB_BUILD_ARCH") {
			continue
		}
		b.WriteString(line)
	}
	fmt.Fprintf(&b, "CC = $(if $(KILN_CC),$(KILN_CC),$(CROSS_COMPILE)gcc)\n")
	return b.String(), nil
}

// packageOf guesses the Debian package that has a path.
func packageOf(name string) string {
	f := strings.Split(name, "/")
	if len(f) > 3 {
		return f[3]
	}
	return path.Base(name)
}
