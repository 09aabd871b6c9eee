package cpio

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
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

// describeUnpacked leaves out the times that GNU cpio does not set.
func describeUnpacked(t testing.TB, ino *tree.Inode) string {
	c := *ino
	if ino.Mode&(fs.ModeDir|fs.ModeSymlink) != 0 {
		c.ModTime = 0
	}
	return describe(t, &c)
}

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

// unpackGNU unpacks archive with GNU cpio and returns the directory.
func unpackGNU(t *testing.T, archive []byte) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(oracle.Tool(t, "cpio"), "-idm", "--quiet", "--no-absolute-filenames")
	cmd.Dir = dir
	cmd.Stdin = bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	return dir
}

// onDisk returns the tree of a directory.
func onDisk(t *testing.T, dir string) *tree.Tree {
	t.Helper()
	tr := tree.New()
	seen := map[uint64]*tree.Inode{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil || rel == "." {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		ino := seen[st.Ino]
		if ino == nil {
			ino = &tree.Inode{Mode: fi.Mode(), UID: st.Uid, GID: st.Gid, ModTime: fi.ModTime().Unix()}
			switch {
			case fi.Mode().IsRegular():
				b, err := os.ReadFile(name)
				if err != nil {
					return err
				}
				ino.Content = extent.Bytes(b)
			case fi.Mode()&fs.ModeSymlink != 0:
				if ino.Target, err = os.Readlink(name); err != nil {
					return err
				}
			case fi.Mode()&fs.ModeDevice != 0:
				ino.Major = uint32(st.Rdev>>8&0xfff | st.Rdev>>32&^0xfff)
				ino.Minor = uint32(st.Rdev&0xff | st.Rdev>>12&^0xff)
			}
			seen[st.Ino] = ino
		}
		return tr.Add(rel, ino)
	})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func sameTrees(t *testing.T, got, want *tree.Tree) {
	t.Helper()
	a, b := maps.Collect(got.All()), maps.Collect(want.All())
	for _, name := range slices.Sorted(maps.Keys(b)) {
		if name == "." {
			continue
		}
		if a[name] == nil {
			t.Errorf("%s is missing", name)
		} else if g, w := describeUnpacked(t, a[name]), describeUnpacked(t, b[name]); g != w {
			t.Errorf("%s: %s\nwant %s", name, g, w)
		}
	}
	if len(a) != len(b) {
		t.Errorf("%d files, want %d", len(a), len(b))
	}
}

func TestGNUUnpacks(t *testing.T) {
	want := plain(t)
	got := onDisk(t, unpackGNU(t, build(t, want)))
	sameTrees(t, got, want)
	for _, names := range [][]string{{"etc/hard1", "etc/hard2", "hard3"}, {"none1", "none2"}} {
		for _, n := range names[1:] {
			if got.Lookup(names[0]) != got.Lookup(n) {
				t.Errorf("%s and %s are not linked", names[0], n)
			}
		}
	}
}

func TestGNUUnpacksDevices(t *testing.T) {
	oracle.Root(t)
	sameTrees(t, onDisk(t, unpackGNU(t, build(t, full(t)))), full(t))
}

func TestGNULists(t *testing.T) {
	cmd := exec.Command(oracle.Tool(t, "cpio"), "-itvn", "--quiet")
	cmd.Stdin = bytes.NewReader(build(t, full(t)))
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	squeezed := strings.Join(strings.Fields(string(out)), " ")
	for _, want := range []string{
		"crw------- 1 0 0 5, 1 Jan 1 1970 dev/console",
		"crw------- 1 0 0 10, 300 Jan 1 1970 dev/large",
		"brw-rw---- 1 70000 4294967294 259, 70000 Jan 1 1970 dev/block",
		"srw------- 1 0 0 0 Jan 1 1970 dev/socket",
		"drwxr-xr-x 2 0 0 0 Jan 1 1970 dev",
		"drwx------ 2 %d %d 0 Sep 13 2020 etc/deep",
		"100001 Nov 14 2023 init",
		"etc/link -> ../init",
	} {
		if strings.Contains(want, "%d") {
			want = fmt.Sprintf(want, os.Getuid(), os.Getgid())
		}
		if !strings.Contains(squeezed, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if n, want := strings.Count(string(out), "\n"), full(t).Len()-1; n != want {
		t.Errorf("%d entries, want %d", n, want)
	}
}

func TestReadGNU(t *testing.T) {
	want := plain(t)
	dir := unpackGNU(t, build(t, want))
	for _, format := range []string{"newc", "crc"} {
		t.Run(format, func(t *testing.T) {
			cmd := exec.Command("sh", "-c", "find . -depth -print0 | "+oracle.Tool(t, "cpio")+" -0o --quiet -H "+format)
			cmd.Dir = dir
			image, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			segments, err := Read(bytes.NewReader(image), int64(len(image)), 0)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]*tree.Inode{}
			for _, e := range segments[0].Entries {
				got[e.Name] = e.Inode
			}
			if got["hard3"] != got["etc/hard1"] || got["hard3"] != got["etc/hard2"] || got["none1"] != got["none2"] {
				t.Error("hard links are lost")
			}
			if got["."] == nil || len(got) != want.Len() {
				t.Errorf("%d entries, want %d with the root", len(got), want.Len())
			}
			for name, ino := range want.All() {
				if name == "." {
					continue
				}
				if g, w := describeUnpacked(t, got[name]), describeUnpacked(t, ino); g != w {
					t.Errorf("%s: %s\nwant %s", name, g, w)
				}
			}
		})
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

func (h huge) Size() int64                         { return int64(h) }
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
