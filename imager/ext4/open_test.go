package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// sameTree compares everything in two trees, without lost+found.
func sameTree(t *testing.T, got, want *tree.Tree) {
	t.Helper()
	for _, tr := range []*tree.Tree{got, want} {
		tr.Remove(lostFoundName)
	}
	a, err := got.Digest()
	if err != nil {
		t.Fatal(err)
	}
	b, err := want.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if a == b {
		return
	}
	for name, w := range want.All() {
		g := got.Lookup(name)
		if g == nil {
			t.Errorf("%s is missing", name)
			continue
		}
		if g.Mode != w.Mode || g.UID != w.UID || g.GID != w.GID || g.ModTime != w.ModTime || g.Major != w.Major || g.Minor != w.Minor ||
			g.Target != w.Target || g.Size() != w.Size() || !maps.EqualFunc(g.Xattrs, w.Xattrs, bytes.Equal) {
			t.Errorf("%s: got %+v, want %+v", name, g, w)
		}
	}
	t.Errorf("the trees differ: %d and %d paths", got.Len(), want.Len())
}

func TestRoundTrip(t *testing.T) {
	for name, tr := range map[string]*tree.Tree{"empty": tree.New(), "everything": everything(t), "many": many(t, 10_000)} {
		t.Run(name, func(t *testing.T) {
			m := build(t, tr, sized(100*mib))
			got, err := Open(m, m.Size())
			if err != nil {
				t.Fatal(err)
			}
			if got.Label != testOptions.Label || got.UUID != testOptions.UUID || got.Size != 100*mib || got.Free <= 0 || got.Free > got.Size {
				t.Errorf("got %+v", got)
			}
			again := build(t, got.Tree, sized(100*mib))
			if err := same(m, again); err != nil {
				t.Errorf("built from what was read: %v", err)
			}
			sameTree(t, got.Tree, tr)
		})
	}
}

// same compares the bytes of two maps.
func same(a, b *extent.Map) error {
	p, q := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < a.Size(); off += int64(len(p)) {
		n, _ := a.ReadAt(p, off)
		o, _ := b.ReadAt(q, off)
		if !bytes.Equal(p[:n], q[:o]) {
			i := 0
			for p[i] == q[i] {
				i++
			}
			return fmt.Errorf("byte %d differs", off+int64(i))
		}
	}
	return nil
}

// TestFragmented reads a file whose extent tree has inner nodes, in pieces.
func TestFragmented(t *testing.T) {
	tr := tree.New()
	want := pattern{200*gib + 5, 3}
	add(t, tr, "large", &tree.Inode{Mode: 0o644, Content: want})
	m := build(t, tr, sized(220*gib))
	got, err := Open(m, m.Size())
	if err != nil {
		t.Fatal(err)
	}
	c := got.Tree.Lookup("large").Content
	if c.Size() != want.Size() {
		t.Fatalf("size %d, want %d", c.Size(), want.Size())
	}
	p, q := make([]byte, 5000), make([]byte, 5000)
	for off := int64(0); off < want.size; off += 128*mib - 2500 {
		n, err := c.ReadAt(p, off)
		want.ReadAt(q[:n], off)
		if err != nil && err != io.EOF || !bytes.Equal(p[:n], q[:n]) {
			t.Fatalf("at %d: %d bytes, %v", off, n, err)
		}
	}
}

