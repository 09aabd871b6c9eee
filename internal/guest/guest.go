// Package guest makes the running test the init of a machine: what only a PID 1,
// or a kernel of one's own, can try.
package guest

import (
	"debug/elf"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"testing"

	"github.com/kilnhq/kiln/imager/cpio"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// Initramfs returns an initramfs whose init is this program, with the files, and
// the directories dev, proc and sys. Tests of a program that is not linked
// statically are skipped: nothing would load it.
func Initramfs(t testing.TB, files map[string]tree.Inode) extent.Source {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := elf.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	if slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Skip("SKIPPED: the test is not linked statically and cannot be an init; build it with CGO_ENABLED=0")
	}
	content, err := extent.File(self)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]tree.Inode{
		"init":        {Mode: 0o755, Content: content},
		"dev":         {Mode: fs.ModeDir | 0o755},
		"dev/console": {Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1},
		"proc":        {Mode: fs.ModeDir | 0o755},
		"sys":         {Mode: fs.ModeDir | 0o755},
	}
	maps.Copy(all, files)
	root := tree.New()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		ino := all[name]
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := root.Add(name, &ino); err != nil {
			t.Fatal(err)
		}
	}
	archive, err := cpio.Build(root)
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

// File is a file with the content.
func File(content []byte) tree.Inode {
	return tree.Inode{Mode: 0o644, Content: extent.Bytes(content)}
}
