package extent_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
)

// TestWriteSparseClones writes on btrfs, which can share the blocks of files: a
// copy of a file takes no space, and has its bytes wherever it begins.
func TestWriteSparseClones(t *testing.T) {
	oracle.Root(t)
	mkfs := oracle.Tool(t, "mkfs.btrfs")
	if known, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(known), "\tbtrfs\n") {
		t.Skip("SKIPPED: the kernel has no btrfs")
	}
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "disk"), filepath.Join(dir, "mount")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 256<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(mount, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, mkfs, "-q", image)
	run(t, oracle.Tool(t, "mount"), "-o", "loop", image, mount)
	t.Cleanup(func() { run(t, oracle.Tool(t, "umount"), mount) })

	content := make([]byte, 64<<20+100)
	rand.NewChaCha8([32]byte{1}).Read(content)
	name := filepath.Join(mount, "source")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := extent.File(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name          string
		at, off, size int64 // of the source, in the disk
		shared        bool
	}{
		{"whole", 0, 1 << 20, src.Size(), true},
		{"cut on both sides", 5000, 2<<20 + 5000%4096, 60 << 20, true},
		{"not aligned", 0, 1<<20 + 512, 60 << 20, false},
		{"less than a block", 10, 10, 4000, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			disk := extent.New(100 << 20)
			section, err := extent.Section(src, tt.at, tt.size)
			if err == nil {
				err = disk.Put(tt.off, section)
			}
			if err != nil {
				t.Fatal(err)
			}
			out, err := os.Create(filepath.Join(mount, "out"))
			if err != nil {
				t.Fatal(err)
			}
			defer os.Remove(out.Name())
			defer out.Close()
			before := used(t, mount)
			var progress int64
			if err := extent.WriteSparse(t.Context(), out, disk, func(n int64) { progress += n }); err != nil {
				t.Fatal(err)
			}
			if progress != disk.Allocated() {
				t.Errorf("progress %d of %d", progress, disk.Allocated())
			}
			want := make([]byte, disk.Size())
			copy(want[tt.off:], content[tt.at:tt.at+tt.size])
			if got, err := os.ReadFile(out.Name()); err != nil || !bytes.Equal(got, want) {
				t.Errorf("content differs (%v)", err)
			}
			if err := out.Sync(); err != nil {
				t.Fatal(err)
			}
			if more := used(t, mount) - before; tt.shared != (more < 8<<20) {
				t.Errorf("the file takes %d bytes of the file system, want shared blocks: %v", more, tt.shared)
			}
		})
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %v: %v\n%s", name, args, err, out)
	}
}

// used is the space in a file system that is taken, in bytes.
func used(t *testing.T, dir string) int64 {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		t.Fatal(err)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}
