package rootfs

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/imager/cache"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/dir"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// Sources says where a recipe's parts are found and what they are made for.
type Sources struct {
	Arch    string // "amd64" or "arm64"
	Version string // what ${VERSION} stands for
	ModTime int64  // of every file, in seconds since 1970

	PackageDirs []string // with Debian packages, searched in this order
	TreeDirs    []string // with directories of prebuilt files, searched in this order
	GoDir       string   // in which the packages of Go programs are named
	Go          string   // the go command; default "go"

	// Cache keeps programs whose versions are pinned; without it they are built
	// every time.
	Cache cache.Dir
	Log   *slog.Logger // told of every such program; may be nil
}

// maxSource bounds a file next to the recipe in bytes.
const maxSource = 64 << 20

func muslArch(arch string) (string, error) {
	switch arch {
	case "amd64":
		return "x86_64", nil
	case "arm64":
		return "aarch64", nil
	}
	return "", fmt.Errorf("unknown architecture %q, want amd64 or arm64", arch)
}

// Tree makes the root file system. Kernel modules and firmware are not in it;
// see Modules and FirmwareTree.
func (r *Recipe) Tree(ctx context.Context, src Sources) (*tree.Tree, error) {
	b, err := r.builder(src)
	if err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{
		b.directories, b.symlinks, b.files, b.accounts, b.packages, b.trees, b.certificates, b.programs,
	} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", r.path, err)
		}
	}
	for _, ino := range b.tree.All() {
		ino.ModTime = src.ModTime
	}
	return b.tree, nil
}

func (r *Recipe) builder(src Sources) (*builder, error) {
	musl, err := muslArch(src.Arch)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.path, err)
	}
	return &builder{
		Recipe: r, src: src, tree: tree.New(), origin: map[string]string{},
		vars: strings.NewReplacer("${ARCH}", src.Arch, "${MUSL_ARCH}", musl, "${VERSION}", src.Version),
	}, nil
}

type builder struct {
	*Recipe
	src    Sources
	vars   *strings.Replacer
	tree   *tree.Tree
	origin map[string]string // path to the part of the recipe it is from
}

// expand replaces the variables in a path or name.
func (b *builder) expand(s string) (string, error) {
	s = b.vars.Replace(s)
	if i := strings.Index(s, "${"); i >= 0 {
		return "", fmt.Errorf("%s: unknown variable; known: ${ARCH}, ${MUSL_ARCH}, ${VERSION}", s[i:])
	}
	return s, nil
}

// put puts ino at the absolute path name. A directory that is there already, or
// a link to one, is left as it is.
func (b *builder) put(name string, ino *tree.Inode, origin string) error {
	name, err := b.expand(name)
	if err != nil {
		return fmt.Errorf("%s: %w", origin, err)
	}
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		name = "."
	}
	parent, err := b.tree.Resolve(path.Dir(name))
	if err != nil {
		return fmt.Errorf("%s: %w", origin, err)
	}
	full := path.Join(parent, path.Base(name))
	if old := b.tree.Lookup(full); old != nil {
		if ino.Mode.IsDir() && b.isDir(full) {
			return nil
		}
		return fmt.Errorf("/%s: provided by %s and by %s", full, cmp.Or(b.origin[full], "the directories above other files"), origin)
	}
	if err := b.tree.MkdirAll(parent, 0o755); err != nil {
		return fmt.Errorf("%s: /%s: %w", origin, name, err)
	}
	if err := b.tree.Add(full, ino); err != nil {
		return fmt.Errorf("%s: /%s: %w", origin, name, err)
	}
	b.origin[full] = origin
	return nil
}

func (b *builder) isDir(name string) bool {
	resolved, err := b.tree.Resolve(name)
	ino := b.tree.Lookup(resolved)
	return err == nil && ino != nil && ino.Mode.IsDir()
}

