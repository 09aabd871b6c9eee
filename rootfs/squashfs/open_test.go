package squashfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// open opens the image called name.
func open(t testing.TB, name string) *tree.Tree {
	t.Helper()
	f, err := extent.File(name)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := Open(f, f.Size())
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// TestOpen reads back everything that Write can write.
func TestOpen(t *testing.T) {
	want := torture(t, 32<<10, true)
	got := open(t, write(t, want, Options{BlockSize: 32 << 10, Level: zstd.SpeedFastest}))
	for _, ino := range want.All() {
		ino.ModTime = min(max(ino.ModTime, 0), math.MaxUint32)
	}
	a, err := want.Digest()
	if err != nil {
		t.Fatal(err)
	}
	b, err := got.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if a != b {
		t.Errorf("read back %x of %d paths, wrote %x of %d", b, got.Len(), a, want.Len())
	}
	c := got.Lookup("sizes/hole-middle").Content
	data := make([]byte, c.Size())
	if _, err := want.Lookup("sizes/hole-middle").Content.ReadAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(io.NewSectionReader(c, 0, c.Size()), data); err != nil {
		t.Error(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			p := make([]byte, len(data))
			if _, err := c.ReadAt(p, 0); err != nil || !bytes.Equal(p, data) {
				t.Errorf("read concurrently: %v", err)
			}
		})
	}
	wg.Wait()
}

// TestOpenMksquashfs reads images that another program made of a directory.
func TestOpenMksquashfs(t *testing.T) {
	mksquashfs := oracle.Tool(t, "mksquashfs")
	root := t.TempDir()
	want := tree.New()
	for name, content := range map[string][]byte{
		"empty": nil, "text": text(400_000, 1), "random": random(300_000, 2), "small": []byte("small"),
		"sparse": append(make([]byte, 600_000), text(99, 3)...), "dir/dir/file": text(131_072, 4),
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
		add(t, want, name, file(content))
	}
	for i := range 2000 {
		name := fmt.Sprintf("many/%d", i)
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
		add(t, want, name, &tree.Inode{Mode: fs.ModeDir | 0o755})
	}
	if err := os.Symlink("text", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	add(t, want, "link", &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: "text"})
	if err := os.Link(filepath.Join(root, "text"), filepath.Join(root, "text2")); err != nil {
		t.Fatal(err)
	}
	add(t, want, "text2", want.Lookup("text"))
	args := [][]string{
		{"-comp", "gzip"}, {"-comp", "gzip", "-no-fragments"}, {"-comp", "zstd", "-b", "4K"},
		{"-comp", "zstd", "-Xcompression-level", "3", "-tailends"}, {"-comp", "gzip", "-noI", "-noD", "-noF", "-noX"},
	}
	for _, a := range args {
		image := filepath.Join(t.TempDir(), "image.sqsh")
		pseudo := []string{"-p", "chr c 600 5 6 10 300", "-p", "blk b 640 0 0 259 5", "-p", "pipe i 4755 1 2 f", "-no-progress", "-quiet"}
		if out, err := exec.Command(mksquashfs, append(append([]string{root, image}, pseudo...), a...)...).CombinedOutput(); err != nil {
			t.Fatalf("mksquashfs: %v: %s", err, out)
		}
		got := open(t, image)
		if dev := got.Lookup("chr"); dev.Major != 10 || dev.Minor != 300 || dev.UID != 5 || dev.GID != 6 || dev.Mode != fs.ModeDevice|fs.ModeCharDevice|0o600 {
			t.Errorf("%q: chr is %+v", a, dev)
		}
		if p := got.Lookup("pipe"); p.Mode != fs.ModeNamedPipe|fs.ModeSetuid|0o755 {
			t.Errorf("%q: pipe is %+v", a, p)
		}
		for _, name := range []string{"chr", "blk", "pipe"} {
			got.Remove(name)
		}
		for _, tr := range []*tree.Tree{got, want} { // not what this test is about
			for _, ino := range tr.All() {
				ino.ModTime, ino.UID, ino.GID = 0, 0, 0
			}
			tr.Lookup(".").Mode = fs.ModeDir | 0o755
		}
		x, err := got.Digest()
		if err != nil {
			t.Fatalf("%q: %v", a, err)
		}
		if y, err := want.Digest(); err != nil || x != y {
			t.Errorf("%q: a tree of %d paths differs from the directory, %d paths (%v)", a, got.Len(), want.Len(), err)
		}
	}
	image := filepath.Join(t.TempDir(), "image.sqsh")
	if out, err := exec.Command(mksquashfs, root, image, "-comp", "xz", "-no-progress", "-quiet").CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v: %s", err, out)
	}
	f, err := extent.File(image)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(f, f.Size()); err == nil || err.Error() != "squashfs: compressor xz, want gzip or zstd: not supported" || !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
}

