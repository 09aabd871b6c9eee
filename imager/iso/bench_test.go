package iso

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// BenchmarkWrite makes an image of a directory, with Build and with xorriso: of
// three large files, and of ten thousand small ones. It reports the CPU time of
// both per image.
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
		out := filepath.Join(b.TempDir(), "out.iso")
		b.Run(tt.name+"/kiln", func(b *testing.B) {
			start := cpu(b, syscall.RUSAGE_SELF)
			for b.Loop() {
				f, err := os.Create(out)
				if err != nil {
					b.Fatal(err)
				}
				if err := extent.WriteSparse(context.Background(), f, build(b, fromDir(b, dir), options()), nil); err != nil {
					b.Fatal(err)
				}
				f.Close()
			}
			b.ReportMetric(float64(cpu(b, syscall.RUSAGE_SELF)-start)/float64(b.N)/1e6, "cpu-ms/op")
		})
		b.Run(tt.name+"/xorriso", func(b *testing.B) {
			tool := oracle.Tool(b, "xorriso")
			start := cpu(b, syscall.RUSAGE_CHILDREN)
			for b.Loop() {
				os.Remove(out)
				if msg, err := exec.Command(tool, "-as", "mkisofs", "-quiet", "-R", "-o", out, dir).CombinedOutput(); err != nil {
					b.Fatalf("%v\n%s", err, msg)
				}
			}
			b.ReportMetric(float64(cpu(b, syscall.RUSAGE_CHILDREN)-start)/float64(b.N)/1e6, "cpu-ms/op")
		})
	}
}

// cpu returns the processor time that this process or its children have used.
func cpu(b *testing.B, who int) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
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
