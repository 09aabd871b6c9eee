package cpio

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// sameAsTree compares entries with the tree they should be.
func sameAsTree(t *testing.T, entries []Entry, tr *tree.Tree) {
	t.Helper()
	i := 0
	for name, ino := range tr.All() {
		if name == "." {
			continue
		}
		if i >= len(entries) {
			t.Fatalf("%s is missing", name)
		}
		e := entries[i]
		if got, want := describe(t, e.Inode), describe(t, ino); e.Name != name || got != want {
			t.Errorf("%s: %s\nwant %s: %s", e.Name, got, name, want)
		}
		for _, other := range entries[:i] {
			if ino.Mode&fs.ModeSymlink == 0 && (other.Inode == e.Inode) != (tr.Lookup(other.Name) == ino) {
				t.Errorf("%s and %s: one inode %v", other.Name, name, other.Inode == e.Inode)
			}
		}
		i++
	}
	if i != len(entries) {
		t.Errorf("%d entries, want %d", len(entries), i)
	}
}

func TestReadReturnsWhatBuildTook(t *testing.T) {
	tr := full(t)
	image := build(t, tr)
	segments, err := Read(bytes.NewReader(image), int64(len(image)), 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(segments) != 1 || segments[0].Compression != Stored || segments[0].Size != int64(len(image)) || len(image)%4 != 0 {
		t.Fatalf("%d segments, %+v", len(segments), segments[0])
	}
	sameAsTree(t, segments[0].Entries, tr)
}

func TestReadSegments(t *testing.T) {
	early := tree.New()
	add(t, early, "kernel", &tree.Inode{Mode: fs.ModeDir | 0o755})
	add(t, early, "kernel/ucode.bin", file(0o644, blob(30000)))
	layers := tree.New()
	add(t, layers, "rootfs.sqsh", file(0o444, blob(200000)))

	// The frame is to end where padding is necessary before an archive.
	middle, zipped := full(t), []byte(nil)
	for n := 0; len(zipped)%4 == 0; n++ {
		if n > 100 {
			t.Fatal("found no such frame")
		}
		add(t, middle, fmt.Sprintf("extra%d", n), file(0o644, blob(n)))
		zipped = compress(t, build(t, middle))
	}
	image, err := extent.Concat(4, extent.Bytes(build(t, early)), extent.Bytes(make([]byte, 512)),
		extent.Bytes(zipped), extent.Bytes(build(t, layers)), extent.Bytes(make([]byte, 100000)))
	if err != nil {
		t.Fatal(err)
	}
	segments, err := Read(image, image.Size(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if len(segments) != 3 {
		t.Fatalf("%d segments, want 3", len(segments))
	}
	for i, want := range []struct {
		compression string
		tree        *tree.Tree
	}{{Stored, early}, {Zstd, middle}, {Stored, layers}} {
		if segments[i].Compression != want.compression {
			t.Errorf("segment %d: %s", i, segments[i].Compression)
		}
		sameAsTree(t, segments[i].Entries, want.tree)
	}
	if s := segments[1]; s.Size != int64(len(zipped)) || s.Offset != int64(len(build(t, early))+512) {
		t.Errorf("zstd segment: offset %d, size %d", s.Offset, s.Size)
	}
	if _, err := Read(image, image.Size(), 100000); !errors.Is(err, ErrLimit) ||
		!strings.Contains(err.Error(), "more than the 100000 bytes that are allowed") {
		t.Errorf("with a small limit: %v", err)
	}
}

func TestReadReportsOtherCompressions(t *testing.T) {
	archive := build(t, plain(t))
	for _, name := range []string{"gzip", "xz", "bzip2"} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(oracle.Tool(t, name), "-c")
			cmd.Stdin = bytes.NewReader(archive)
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			image := append(bytes.Clone(archive), out...)
			segments, err := Read(bytes.NewReader(image), int64(len(image)), 0)
			if err != nil {
				t.Fatal(err)
			}
			if len(segments) != 2 || segments[1].Compression != name || segments[1].Size != int64(len(out)) || segments[1].Entries != nil {
				t.Errorf("%+v", segments[1:])
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	good := tree.New()
	add(t, good, "init", file(0o755, blob(100)))
	add(t, good, "link", &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: "init"})
	archive := build(t, good)
	change := func(off int, s string) []byte {
		c := bytes.Clone(archive)
		copy(c[off:], s)
		return c
	}
	const mode, nameSize = 6 + 8*fieldMode, 6 + 8*fieldNameSize
	zipped := compress(t, archive)
	corrupt := bytes.Clone(zipped)
	corrupt[len(corrupt)-1] ^= 1 // the checksum
	for _, tt := range []struct {
		name  string
		image []byte
		want  string
	}{
		{"garbage", []byte("hello, world"), `"hello," at offset 0 is the beginning of no archive`},
		{"garbage after an archive", append(bytes.Clone(archive), "\x00\x00x"...), `"x" at offset 462 is`},
		{"old format", change(0, "070707"), "header at offset 0 is of cpio's old portable format, want newc"},
		{"no magic", change(216, "00"), `magic number "000701" at offset 216, want "070701"`},
		{"no number", change(mode, "0000x1ed"), `header at offset 0: "0000x1ed" is no hexadecimal number`},
		{"no type", change(mode, "000001ed"), `entry "init" at offset 0: not an initramfs: mode 0o755 has no file type`},
		{"no name", change(nameSize, "00000000"), "name of 0 bytes, want 1 to 4096"},
		{"long name", change(nameSize, "00001001"), "name of 4097 bytes"},
		{"no NUL", change(headerSize+4, "x"), "name without a final NUL"},
		{"parent", change(headerSize, "../x"), `entry "../x" at offset 0: not an initramfs: the name leads out`},
		{"size", change(6+8*fieldSize, "ffffffff"), "init ends at offset 4294967411 of 460"},
		{"no trailer", archive[:len(archive)-124], "cut off: 110 bytes wanted at offset 336 of 336"},
		{"cut off", archive[:200], "cut off: init ends at offset 216 of 200"},
		{"not aligned", append(make([]byte, 2), archive...), "archive at offset 2, the kernel wants a multiple of 4"},
		{"zstd cut off", zipped[:len(zipped)-3], "zstd segment at offset 0: not an initramfs: frame cut off"},
		{"zstd header cut off", zipped[:5], "zstd segment at offset 0: not an initramfs: bad frame header"},
		{"zstd checksum", corrupt, "zstd segment at offset 0: not an initramfs: "},
		{"zstd of half an archive", compress(t, archive[:224]), "in the zstd segment at offset 0: not an initramfs: cut off"},
		{"zstd of something", compress(t, []byte("text")), "in the zstd segment at offset 0: not an initramfs: cut off: 110"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Read(bytes.NewReader(tt.image), int64(len(tt.image)), 1<<20)
			if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	if s, err := Read(bytes.NewReader(nil), 0, 0); len(s) != 0 || err != nil {
		t.Errorf("empty image: %v, %v", s, err)
	}
	// A name may be absolute.
	image := change(headerSize, "//i/")
	s, err := Read(bytes.NewReader(image), int64(len(image)), 0)
	if err != nil || s[0].Entries[0].Name != "i" {
		t.Errorf("absolute name: %+v, %v", s, err)
	}
}

func FuzzRead(f *testing.F) {
	small := tree.New()
	add(f, small, "init", file(0o755, blob(9)))
	hard := file(0o644, blob(5))
	add(f, small, "a", hard)
	add(f, small, "b", hard)
	add(f, small, "l", &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: "init"})
	archive := build(f, small)
	f.Add(archive)
	f.Add(compress(f, archive))
	f.Add(append(bytes.Clone(archive), compress(f, archive)...))
	f.Add([]byte("\x1f\x8b\x08"))
	f.Fuzz(func(t *testing.T, b []byte) {
		segments, err := Read(bytes.NewReader(b), int64(len(b)), 1<<20)
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrLimit) {
				t.Errorf("%v is neither ErrFormat nor ErrLimit", err)
			}
			return
		}
		for _, s := range segments {
			if s.Offset < 0 || s.Size <= 0 || s.Offset+s.Size > int64(len(b)) {
				t.Errorf("segment at %d of %d bytes in %d", s.Offset, s.Size, len(b))
			}
			for _, e := range s.Entries {
				if !tree.Valid(e.Name) {
					t.Errorf("name %q", e.Name)
				}
				contentOf(t, e.Inode.Content)
			}
		}
	})
}