// small returns a small image with one of everything.
func small(t testing.TB) []byte {
	tr := tree.New()
	add(t, tr, "dir/text", file(text(9000, 1)))
	add(t, tr, "dir/zeros", file(make([]byte, 8192)))
	add(t, tr, "dir/link", &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: "text"})
	add(t, tr, "dev", &tree.Inode{Mode: fs.ModeDevice | 0o600, Major: 8, Minor: 1, Xattrs: map[string][]byte{"user.a": []byte("b")}})
	add(t, tr, "pipe", &tree.Inode{Mode: fs.ModeNamedPipe | 0o600})
	data, err := os.ReadFile(write(t, tr, Options{BlockSize: 4096, Level: zstd.SpeedFastest}))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestOpenErrors(t *testing.T) {
	image := small(t)
	le := binary.LittleEndian
	for _, tt := range []struct {
		name   string
		change func(p []byte) []byte
		want   string
	}{
		{"empty", func(p []byte) []byte { return nil }, "squashfs: a superblock of 0 bytes, want 96: not a valid squashfs image"},
		{"other", func(p []byte) []byte { return make([]byte, 4096) }, "squashfs: magic number 0x00000000, want 0x73717368: not a valid squashfs image"},
		{"cut", func(p []byte) []byte { return p[:1000] }, "squashfs: 1000 bytes of an image of "},
		{"version", func(p []byte) []byte { p[28] = 3; return p }, "squashfs: version 3.0, want 4.0: not supported"},
		{"compressor", func(p []byte) []byte { p[20] = 99; return p }, "squashfs: compressor 99, want gzip or zstd: not supported"},
		{"block size", func(p []byte) []byte { p[22] = 13; return p }, "squashfs: block size 4096, log 13: not a valid squashfs image"},
		{"root", func(p []byte) []byte { p[34] = 0xff; p[36] = 0xff; return p }, "is not in the inode table: not a valid squashfs image"},
		{"no ids", func(p []byte) []byte { p[26] = 0; return p }, "squashfs: no user and group ids: not a valid squashfs image"},
		{"fragments", func(p []byte) []byte { le.PutUint32(p[16:], 0); return p }, "of fragment 0 of 0: not a valid squashfs image"},
		{"id table", func(p []byte) []byte { le.PutUint64(p[48:], 1<<60); return p }, "a table at 1152921504606846976 of "},
	} {
		p := tt.change(bytes.Clone(image))
		_, err := Open(bytes.NewReader(p), int64(len(p)))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
}

// dirTable returns an image with the given inode and directory tables, both
// stored uncompressed, and one id.
func dirTable(inodes, dirs []byte, root uint64) []byte {
	le := binary.LittleEndian
	sb := superblock{
		Magic: magic, Inodes: 2, BlockSize: 4096, BlockLog: 12, Compressor: zstdCompressor, IDs: 1, Major: 4,
		Root: root, InodeTable: 96, XattrTable: none, ExportTable: none,
	}
	p := make([]byte, 96)
	for _, table := range [][]byte{inodes, dirs, make([]byte, 4)} {
		sb.DirTable, sb.IDTable = sb.IDTable, uint64(len(p))
		p = append(le.AppendUint16(p, uint16(len(table))|rawMetadata), table...)
	}
	idBlock := sb.IDTable
	sb.IDTable = uint64(len(p))
	p = le.AppendUint64(p, idBlock)
	sb.BytesUsed = uint64(len(p))
	head, _ := binary.Append(nil, le, &sb)
	copy(p, head)
	return p
}

// TestOpenHostile opens images that lead outside of the tree or round in circles.
func TestOpenHostile(t *testing.T) {
	le := binary.LittleEndian
	inode := func(size uint16) []byte { // a directory at the beginning of the directory table
		p, _ := binary.Append(nil, le, inodeHead{Kind: typeDir, Mode: 0o755, Number: 1})
		p, _ = binary.Append(p, le, dirInode{Links: 2, Size: size + emptyListing})
		return p
	}
	names := func(offset uint16, names ...string) []byte {
		p, _ := binary.Append(nil, le, runHead{Count: uint32(len(names) - 1)})
		for _, n := range names {
			p, _ = binary.Append(p, le, runEntry{Offset: offset, Kind: typeDir, Name: uint16(len(n) - 1)})
			p = append(p, n...)
		}
		return p
	}
	for _, tt := range []struct {
		name   string
		offset uint16 // of the inode that the names have
		names  []string
		want   string
	}{
		{"parent", 32, []string{".."}, `squashfs: .: a file named "..": not a valid squashfs image`},
		{"itself", 32, []string{"."}, `squashfs: .: a file named ".": not a valid squashfs image`},
		{"slash", 32, []string{"../../etc"}, `squashfs: .: a file named "../../etc": not a valid squashfs image`},
		{"NUL", 32, []string{"a\x00b"}, `squashfs: .: a file named "a\x00b": not a valid squashfs image`},
		{"circle", 0, []string{"a"}, `squashfs: a: a directory that has a name already: not a valid squashfs image`},
		{"too long", 32, []string{strings.Repeat("x", 256)}, "not a clean relative path"},
		{"twice", 64, []string{"a", "a"}, "a: exists already"},
		{"two names", 32, []string{"a", "b"}, "squashfs: b: a directory that has a name already: not a valid squashfs image"},
	} {
		list := names(tt.offset, tt.names...)
		fifo, _ := binary.Append(nil, le, inodeHead{Kind: typeFifo, Number: 3})
		inodes := append(append(inode(uint16(len(list))), inode(0)...), append(fifo, 1, 0, 0, 0)...)
		p := dirTable(inodes, list, 0)
		_, err := Open(bytes.NewReader(p), int64(len(p)))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
	p := dirTable(append(inode(17), inode(0)...), names(32, "good"), 0) // 17 is one too many
	if _, err := Open(bytes.NewReader(p), int64(len(p))); err == nil || !errors.Is(err, ErrFormat) {
		t.Error(err)
	}

	// 256 directories that all have the same names: 256 below each, and so on.
	var list []string
	for i := range 256 {
		list = append(list, fmt.Sprintf("%03d", i))
	}
	dirs := names(0, list...)
	var inodes []byte
	for i := range list {
		inodes = append(inodes, inode(uint16(len(dirs)))...)
		le.PutUint16(dirs[headerSize+i*(entrySize+3):], uint16(i*32))
	}
	p = dirTable(inodes, dirs, 0)
	if _, err := Open(bytes.NewReader(p), int64(len(p))); err == nil || !errors.Is(err, ErrFormat) {
		t.Error(err)
	}
}

func TestReadErrors(t *testing.T) {
	image := small(t)
	copy(image[superblockSize+6:], make([]byte, 100)) // the first data block
	tr, err := Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = tr.Lookup("dir/text").Content.ReadAt(make([]byte, 10), 0)
	if err == nil || !strings.HasPrefix(err.Error(), "squashfs: data block at 102: not a valid squashfs image: ") || !errors.Is(err, ErrFormat) {
		t.Error(err)
	}
}

// FuzzOpen opens whatever comes and reads all of it that Open lets through.
func FuzzOpen(f *testing.F) {
	image := small(f)
	f.Add(image)
	f.Add(dirTable(make([]byte, 32), nil, 0))
	gzipped := bytes.Clone(image)
	gzipped[20] = gzipCompressor
	f.Add(gzipped)
	f.Fuzz(func(t *testing.T, image []byte) {
		tr, err := Open(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			return
		}
		buf := make([]byte, 10_000)
		for name, ino := range tr.All() {
			if !tree.Valid(name) {
				t.Errorf("path %q", name)
			}
			if ino.Content == nil {
				continue
			}
			for off := int64(0); off < min(ino.Size(), 50_000); off += int64(len(buf)) {
				if _, err := ino.Content.ReadAt(buf, off); err != nil && err != io.EOF {
					break
				}
			}
		}
	})
}
