package rootfs

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

func (b *builder) programs(ctx context.Context) error {
	for i, p := range b.Programs {
		data, err := b.buildProgram(ctx, p)
		if err != nil {
			return fmt.Errorf("programs[%d]: %w", i, err)
		}
		if err := b.put(p.Path, &tree.Inode{Mode: 0o755, Content: extent.Bytes(data)}, fmt.Sprintf("programs[%d] (%s)", i, p.Package)); err != nil {
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
	return b.buildProgram(ctx, p)
}

func (b *builder) buildProgram(ctx context.Context, p Program) ([]byte, error) {
	tmp, err := os.MkdirTemp("", "kiln-go-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, "program")
	ldflags := "-s -w"
	for _, name := range slices.Sorted(maps.Keys(p.Values)) {
		ldflags += fmt.Sprintf(" -X '%s=%s'", name, b.vars.Replace(p.Values[name]))
	}
	cmd := exec.CommandContext(ctx, cmp.Or(b.src.Go, "go"), "build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-o", out, p.Package)
	cmd.Dir = b.src.GoDir
	cmd.Env = goEnv(os.Environ(), b.src.Arch)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("go build %s in %s: %w\n%s", p.Package, cmp.Or(b.src.GoDir, "."), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return os.ReadFile(out)
}

// goEnv returns environ with what decides about the bytes that go build writes
// fixed. Where caches and proxies are stays as it is.
func goEnv(environ []string, arch string) []string {
	fixed := []string{
		"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch, "GOAMD64=v1", "GOARM64=v8.0",
		"GOFLAGS=-trimpath", "GOEXPERIMENT=", "GOWORK=off", "GOTOOLCHAIN=local",
	}
	env := slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		key, _, _ := strings.Cut(kv, "=")
		return slices.ContainsFunc(fixed, func(f string) bool { return strings.HasPrefix(f, key+"=") })
	})
	return append(env, fixed...)
}
