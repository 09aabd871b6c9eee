package iso

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// BenchmarkWrite makes an image of a directory, with Build and with xorriso: of
// three large files, and of ten thousand small ones.
func BenchmarkWrite(b *testing.B) {
	for _, tt := range []struct {
		name        string
		files, size int
	}{{"large", 3, 64 * mib}, {"small", 10000, 3000}} {
		dir := b.TempDir()
		for i := range tt.files {
			name := filepath.Join(dir, fmt.Sprintf("directory %d", i%20), fmt.Sprintf("file number %d", i))
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				b.Fatal(err)
			}
			content := make([]byte, tt.size)
			for i := range content {
				content[i] = byte(i * i)
			}
			if err := os.WriteFile(name, content, 0o644); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(tt.name, func(b *testing.B) {
			disktest.Versus(b, func(b *testing.B, path string) { disktest.Write(b, path, build(b, fromDir(b, dir), options())) },
				"xorriso", "-as", "mkisofs", "-quiet", "-R", dir, "-o")
		})
	}
}

// BenchmarkMemory makes an image with a file of 8 GiB.
func BenchmarkMemory(b *testing.B) {
	disktest.Memory(b, func(b *testing.B, path string, disk *extent.Map) {
		tr := tree.New()
		if err := tr.Add("disk.raw", &tree.Inode{Mode: 0o644, Content: disk}); err != nil {
			b.Fatal(err)
		}
		disktest.Write(b, path, build(b, tr, options()))
	})
}

func fromDir(b *testing.B, dir string) *tree.Tree {
	tr := tree.New()
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, name)
		if err != nil || rel == "." {
			return err
		}
		if d.IsDir() {
			return tr.Add(rel, &tree.Inode{Mode: fs.ModeDir | 0o755})
		}
		content, err := extent.File(name)
		if err != nil {
			return err
		}
		return tr.Add(rel, &tree.Inode{Mode: 0o644, Content: content})
	})
	if err != nil {
		b.Fatal(err)
	}
	return tr
}
