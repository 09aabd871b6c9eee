package cpio

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/tree"
)

func blob(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*31 + i>>8)
	}
	return b
}

func add(t testing.TB, tr *tree.Tree, name string, ino *tree.Inode) {
	t.Helper()
	if err := tr.Add(name, ino); err != nil {
		t.Fatal(err)
	}
}

func file(mode fs.FileMode, content []byte) *tree.Inode {
	return &tree.Inode{Mode: mode, ModTime: 1700000000, Content: extent.Bytes(content)}
}

// plain is a tree that any user can unpack.
func plain(t testing.TB) *tree.Tree {
	t.Helper()
	tr := tree.New()
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	own := func(ino *tree.Inode) *tree.Inode {
		ino.UID, ino.GID = uid, gid
		return ino
	}
	dir := func(mode fs.FileMode) *tree.Inode {
		return own(&tree.Inode{Mode: fs.ModeDir | mode, ModTime: 1600000000})
	}
	add(t, tr, "etc", dir(0o755))
	add(t, tr, "etc/deep", dir(0o700))
	add(t, tr, "etc/sticky", dir(0o777|fs.ModeSticky))
	add(t, tr, "init", own(file(0o755, blob(100001))))
	for n := range 9 { // every padding of names and contents
		add(t, tr, "etc/"+strings.Repeat("n", n+1), own(file(0o644, blob(n))))
	}
	add(t, tr, "etc/deep/"+strings.Repeat("l", 255), own(file(0o600, blob(3))))
	add(t, tr, "etc/ümläut \"quoted\"", own(file(0o640, blob(513))))
	add(t, tr, "etc/setuid", own(file(0o755|fs.ModeSetuid|fs.ModeSetgid, blob(17))))
	add(t, tr, "etc/link", own(&tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: "../init", ModTime: 1}))
	add(t, tr, "etc/dangling", own(&tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: strings.Repeat("a/", 1000), ModTime: 1}))
	add(t, tr, "etc/fifo", own(&tree.Inode{Mode: fs.ModeNamedPipe | 0o600, ModTime: 7}))
	old := own(file(0o644, blob(5)))
	old.ModTime = 0
	add(t, tr, "etc/old", old)
	hard := own(file(0o644, blob(12345)))
	add(t, tr, "etc/hard1", hard)
	add(t, tr, "etc/hard2", hard)
	add(t, tr, "hard3", hard)
	none := own(&tree.Inode{Mode: 0o644, ModTime: 9})
	add(t, tr, "none1", none)
	add(t, tr, "none2", none)
	return tr
}

// full adds what takes privilege to unpack.
func full(t testing.TB) *tree.Tree {
	tr := plain(t)
	add(t, tr, "dev", &tree.Inode{Mode: fs.ModeDir | 0o755})
	add(t, tr, "dev/console", &tree.Inode{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1})
	add(t, tr, "dev/large", &tree.Inode{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 10, Minor: 300})
	add(t, tr, "dev/block", &tree.Inode{Mode: fs.ModeDevice | 0o660, Major: 259, Minor: 70000, UID: 70000, GID: math.MaxUint32 - 1})
	add(t, tr, "dev/socket", &tree.Inode{Mode: fs.ModeSocket | 0o600})
	return tr
}

func build(t testing.TB, tr *tree.Tree) []byte {
	t.Helper()
	m, err := Build(tr)
	if err != nil {
		t.Fatal(err)
	}
	return contentOf(t, m)
}