// TestReadMke2fs reads what mke2fs made of a directory.
func TestReadMke2fs(t *testing.T) {
	mke2fs := oracle.Tool(t, "mke2fs")
	dir := t.TempDir()
	want := tree.New()
	for i := range 800 {
		name := fmt.Sprintf("dir/a-long-enough-file-name-%04d", i)
		add(t, want, name, text(fmt.Sprint(i)))
	}
	add(t, want, "big", &tree.Inode{Mode: 0o644, Content: pattern{5_000_000, 4}})
	add(t, want, "slow", &tree.Inode{Mode: os.ModeSymlink | 0o777, Target: strings.Repeat("x", 200)})
	add(t, want, "fast", &tree.Inode{Mode: os.ModeSymlink | 0o777, Target: "big"})
	for name, ino := range want.All() {
		ino.ModTime = 1_600_000_000
		p := filepath.Join(dir, name)
		var err error
		switch {
		case ino.Mode.IsDir():
			err = os.MkdirAll(p, 0o755)
		case ino.Target != "":
			err = os.Symlink(ino.Target, p)
		default:
			var b []byte
			if b, err = io.ReadAll(extent.Reader(ino.Content)); err == nil {
				err = os.WriteFile(p, b, 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("cp", "-al", filepath.Join(dir, "big"), filepath.Join(dir, "hard")).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v %s", err, out)
	}
	add(t, want, "hard", want.Lookup("big"))

	for _, args := range [][]string{
		{"-O", "^orphan_file"},
		{"-b", "1024"},
		{"-b", "2048", "-I", "128"},
		{"-O", "^metadata_csum,^64bit"},
		{"-O", "metadata_csum_seed"},
		{"-O", "meta_bg,^resize_inode", "-b", "1024", "-g", "1024"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "img")
			args := append([]string{"-q", "-F", "-t", "ext4", "-L", "theirs", "-d", dir}, args...)
			cmd := exec.Command(mke2fs, append(args, img, "64M")...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("mke2fs: %v %s", err, out)
			}
			// Hash the directory, as a kernel would have.
			cmd = exec.Command(oracle.Tool(t, "e2fsck"), "-fyD", img)
			if out, err := cmd.CombinedOutput(); err != nil && cmd.ProcessState.ExitCode() > 1 {
				t.Fatalf("e2fsck: %v %s", err, out)
			}
			src, err := extent.File(img)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Open(src, src.Size())
			if err != nil {
				t.Fatal(err)
			}
			if got.Label != "theirs" {
				t.Errorf("label %q", got.Label)
			}
			for _, ino := range got.Tree.All() { // owner and time are of this run
				ino.UID, ino.GID, ino.ModTime = 0, 0, 1_600_000_000
				if ino.Mode.IsDir() {
					ino.Mode = os.ModeDir | 0o755
				}
			}
			sameTree(t, got.Tree, want)
		})
	}
}

func TestOpenErrors(t *testing.T) {
	m := build(t, everything(t), sized(20*mib))
	good, err := io.ReadAll(extent.Reader(m))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		at   int
		to   byte
		want error
		text string
	}{
		{"magic", 1024 + 56, 0, ErrCorrupt, "magic number 0xef00, wanted 0xef53"},
		{"superblock", 1024 + 48, 1, ErrCorrupt, "superblock checksum"},
		{"recover", 1024 + 96, 0xc6, ErrUnsupported, "not unmounted cleanly"},
		{"feature", 1024 + 97, 0x82, ErrUnsupported, "features 0x8000"},
		{"descriptor", 4096 + 12, 1, ErrCorrupt, "descriptor of group 0: checksum"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := bytes.Clone(good)
			b[tt.at] = tt.to
			_, err := Open(bytes.NewReader(b), int64(len(b)))
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %q", err, tt.text)
			}
		})
	}
	if _, err := Open(bytes.NewReader(good), 10*mib); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "the image has only 10485760 bytes") {
		t.Errorf("truncated: %v", err)
	}
	if _, err := Open(bytes.NewReader(good[:10*mib]), 20*mib); err != nil {
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("short reader: %v", err)
		}
	}
}

// FuzzOpen patches the metadata of an image. The input is a sequence of
// patches: which block of metadata, where in it, and two bytes.
func FuzzOpen(f *testing.F) {
	m := build(f, everything(f), sized(12*mib))
	var blocks []int64
	for _, e := range m.Extents() {
		if _, file := e.Source.(pattern); file {
			continue
		}
		for off := e.Offset &^ (blockSize - 1); off < e.End(); off += blockSize {
			blocks = append(blocks, off)
		}
	}
	good := make([]byte, m.Size())
	if _, err := m.ReadAt(good, 0); err != nil && err != io.EOF {
		f.Fatal(err)
	}
	f.Add([]byte{}, true)
	f.Add([]byte{0, 4, 0x18, 1, 1}, false)
	f.Add([]byte{3, 2, 40, 0xff, 0xff, 5, 0, 4, 1, 0}, false)
	f.Fuzz(func(t *testing.T, patches []byte, verify bool) {
		r := patched{good: good}
		for ; len(patches) >= 5; patches = patches[5:] {
			off := blocks[int(patches[0])%len(blocks)] + (int64(patches[1])<<8|int64(patches[2]))%blockSize
			r.patches = append(r.patches, patch{off, patches[3]}, patch{off + 1, patches[4]})
		}
		got, err := open(r, int64(len(good)), verify)
		if err != nil {
			return
		}
		p := make([]byte, 10_000)
		for _, ino := range got.Tree.All() {
			if ino.Content != nil {
				ino.Content.ReadAt(p, max(0, ino.Size()-5000))
				ino.Content.ReadAt(p, 0)
			}
		}
	})
}

// patched is an image with some bytes changed.
type patched struct {
	good    []byte
	patches []patch
}

type patch struct {
	off int64
	to  byte
}

func (r patched) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(r.good)) {
		return 0, io.EOF
	}
	n := copy(p, r.good[off:])
	for _, c := range r.patches {
		if c.off >= off && c.off < off+int64(n) {
			p[c.off-off] = c.to
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
