package rootfs

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/dir"
	"github.com/kilnhq/kiln/rootfs/tree"
)

func (b *builder) programs(ctx context.Context) error {
	for i, p := range b.Programs {
		content, err := b.program(ctx, p)
		if err != nil {
			return fmt.Errorf("programs[%d]: %w", i, err)
		}
		if err := b.put(p.Path, &tree.Inode{Mode: 0o755, Content: content}, fmt.Sprintf("programs[%d] (%s)", i, p.Package)); err != nil {
			return err
		}
	}
	return nil
}

// BuildProgram builds a main package of Go as the recipe's programs are built
// and returns the executable: static, without debug information, the same in
// every directory. It runs the go command.
func BuildProgram(ctx context.Context, src Sources, p Program) ([]byte, error) {
	b, err := (&Recipe{path: p.Package}).builder(src)
	if err != nil {
		return nil, err
	}
	content, err := b.program(ctx, p)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(extent.Reader(content))
}

// program takes a program from the cache or builds it.
func (b *builder) program(ctx context.Context, p Program) (tree.Content, error) {
	tmp, err := os.MkdirTemp("", "kiln-go-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	g, err := b.goBuild(ctx, p, tmp)
	if err != nil {
		return nil, err
	}
	// What is in the Go directory may be made of anything; the go command has a
	// cache for that.
	if p.Module == "" || b.src.Cache == "" {
		data, err := g.run(ctx)
		return extent.Bytes(data), err
	}
	key, err := g.key(ctx)
	if err != nil {
		return nil, err
	}
	e, hit, err := b.src.Cache.Get(ctx, key, func(ctx context.Context, f *os.File) error {
		if b.src.Log != nil {
			b.src.Log.Info("build program", "package", p.Package)
		}
		data, err := g.run(ctx)
		if err == nil {
			_, err = f.Write(data)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if b.src.Log != nil {
		b.src.Log.Info("program", "path", p.Path, "bytes", e.Content.Size(), "cached", hit)
	}
	return e.Content, nil
}

// goBuild is a run of the go command.
type goBuild struct {
	dir     string   // with go.mod
	args    []string // all that decides about the bytes, with env
	env     []string
	sysroot string   // "" without C
	cc      string   // the compiler, without arguments
	where   []string // as env, for what decides about nothing: where the sysroot and the compiler's files are
	command string   // the go command
	tmp     string   // a directory for its output
}

func (b *builder) goBuild(ctx context.Context, p Program, tmp string) (*goBuild, error) {
	g := &goBuild{dir: b.src.GoDir, command: cmp.Or(b.src.Go, "go"), tmp: tmp, env: []string{
		"GOOS=linux", "GOARCH=" + b.src.Arch, "GOAMD64=v1", "GOARM64=v8.0",
		"GOFLAGS=-trimpath", "GOEXPERIMENT=", "GOWORK=off", "GOTOOLCHAIN=local",
	}}
	if p.Module != "" {
		g.dir = filepath.Join(filepath.Dir(b.path), p.Module)
	}
	ldflags := "-s -w -buildid="
	for _, name := range slices.Sorted(maps.Keys(p.Values)) {
		ldflags += fmt.Sprintf(" -X '%s=%s'", name, b.vars.Replace(p.Values[name]))
	}
	if p.Sysroot == "" {
		g.env = append(g.env, "CGO_ENABLED=0")
	} else {
		source, err := b.expand(p.Sysroot)
		if err != nil {
			return nil, err
		}
		if g.sysroot, err = b.findTree(source); err != nil {
			return nil, err
		}
		if err := g.useC(b.src.Arch); err != nil {
			return nil, err
		}
		ldflags += " -linkmode external -extldflags -static"
	}
	g.args = []string{"build", "-trimpath", "-buildvcs=false", "-tags", strings.Join(p.Tags, ","), "-ldflags", ldflags, "--", p.Package}
	return g, nil
}

// useC makes the go command compile C against musl. The options of Debian's
// musl-gcc, its specs, name the directories musl is installed in; they are made to
// name those in the sysroot.
func (g *goBuild) useC(arch string) error {
	cpu, err := muslArch(arch)
	if err != nil {
		return err
	}
	gnu, musl := cpu+"-linux-gnu", cpu+"-linux-musl"
	g.cc = gnu + "-gcc"
	root, err := filepath.Abs(g.sysroot)
	if err != nil {
		return err
	}
	if strings.ContainsAny(root+g.tmp, " \t'\"") {
		return fmt.Errorf("sysroot %s: the C compiler takes no path with spaces or quotes", root)
	}
	lib := filepath.Join(root, "usr/lib", musl)
	specs, err := os.ReadFile(filepath.Join(lib, "musl-gcc.specs"))
	if err != nil {
		return fmt.Errorf("sysroot: %w; it is in Debian's package musl-dev", err)
	}
	for _, d := range []string{"/usr/include/" + musl, "/usr/lib/" + musl} {
		specs = bytes.ReplaceAll(specs, []byte(d), []byte(root+d))
	}
	file := filepath.Join(g.tmp, "musl-gcc.specs")
	if err := os.WriteFile(file, specs, 0o600); err != nil {
		return err
	}
	g.env = append(g.env, "CGO_ENABLED=1", "CGO_CXXFLAGS=", "CGO_CPPFLAGS=", "CGO_FFLAGS=", "CGO_LDFLAGS=", "PKG_CONFIG_PATH=")
	g.where = []string{
		"CC=" + g.cc + " -specs=" + file,
		"CGO_CFLAGS=-O2 -isystem " + root + "/usr/include -isystem " + root + "/usr/include/" + gnu,
		"PKG_CONFIG_SYSROOT_DIR=" + root, "PKG_CONFIG_LIBDIR=" + lib + "/pkgconfig",
	}
	return nil
}

// run builds the program.
func (g *goBuild) run(ctx context.Context) ([]byte, error) {
	out := filepath.Join(g.tmp, "program")
	args := slices.Insert(slices.Clone(g.args), 1, "-o", out)
	cmd := exec.CommandContext(ctx, g.command, args...)
	cmd.Dir, cmd.Env = g.dir, override(os.Environ(), slices.Concat(g.env, g.where))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("go build %s in %s: %w\n%s", args[len(args)-1], cmp.Or(g.dir, "."), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return os.ReadFile(out)
}

// key returns a digest of all that decides about the program's bytes: how it is
// built, the files beside go.mod, of which go.sum stands for all other modules,
// the compilers and the sysroot.
func (g *goBuild) key(ctx context.Context) (string, error) {
	facts := struct {
		What, Go, CC    string
		Args, Env       []string
		Module, Sysroot string
	}{What: "kiln program v1", Args: g.args, Env: g.env}
	var err error
	if facts.Go, err = g.output(ctx, g.command, "version"); err != nil {
		return "", err
	}
	if facts.Module, err = digest(ctx, g.dir); err != nil {
		return "", err
	}
	if g.sysroot != "" {
		if facts.CC, err = g.output(ctx, g.cc, "--version"); err != nil {
			return "", err
		}
		if facts.Sysroot, err = digest(ctx, g.sysroot); err != nil {
			return "", err
		}
	}
	data, err := json.Marshal(facts)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sha256.Sum256(data)), nil
}

func (g *goBuild) output(ctx context.Context, command string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, command, args...)
	cmd.Env = override(os.Environ(), append(slices.Clone(g.env), "LC_ALL=C"))
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", command, strings.Join(args, " "), err)
	}
	return string(out), nil
}

// digest returns a digest of what is in a directory.
func digest(ctx context.Context, name string) (string, error) {
	t, err := dir.Read(ctx, name, dir.Options{})
	if err != nil {
		return "", err
	}
	sum, err := t.Digest()
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return hex.EncodeToString(sum[:]), nil
}

// override returns environ with the variables in fixed set. Where caches and
// proxies are stays as it is.
func override(environ, fixed []string) []string {
	env := slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		key, _, _ := strings.Cut(kv, "=")
		return slices.ContainsFunc(fixed, func(f string) bool { return strings.HasPrefix(f, key+"=") })
	})
	return append(env, fixed...)
}