func contentOf(t testing.TB, c tree.Content) []byte {
	t.Helper()
	if c == nil {
		return nil
	}
	b, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func compress(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Compress(&out, extent.Bytes(b)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// describe returns one line about an inode.
func describe(t testing.TB, ino *tree.Inode) string {
	t.Helper()
	return fmt.Sprintf("%s %d:%d t=%d dev=%d:%d %.40q %x", ino.Mode, ino.UID, ino.GID, ino.ModTime, ino.Major, ino.Minor,
		ino.Target, sha256.Sum256(append([]byte(ino.Target), contentOf(t, ino.Content)...)))
}

// TestBuildRefersToContents checks that no content is copied.
func TestBuildRefersToContents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rootfs.sqsh")
	if err := os.WriteFile(path, blob(1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	src, err := extent.File(path)
	if err != nil {
		t.Fatal(err)
	}
	tr := tree.New()
	add(t, tr, "rootfs.sqsh", &tree.Inode{Mode: 0o444, Content: src})
	m, err := Build(tr)
	if err != nil {
		t.Fatal(err)
	}
	e := m.Extents()
	if len(e) != 3 || e[1].Source != extent.Source(src) || e[1].Offset != 124 || e[1].Length != 1<<20 {
		t.Errorf("extents %+v", e)
	}
}

func TestBuildIsDeterministic(t *testing.T) {
	if !bytes.Equal(build(t, full(t)), build(t, full(t))) {
		t.Error("two archives of the same tree differ")
	}
}

// TestCompressIsDeterministic writes the same bytes in other portions.
func TestCompressIsDeterministic(t *testing.T) {
	b := bytes.Repeat(build(t, full(t)), 8)
	halves, err := extent.Concat(1, extent.Bytes(b[:777]), extent.Bytes(b[777:]))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Compress(&out, halves); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), compress(t, b)) {
		t.Error("two compressions differ")
	}
}

func TestCompressIsReadByZstd(t *testing.T) {
	zstd := oracle.Tool(t, "zstd")
	want := build(t, full(t))
	cmd := exec.Command(zstd, "-dc", "--memory=8MB")
	cmd.Stdin = bytes.NewReader(compress(t, want))
	got, err := cmd.Output()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("zstd -d: %v, equal %v", err, bytes.Equal(got, want))
	}
	name := filepath.Join(t.TempDir(), "a.zst")
	if err := os.WriteFile(name, compress(t, bytes.Repeat(want, 100)), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(zstd, "-lv", name).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, s := range []string{"# Zstandard Frames: 1\n", "Window Size: 8.00 MiB", "Check: XXH64"} {
		if !bytes.Contains(out, []byte(s)) {
			t.Errorf("no %q in\n%s", s, out)
		}
	}
}

func TestModTimeIsClamped(t *testing.T) {
	tr := tree.New()
	add(t, tr, "ancient", &tree.Inode{ModTime: -5})
	add(t, tr, "future", &tree.Inode{ModTime: 1 << 33})
	image := build(t, tr)
	segments, err := Read(bytes.NewReader(image), int64(len(image)), 0)
	if err != nil {
		t.Fatal(err)
	}
	e := segments[0].Entries
	if e[0].Inode.ModTime != 0 || e[1].Inode.ModTime != math.MaxUint32 {
		t.Errorf("times %d and %d", e[0].Inode.ModTime, e[1].Inode.ModTime)
	}
}

// huge is a content of a size that no test wants to have in memory.
type huge int64

func (h huge) Size() int64 { return int64(h) }

func (huge) ReadAt(p []byte, _ int64) (int, error) { return len(p), nil }

func TestBuildRefuses(t *testing.T) {
	for _, tt := range []struct {
		name  string
		inode *tree.Inode
		want  string
	}{
		{"TRAILER!!!", &tree.Inode{Mode: 0o644}, "TRAILER!!!: cannot be in an initramfs: the name marks the end"},
		{"big.sqsh", &tree.Inode{Mode: 0o644, Content: huge(1 << 32)}, "big.sqsh: cannot be in an initramfs: 4294967296 bytes, the format holds up to 4 GiB - 1"},
		{"ping", &tree.Inode{Mode: 0o755, Xattrs: map[string][]byte{"security.capability": {1}}}, "ping: cannot be in an initramfs: it has extended attributes"},
		{"l", &tree.Inode{Mode: fs.ModeSymlink, Target: strings.Repeat("x", 4096)}, "l: cannot be in an initramfs: link target of 4096 bytes, want 1 to 4095"},
		{"e", &tree.Inode{Mode: fs.ModeSymlink}, "link target of 0 bytes"},
		{"odd", &tree.Inode{Mode: fs.ModeIrregular}, "odd: cannot be in an initramfs: file type ?---------"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := tree.New()
			add(t, tr, tt.name, tt.inode)
			_, err := Build(tr)
			if !errors.Is(err, ErrEntry) || !strings.HasPrefix(err.Error(), tt.want) && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	tr := tree.New()
	add(t, tr, "largest", &tree.Inode{Mode: 0o644, Content: huge(1<<32 - 1)})
	if _, err := Build(tr); err != nil {
		t.Errorf("4 GiB - 1: %v", err)
	}
}

func BenchmarkBuild(b *testing.B) {
	tr := tree.New()
	for i := range 4000 {
		add(b, tr, fmt.Sprintf("module-%d.ko.xz", i), &tree.Inode{Mode: 0o644, Content: huge(100001)})
	}
	for b.Loop() {
		if _, err := Build(tr); err != nil {
			b.Fatal(err)
		}
	}
}

// Contents are where the reader, and a person with a calculator, expects them.
func TestBuildAligned(t *testing.T) {
	for _, align := range []int64{4, 512, 2048} {
		m, err := BuildAligned(plain(t), align)
		if err != nil {
			t.Fatal(err)
		}
		for name, ino := range plain(t).All() {
			if ino.Size() < 10 { // of which there may be others
				continue
			}
			want := make([]byte, ino.Size())
			if _, err := io.ReadFull(extent.Reader(ino.Content), want); err != nil {
				t.Fatal(err)
			}
			archive := make([]byte, m.Size())
			if _, err := io.ReadFull(extent.Reader(m), archive); err != nil {
				t.Fatal(err)
			}
			if at := bytes.Index(archive, want); at < 0 || int64(at)%align != 0 {
				t.Errorf("%s is at %d, want a multiple of %d", name, at, align)
			}
		}
		if align == 4 && m.Size() != int64(len(build(t, plain(t)))) {
			t.Error("Build aligns more than it must")
		}
	}
	long := tree.New()
	dir := strings.Repeat(strings.Repeat("d", 255)+"/", 15)
	if err := long.MkdirAll(dir[:len(dir)-1], 0o755); err != nil {
		t.Fatal(err)
	}
	add(t, long, dir+strings.Repeat("n", 250), file(0o644, blob(1)))
	_, err := BuildAligned(long, 2048)
	if !errors.Is(err, ErrEntry) || !strings.Contains(err.Error(), "its name is too long for contents at multiples of 2048 bytes") {
		t.Errorf("%v", err)
	}
	for _, align := range []int64{0, 2, 6, 4096} {
		if _, err := BuildAligned(plain(t), align); !errors.Is(err, ErrEntry) {
			t.Errorf("contents at multiples of %d: %v", align, err)
		}
	}
}