func (b *builder) directories(context.Context) error {
	for i, d := range b.Directories {
		origin := fmt.Sprintf("directories[%d]", i)
		ino := &tree.Inode{Mode: fs.ModeDir | fs.FileMode(cmp.Or(d.Mode, 0o755)), UID: d.UID, GID: d.GID}
		name, err := b.expand(d.Path)
		if err != nil {
			return fmt.Errorf("%s: %w", origin, err)
		}
		name = path.Clean(name)[1:]
		if other, ok := b.origin[name]; ok {
			return fmt.Errorf("/%s: provided by %s and by %s", name, other, origin)
		}
		if b.tree.Lookup(name) != nil { // the parent of an earlier one
			err, b.origin[name] = b.tree.Set(name, ino), origin
		} else {
			err = b.put(name, ino, origin)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) symlinks(context.Context) error {
	for i, l := range b.Symlinks {
		target, err := b.expand(l.Target)
		if err != nil {
			return fmt.Errorf("symlinks[%d]: %w", i, err)
		}
		if err := b.put(l.Path, &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: target}, fmt.Sprintf("symlinks[%d]", i)); err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) files(context.Context) error {
	for i, f := range b.Files {
		origin := fmt.Sprintf("files[%d]", i)
		ino := &tree.Inode{Mode: fs.FileMode(cmp.Or(f.Mode, 0o644)), UID: f.UID, GID: f.GID}
		if f.Content != nil {
			ino.Content = extent.Bytes([]byte(b.vars.Replace(*f.Content)))
		} else {
			data, err := readSource(filepath.Dir(b.path), f.Source)
			if err != nil {
				return fmt.Errorf("%s: %w", origin, err)
			}
			ino.Content = extent.Bytes(data)
		}
		if err := b.put(f.Path, ino, origin); err != nil {
			return err
		}
	}
	return nil
}

// readSource reads a file that is in dir or below.
func readSource(dir, name string) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSource+1))
	if err == nil && len(data) > maxSource {
		err = fmt.Errorf("%s: larger than %d bytes", name, maxSource)
	}
	return data, err
}

func (b *builder) accounts(context.Context) error {
	if len(b.Users) == 0 && len(b.Groups) == 0 {
		return nil
	}
	return errors.Join(
		b.put("/etc/passwd", &tree.Inode{Mode: 0o644, Content: extent.Bytes([]byte(b.passwd()))}, "users"),
		b.put("/etc/group", &tree.Inode{Mode: 0o644, Content: extent.Bytes([]byte(b.group()))}, "groups"))
}

func (b *builder) trees(ctx context.Context) error {
	for i, t := range b.Trees {
		origin := fmt.Sprintf("trees[%d] (%s)", i, t.Source)
		source, err := b.expand(t.Source)
		if err != nil {
			return fmt.Errorf("%s: %w", origin, err)
		}
		where, err := b.findTree(source)
		if err != nil {
			return fmt.Errorf("%s: %w", origin, err)
		}
		sub, err := dir.Read(ctx, where, dir.Options{ModTime: b.src.ModTime})
		if err != nil {
			return fmt.Errorf("%s: %w", origin, err)
		}
		for name, ino := range sub.All() {
			if err := b.put(path.Join("/", t.To, name), ino, origin); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *builder) findTree(source string) (string, error) {
	for _, d := range b.src.TreeDirs {
		p := filepath.Join(d, source)
		if fi, err := os.Stat(p); err == nil && fi.IsDir() {
			return p, nil
		}
	}
	return "", fmt.Errorf("no directory %s in %s", source, orNothing(b.src.TreeDirs))
}

func orNothing(dirs []string) string {
	if len(dirs) == 0 {
		return "any directory, as none was given to search"
	}
	return strings.Join(dirs, ", ")
}

// certificates makes one file of all *.crt files for Mozilla's programs in the
// package, in order of their names, as update-ca-certificates(8) does.
func (b *builder) certificates(ctx context.Context) error {
	if b.Certificates == nil {
		return nil
	}
	const dir = "usr/share/ca-certificates/mozilla"
	p, err := b.openPackage(b.Certificates.Package)
	if err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	t, err := p.Tree(ctx, func(name string) bool { return path.Dir(name) == dir && path.Ext(name) == ".crt" })
	if err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	var bundle bytes.Buffer
	for _, base := range t.Children(dir) {
		ino := t.Lookup(path.Join(dir, base))
		if !ino.Mode.IsRegular() || ino.Content == nil {
			continue
		}
		data, err := io.ReadAll(extent.Reader(ino.Content))
		if err != nil {
			return fmt.Errorf("certificates: %s: %w", base, err)
		}
		block, _ := pem.Decode(data)
		if block == nil || block.Type != "CERTIFICATE" {
			return fmt.Errorf("certificates: %s: no PEM certificate", base)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("certificates: %s: %w", base, err)
		}
		bundle.Write(bytes.TrimRight(data, "\n"))
		bundle.WriteByte('\n')
	}
	if bundle.Len() == 0 {
		return fmt.Errorf("certificates: package %s has no /%s/*.crt", p.Name(), dir)
	}
	to := cmp.Or(b.Certificates.To, "/etc/ssl/certs/ca-certificates.crt")
	return b.put(to, &tree.Inode{Mode: 0o644, Content: extent.Bytes(slices.Clip(bundle.Bytes()))}, "certificates")
}
