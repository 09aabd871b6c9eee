package extensions

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// maxFaults is how many faults of a root file system are told at once.
const maxFaults = 10

// vet says what of a root file system has no place in an extension, wherever
// it comes from. Paths in errors begin with prefix.
func vet(t *tree.Tree, prefix string, limits Limits) error {
	limits = limits.withDefaults()
	if t.Len() > limits.Entries {
		return fmt.Errorf("%w: more than %d entries", ErrHostile, limits.Entries)
	}
	var faults []error
	more := 0
	bad := func(name, format string, args ...any) {
		if len(faults) == maxFaults {
			more++
			return
		}
		if name = prefix + name; strings.ContainsFunc(name, control) {
			name = fmt.Sprintf("%q", name)
		}
		faults = append(faults, fmt.Errorf("%w: %s: %s", ErrHostile, name, fmt.Sprintf(format, args...)))
	}
	var bytes int64
	seen := map[*tree.Inode]bool{}
	strange := "" // what is not allowed, with all below it
	for name, ino := range t.All() {
		if name == "." {
			continue
		}
		if !seen[ino] && !ino.Mode.IsDir() {
			seen[ino] = true
			if bytes += ino.Size(); ino.Size() < 0 || bytes < 0 || bytes > limits.Bytes {
				return fmt.Errorf("%w: %s: contents exceed %d bytes", ErrHostile, prefix+name, limits.Bytes)
			}
		}
		vetInode(name, ino, bad)
		if strange != "" && below(name, strange) {
			continue
		}
		if !limits.allowed(name, ino.Mode.IsDir()) {
			strange = name
			hint := ""
			if limits.allowed("usr/"+name, ino.Mode.IsDir()) {
				hint = "; use usr/" + name
			}
			bad(name, "an extension may only have files in %s%s", strings.Join(limits.Paths, ", "), hint)
		}
	}
	if more > 0 {
		faults = append(faults, fmt.Errorf("%w: and %d more", ErrHostile, more))
	}
	return errors.Join(faults...)
}

func vetInode(name string, ino *tree.Inode, bad func(name, format string, args ...any)) {
	switch kind := ino.Mode.Type(); {
	case kind == fs.ModeSymlink:
		if escapes(name, ino.Target) {
			bad(name, "symbolic link to %s leads out of the root", ino.Target)
		}
	case kind == fs.ModeDevice|fs.ModeCharDevice && ino.Major == 0 && ino.Minor == 0:
		bad(name, "a device 0:0, which overlayfs takes for a whiteout; an extension cannot remove files of the base")
	case kind&fs.ModeDevice != 0:
		bad(name, "a device node; the node makes its own")
	case kind == fs.ModeNamedPipe:
		bad(name, "a FIFO; make it when the program starts")
	case kind == fs.ModeSocket:
		bad(name, "a socket; make it when the program starts")
	case kind != 0 && kind != fs.ModeDir:
		bad(name, "of unknown type %v", kind)
	}
	if strings.HasPrefix(path.Base(name), whiteout) {
		bad(name, "a whiteout, which only the layers of an OCI image may have")
	}
	if strings.ContainsFunc(name, control) {
		bad(name, "a control character in the name")
	}
	if ino.Mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
		bad(name, "mode %s sets the user or the group; take it away (chmod ug-s), or use file capabilities", octal(ino.Mode))
	}
	if ino.Mode&0o002 != 0 && ino.Mode.Type() != fs.ModeSymlink && !(ino.Mode.IsDir() && ino.Mode&fs.ModeSticky != 0) {
		bad(name, "mode %s lets everybody write; take it away (chmod o-w)", octal(ino.Mode))
	}
	for _, attr := range slices.Sorted(maps.Keys(ino.Xattrs)) {
		if !allowedXattr(attr) && attr != selinux {
			bad(name, "extended attribute %q, want only user.* and security.capability", attr)
		}
	}
}

// allowedXattr says whether an extension may have an attribute. Those of
// overlayfs would change what the node makes of the layers.
func allowedXattr(attr string) bool {
	return attr == "security.capability" || strings.HasPrefix(attr, "user.") && !strings.HasPrefix(attr, "user.overlay.")
}

// selinux is an attribute that is left out silently: labels for a policy that
// the node does not have, as image builders put on every file.
const selinux = "security.selinux"

func octal(m fs.FileMode) string {
	n := int64(m.Perm())
	for _, b := range modeBits {
		if m&b.mode != 0 {
			n |= b.tar
		}
	}
	return fmt.Sprintf("%04o", n)
}

// indexFiles are what depmod and kbuild make of a directory of modules. The
// image has its own, made for the base and all extensions together.
var indexFiles = []string{
	"modules.alias", "modules.alias.bin", "modules.builtin", "modules.builtin.alias.bin", "modules.builtin.bin",
	"modules.builtin.modinfo", "modules.builtin.ranges", "modules.dep", "modules.dep.bin", "modules.devname",
	"modules.order", "modules.softdep", "modules.symbols", "modules.symbols.bin", "modules.weakdep",
}

// dropped says whether the image does without a file of an extension.
func dropped(name string, ino *tree.Inode) bool {
	dir, base := path.Split(name)
	return ino.Mode.IsRegular() && path.Dir(path.Clean(dir)) == ModulesDir && slices.Contains(indexFiles, base)
}

// normal returns t as it becomes a layer: without what is dropped. It is t
// itself if that is nothing; otherwise inodes with nothing to drop are shared.
func normal(t *tree.Tree) (*tree.Tree, error) {
	same := true
	for name, ino := range t.All() {
		_, labelled := ino.Xattrs[selinux]
		if dropped(name, ino) || labelled {
			same = false
			break
		}
	}
	if same {
		return t, nil
	}
	out := tree.New()
	clones := map[*tree.Inode]*tree.Inode{}
	for name, ino := range t.All() {
		if dropped(name, ino) {
			continue
		}
		if _, labelled := ino.Xattrs[selinux]; labelled && clones[ino] == nil {
			c := *ino
			c.Xattrs = maps.Clone(ino.Xattrs)
			delete(c.Xattrs, selinux)
			clones[ino] = &c
		}
		if c := clones[ino]; c != nil {
			ino = c
		}
		if err := out.Add(name, ino); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// escapes says whether the relative symbolic link target at name climbs above
// the root. An absolute one is relative to the root on the node.
func escapes(name, target string) bool {
	if path.IsAbs(target) {
		return false
	}
	depth := strings.Count(name, "/")
	for part := range strings.SplitSeq(target, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return true
			}
		default:
			depth++
		}
	}
	return false
}
