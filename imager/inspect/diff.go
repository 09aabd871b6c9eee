package inspect

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Change is a difference between two images.
type Change struct {
	Kind string `json:"kind"` // disk, partition, entry, kernel-arg, layer, module or file
	Name string `json:"name"`
	Old  string `json:"old,omitempty"` // empty if it was added
	New  string `json:"new,omitempty"` // empty if it was removed
}

// String returns the change as one line: "- " what was removed, "+ " what was
// added, "~ " what is another.
func (c Change) String() string {
	switch {
	case c.New == "":
		return fmt.Sprintf("- %s %s %s", c.Kind, c.Name, c.Old)
	case c.Old == "":
		return fmt.Sprintf("+ %s %s %s", c.Kind, c.Name, c.New)
	}
	return fmt.Sprintf("~ %s %s %s -> %s", c.Kind, c.Name, c.Old, c.New)
}

// Diff returns the differences between two images, of which the contents are
// known, from the large to the small.
func Diff(a, b *Image, filesA, filesB []File) []Change {
	var out []Change
	compare := func(kind string, a, b map[string]string) {
		for _, name := range slices.Sorted(maps.Keys(union(a, b))) {
			if a[name] != b[name] {
				out = append(out, Change{kind, name, a[name], b[name]})
			}
		}
	}
	compare("disk", diskFacts(a), diskFacts(b))
	compare("partition", partitionFacts(a), partitionFacts(b))
	compare("entry", entryFacts(a), entryFacts(b))
	compare("kernel-arg", argFacts(a), argFacts(b))
	compare("layer", layerFacts(a), layerFacts(b))
	modulesA, plainA := fileFacts(filesA)
	modulesB, plainB := fileFacts(filesB)
	compare("module", modulesA, modulesB)
	compare("file", plainA, plainB)
	return out
}

func union(a, b map[string]string) map[string]string {
	u := maps.Clone(a)
	maps.Copy(u, b)
	return u
}

func diskFacts(img *Image) map[string]string {
	return map[string]string{"size": fmt.Sprint(img.Size), "sector size": fmt.Sprint(img.SectorSize), "guid": img.DiskID}
}

func partitionFacts(img *Image) map[string]string {
	out := map[string]string{}
	for _, p := range img.Partitions {
		out[cmp.Or(p.Label, fmt.Sprint(p.Number))] = strings.TrimSpace(fmt.Sprintf("start=%d size=%d type=%s id=%s %s", p.Start, p.Size, p.Type, p.ID, p.FileSystem))
	}
	return out
}

func entryFacts(img *Image) map[string]string {
	out := map[string]string{}
	for _, e := range img.Entries {
		out[e.Loader+" "+e.File] = fmt.Sprintf("%q release=%s", e.Title, e.Release)
	}
	return out
}

// argFacts are the arguments of each entry; the same one may be there twice.
func argFacts(img *Image) map[string]string {
	out := map[string]string{}
	for _, e := range img.Entries {
		for _, arg := range strings.Fields(e.Cmdline) {
			key, value, ok := strings.Cut(arg, "=")
			if !ok {
				value = "set"
			}
			name := e.Loader + " " + key
			out[name] = strings.TrimPrefix(out[name]+","+value, ",")
		}
	}
	return out
}

func layerFacts(img *Image) map[string]string {
	out := map[string]string{}
	for _, e := range img.Entries {
		if e.Initrd == nil {
			continue
		}
		for i, l := range e.Initrd.Layers {
			out[l.Name] = strings.TrimSpace(fmt.Sprintf("%d %s %s sha256:%.12s", i, l.Kind, l.Version, l.SHA256))
			if l.Verity != nil {
				out[l.Name] += fmt.Sprintf(" on BOOT, root hash %.12s", l.Verity.Root)
			}
		}
	}
	return out
}

// fileFacts tells kernel modules from other files.
func fileFacts(files []File) (modules, others map[string]string) {
	modules, others = map[string]string{}, map[string]string{}
	for _, f := range files {
		fact := fmt.Sprintf("%v %d:%d", f.Mode, f.UID, f.GID)
		switch {
		case f.Target != "":
			fact += " to " + f.Target
		case f.SHA256 != "":
			fact += fmt.Sprintf(" %d bytes sha256:%.12s", f.Size, f.SHA256)
		}
		name := f.Where + ":" + f.Path
		if strings.Contains(f.Path, "/lib/modules/") && strings.Contains(f.Path, ".ko") {
			modules[name] = fact
		} else {
			others[name] = fact
		}
	}
	return modules, others
}
