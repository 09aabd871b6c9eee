package extensions

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// FirmwareDir is where firmware is in a root file system.
const FirmwareDir = "usr/lib/firmware"

// Report says what each extension of a stack adds.
type Report struct {
	Layers   []LayerReport `json:"layers"`             // lowest first
	Problems []string      `json:"problems,omitempty"` // why they cannot be stacked
}

// LayerReport says what one extension adds.
type LayerReport struct {
	Ref          string         `json:"ref"`
	Digest       string         `json:"digest"`
	ImageDigest  string         `json:"imageDigest,omitempty"`
	Manifest     Manifest       `json:"manifest"`
	Files        int            `json:"files"`
	Bytes        int64          `json:"bytes"` // of file contents; hard links count once
	Directories  int            `json:"directories"`
	Symlinks     int            `json:"symlinks"`
	HardLinks    int            `json:"hardLinks"` // names beyond the first of a file
	Parts        []Part         `json:"parts"`
	Modules      []ModuleReport `json:"modules,omitempty"`
	Firmware     []string       `json:"firmware,omitempty"`     // paths below usr/lib/firmware
	Capabilities []string       `json:"capabilities,omitempty"` // programs with file capabilities
	Replaces     []Replacement  `json:"replaces,omitempty"`
}

// Part is what is below one of the allowed paths.
type Part struct {
	Path  string `json:"path"`
	Files int    `json:"files"`
	Bytes int64  `json:"bytes"`
}

// ModuleReport is a kernel module.
type ModuleReport struct {
	Path     string `json:"path"`
	Name     string `json:"name"`
	Version  string `json:"version,omitempty"`
	Release  string `json:"release"`
	Vermagic string `json:"vermagic"`
	Arch     string `json:"arch"`
	License  string `json:"license,omitempty"`
	Signed   bool   `json:"signed"`
}

// NewReport reports on extensions, lowest layer first, on a target, or with the
// zero Target on one another.
func NewReport(ctx context.Context, target Target, all []*Extension) (*Report, error) {
	replaced, err := stack(target, all)
	r := &Report{Problems: messages(err)}
	for i, e := range all {
		l, err := e.report(ctx)
		if err != nil {
			return nil, err
		}
		l.Replaces = replaced[i]
		r.Layers = append(r.Layers, *l)
	}
	return r, nil
}

// messages takes joined errors apart.
func messages(err error) []string {
	var many interface{ Unwrap() []error }
	switch {
	case err == nil:
		return nil
	case errors.As(err, &many) && err == many.(error):
		var all []string
		for _, e := range many.Unwrap() {
			all = append(all, e.Error())
		}
		return all
	}
	return []string{err.Error()}
}

func (e *Extension) report(ctx context.Context) (*LayerReport, error) {
	l := &LayerReport{Ref: e.Ref, Digest: e.Digest, ImageDigest: e.ImageDigest, Manifest: e.Manifest, Parts: []Part{}}
	parts := map[string]*Part{}
	seen := map[*tree.Inode]bool{}
	for name, ino := range e.RootFS.All() {
		switch {
		case name == ".":
		case ino.Mode.IsDir():
			l.Directories++
		case seen[ino]:
			l.HardLinks++
		case ino.Mode&fs.ModeSymlink != 0:
			l.Symlinks++
		default:
			l.Files++
			l.Bytes += ino.Size()
			p := partOf(name)
			if parts[p] == nil {
				parts[p] = &Part{Path: p}
			}
			parts[p].Files++
			parts[p].Bytes += ino.Size()
		}
		seen[ino] = true
		if ino.Xattrs["security.capability"] != nil {
			l.Capabilities = append(l.Capabilities, name)
		}
		if rest, ok := strings.CutPrefix(name, FirmwareDir+"/"); ok && !ino.Mode.IsDir() {
			l.Firmware = append(l.Firmware, rest)
		}
	}
	for _, p := range slices.Sorted(maps.Keys(parts)) {
		l.Parts = append(l.Parts, *parts[p])
	}
	modules, err := e.Modules(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, m := range modules {
		l.Modules = append(l.Modules, ModuleReport{
			Path: m.Path, Name: m.Info.Name, Version: m.Info.Version, Release: m.Info.Release(), Vermagic: m.Info.Vermagic,
			Arch: m.Info.Arch(), License: m.Info.License, Signed: m.Info.Signed,
		})
	}
	return l, nil
}

// partOf returns the allowed path that name is below, or one component more of
// it where it is usr/lib.
func partOf(name string) string {
	parts := strings.Split(name, "/")
	n := 2
	if strings.HasPrefix(name, "usr/lib/") {
		n = 3
	}
	return strings.Join(parts[:max(1, min(n, len(parts)-1))], "/")
}

// WriteText writes the report for people to w.
func (r *Report) WriteText(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i, l := range r.Layers {
		if i > 0 {
			fmt.Fprintln(tw)
		}
		l.writeText(tw)
	}
	for i, p := range r.Problems {
		if i == 0 {
			fmt.Fprintln(tw, "\nproblems:")
		}
		fmt.Fprintf(tw, "  %s\n", p)
	}
	return tw.Flush()
}

func (l *LayerReport) writeText(w io.Writer) {
	m := l.Manifest
	line := func(key, format string, args ...any) {
		if text := fmt.Sprintf(format, args...); text != "" {
			fmt.Fprintf(w, "%s\t%s\n", key, text)
		}
	}
	line("name", "%s", m.Metadata.Name)
	line("version", "%s", m.Metadata.Version)
	line("description", "%s", m.Metadata.Description)
	line("author", "%s", m.Metadata.Author)
	line("license", "%s", m.Metadata.License)
	line("ref", "%s", l.Ref)
	line("digest", "%s", l.Digest)
	line("image digest", "%s", l.ImageDigest)
	line("kernel", "%s", strings.TrimSpace(m.Kernel.Release+" "+m.Kernel.Arch))
	for _, mod := range m.Kernel.Modules {
		line("loads", "%s", strings.TrimSpace(mod.Name+" "+mod.Parameters))
	}
	for _, mod := range m.Kernel.Options {
		line("options", "%s %s", mod.Name, mod.Parameters)
	}
	line("blacklist", "%s", strings.Join(m.Kernel.Blacklist, ", "))
	line("requires", "%s", strings.Join(m.Requires, ", "))
	line("conflicts", "%s", strings.Join(m.Conflicts, ", "))
	line("adds", "%d files, %d bytes, %d directories, %d symbolic links, %d hard links", l.Files, l.Bytes, l.Directories, l.Symlinks, l.HardLinks)
	for _, p := range l.Parts {
		line("  "+p.Path, "%d files, %d bytes", p.Files, p.Bytes)
	}
	for _, mod := range l.Modules {
		signed := "not signed"
		if mod.Signed {
			signed = "signed"
		}
		line("module", "%s\t%s\t%s\t%s", mod.Name, mod.Release, signed, path.Dir(mod.Path))
	}
	for _, f := range l.Firmware {
		line("firmware", "%s", f)
	}
	for _, f := range l.Capabilities {
		line("capabilities", "%s", f)
	}
	for _, p := range l.Replaces {
		line("replaces", "%s of %s", p.Path, p.Of)
	}
}
