package sbom

import (
	"bufio"
	"cmp"
	"context"
	"debug/buildinfo"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// maxNote bounds what is read of a copyright note.
const maxNote = 64 << 10

// Scan finds the packages in a root file system that tell of themselves: the
// modules that Go programs were built from, and notes usr/share/doc/*/copyright
// that begin with the fields Package and Version, which those who build programs
// from source leave there.
func Scan(ctx context.Context, t *tree.Tree) ([]Package, error) {
	var out []Package
	for name, ino := range t.All() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !ino.Mode.IsRegular() || ino.Content == nil {
			continue
		}
		if ok, _ := path.Match("usr/share/doc/*/copyright", name); ok {
			p, err := note(io.NewSectionReader(ino.Content, 0, min(ino.Size(), maxNote)))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if p.Name != "" {
				out = append(out, p)
			}
			continue
		}
		if ino.Mode&0o111 == 0 {
			continue
		}
		info, err := buildinfo.Read(ino.Content)
		if err != nil {
			continue // not a Go program
		}
		where := "in /" + name
		main := GoModule(info.Main.Path, info.Main.Version)
		if !strings.HasPrefix(info.Main.Version, "v") { // "(devel)": built from a working copy
			main = Package{Name: info.Main.Path}
		}
		main.Comment = where
		std := GoModule("stdlib", strings.TrimPrefix(info.GoVersion, "go"))
		std.Comment = "Go's standard library, " + where
		out = append(out, main, std)
		for _, dep := range info.Deps {
			if dep.Replace != nil {
				dep = dep.Replace
			}
			p := GoModule(dep.Path, dep.Version)
			p.Comment = where
			out = append(out, p)
		}
	}
	return out, nil
}

// note reads the fields at the start of a copyright note.
func note(r io.Reader) (Package, error) {
	var p Package
	var built string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), ": ")
		if !ok {
			break
		}
		switch key {
		case "Package":
			p.Name = value
		case "Version":
			p.Version = value
		case "License":
			p.License = value
		case "Built-Using":
			built = "built using " + value
		}
	}
	if err := lines.Err(); err != nil {
		return Package{}, err
	}
	if p.Name == "" || p.Version == "" {
		return Package{}, nil
	}
	out := Deb(p.Name, p.Version, "source")
	out.License, out.Comment = p.License, cmp.Or(built, "built from source")
	return out, nil
}
