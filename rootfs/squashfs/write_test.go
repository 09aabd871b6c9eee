package squashfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// add puts ino at name, making the directories above it.
func add(t testing.TB, tr *tree.Tree, name string, ino *tree.Inode) {
	t.Helper()
	if i := strings.LastIndexByte(name, '/'); i > 0 {
		if err := tr.MkdirAll(name[:i], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.Add(name, ino); err != nil {
		t.Fatal(err)
	}
}

func file(content []byte) *tree.Inode {
	return &tree.Inode{Mode: 0o644, ModTime: 1_700_000_000, Content: extent.Bytes(content)}
}

// text returns n bytes that compress, random n bytes that do not.
func text(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, 0, n+20)
	for len(p) < n {
		p = fmt.Appendf(p, "%x line of %d\n", rng.Uint32(), rng.IntN(50))
	}
	return p[:n]
}

func random(n int, seed uint64) []byte {
	p := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 2))
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// torture returns a tree with everything that has broken a squashfs writer.
// With many, one directory has 70,000 entries.
func torture(t testing.TB, blockSize int, many bool) *tree.Tree {
	tr := tree.New()
	add(t, tr, ".", &tree.Inode{Mode: fs.ModeDir | 0o755, ModTime: 1_600_000_000})

	for _, n := range []int{0, 1, 3, blockSize - 1, blockSize, blockSize + 1, 2*blockSize + 5} {
		add(t, tr, fmt.Sprintf("sizes/text-%d", n), file(text(n, uint64(n))))
		add(t, tr, fmt.Sprintf("sizes/random-%d", n), file(random(n, uint64(n))))
	}
	add(t, tr, "sizes/zeros-300k", file(make([]byte, 300<<10)))
	add(t, tr, "sizes/zeros-blocks", file(make([]byte, 3*blockSize)))
	add(t, tr, "sizes/hole-middle", file(append(append(text(blockSize, 5), make([]byte, 2*blockSize)...), random(77, 5)...)))
	add(t, tr, "sizes/hole-front", file(append(make([]byte, blockSize), text(blockSize+9, 6)...)))
	add(t, tr, "sizes/no-content", &tree.Inode{Mode: 0o600})

	dup := text(3*blockSize+100, 9)
	for i := range 20 {
		add(t, tr, fmt.Sprintf("dup/%d.txt", i), file(dup))
		add(t, tr, fmt.Sprintf("dup/small-%d", i), file([]byte("the same everywhere")))
	}
	differs := bytes.Clone(dup)
	differs[len(differs)-1]++
	add(t, tr, "dup/differs-late", file(differs))

	linked := file(text(5000, 10))
	linked.Mode = fs.ModeSetuid | fs.ModeSetgid | 0o755
	for _, name := range []string{"links/a", "links/deep/er/b", "other/c"} {
		add(t, tr, name, linked)
	}
	pipe := &tree.Inode{Mode: fs.ModeNamedPipe | 0o640, UID: 7, GID: 8}
	add(t, tr, "links/pipe1", pipe)
	add(t, tr, "links/pipe2", pipe)
	symlink := &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: "../dev/null", UID: 1000, ModTime: 44}
	add(t, tr, "links/symlink1", symlink)
	add(t, tr, "links/symlink2", symlink)
	add(t, tr, "links/long", &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: strings.Repeat("long/", 819)})
	add(t, tr, "links/dangling", &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: "/no/such", Xattrs: map[string][]byte{"trusted.l": []byte("x")}})

	for _, d := range []struct {
		name         string
		mode         fs.FileMode
		major, minor uint32
	}{
		{"null", fs.ModeDevice | fs.ModeCharDevice | 0o666, 1, 3},
		{"chr300", fs.ModeDevice | fs.ModeCharDevice | 0o600, 10, 300},
		{"blk300", fs.ModeDevice | 0o660, 259, 300},
		{"max", fs.ModeDevice | 0o660, 4095, 1<<20 - 1},
		{"whiteout", fs.ModeDevice | fs.ModeCharDevice, 0, 0},
	} {
		add(t, tr, "dev/"+d.name, &tree.Inode{Mode: d.mode, Major: d.major, Minor: d.minor, GID: 6})
	}
	add(t, tr, "dev/chr-xattr", &tree.Inode{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 1, Minor: 5, Xattrs: map[string][]byte{"security.x": []byte("y")}})
	add(t, tr, "dev/fifo-xattr", &tree.Inode{Mode: fs.ModeNamedPipe | 0o600, Xattrs: map[string][]byte{"security.x": []byte("y")}})
	add(t, tr, "dev/socket", &tree.Inode{Mode: fs.ModeSocket | 0o777})

	name := func(s string) string { return "names/" + s }
	add(t, tr, name(strings.Repeat("n", 255)), file([]byte("255")))
	add(t, tr, name(strings.Repeat("ü", 127)), file([]byte("utf-8")))
	for _, s := range []string{"grüße", "日本語", "\xff\xfe not utf-8", " space ", "-dash", "new\nline", "q'\"uote", "a", "a.b", "a-b", "a/b", "B"} {
		if s == "a" {
			continue
		}
		add(t, tr, name(s), file([]byte(s)))
	}

	add(t, tr, "modes/sticky", &tree.Inode{Mode: fs.ModeDir | fs.ModeSticky | 0o777})
	add(t, tr, "modes/setgid", &tree.Inode{Mode: fs.ModeDir | fs.ModeSetgid | 0o775, GID: 50})
	add(t, tr, "modes/none", &tree.Inode{Mode: 0, Content: extent.Bytes([]byte("x"))})
	add(t, tr, "modes/owner", &tree.Inode{Mode: 0o644, UID: 4_000_000_000, GID: math.MaxUint32 - 1})
	for i := range 300 {
		add(t, tr, fmt.Sprintf("owners/%d", i), &tree.Inode{Mode: 0o644, UID: uint32(100_000 + i), GID: uint32(200_000 + i)})
	}
	for n, mtime := range map[string]int64{"1960": -300_000_000, "1970": 0, "2040": 2_210_000_000, "2106": math.MaxUint32, "2200": 7_258_118_400} {
		add(t, tr, "times/"+n, &tree.Inode{Mode: 0o644, ModTime: mtime})
	}

	capability := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	for i := range 5 {
		ino := file([]byte("#!/bin/ping"))
		ino.Xattrs = map[string][]byte{"security.capability": capability}
		add(t, tr, fmt.Sprintf("xattrs/ping%d", i), ino)
	}
	ino := file(text(3*blockSize, 12))
	ino.Xattrs = map[string][]byte{
		"user.one": []byte("1"), "user.empty": {}, "trusted.overlay.opaque": []byte("y"),
		"security.big": text(2000, 13), "user." + strings.Repeat("x", 250): []byte("long name"),
	}
	add(t, tr, "xattrs/many", ino)
	add(t, tr, "xattrs/dir", &tree.Inode{Mode: fs.ModeDir | 0o700, Xattrs: map[string][]byte{"trusted.overlay.opaque": []byte("y")}})
	for i := range 700 { // more than fit into one metadata block of ids
		ino := file(nil)
		ino.Xattrs = map[string][]byte{"user.n": fmt.Append(nil, i)}
		add(t, tr, fmt.Sprintf("xattrs/n/%d", i), ino)
	}

	for i := range 30 {
		for j := range 10 {
			add(t, tr, fmt.Sprintf("dirs30/directory-%d/file-with-a-name-%d", i, j), file(fmt.Append(nil, i, j)))
		}
	}
	for i := range 1000 {
		add(t, tr, fmt.Sprintf("dirs1000/%d", i*i), &tree.Inode{Mode: fs.ModeDir | 0o755})
		if i%3 == 0 {
			add(t, tr, fmt.Sprintf("dirs1000/%d/f", i*i), file(fmt.Append(nil, i%10)))
		}
	}
	add(t, tr, strings.Repeat("d/", 500)+"bottom", file([]byte("deep")))
	if many {
		ino := &tree.Inode{Mode: 0o644, Xattrs: map[string][]byte{"security.big": text(64<<10, 13), "user.big": random(20_000, 14)}}
		add(t, tr, "xattrs/big", ino)    // larger than ext4 holds
		shared := file([]byte("shared")) // names in one run whose inode is far away
		for i := range 70_000 {
			ino := shared
			if i%1000 != 0 {
				ino = &tree.Inode{Mode: 0o644, ModTime: int64(i)}
			}
			add(t, tr, fmt.Sprintf("many/entry %d", i), ino)
		}
		for i := range 300 {
			add(t, tr, fmt.Sprintf("long/%03d%s", i, strings.Repeat("l", 252)), &tree.Inode{Mode: 0o644})
		}
	}
	return tr
}

// write writes tr to a new file and returns its name.
func write(t testing.TB, tr *tree.Tree, opts Options) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image.sqsh"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := Write(t.Context(), f, tr, opts)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if n != fi.Size() || n%4096 != 0 {
		t.Fatalf("Write = %d, the file has %d bytes", n, fi.Size())
	}
	return f.Name()
}

func TestSameBytesForAnyWorkers(t *testing.T) {
	tr := torture(t, 64<<10, false)
	for i := range 40 {
		add(t, tr, fmt.Sprintf("blocks/%d", i), file(text(1000*i+i*i*100, uint64(i))))
	}
	for _, level := range []zstd.EncoderLevel{zstd.SpeedFastest, 0} {
		var want [32]byte
		for i, workers := range []int{1, 2, 7} {
			data, err := os.ReadFile(write(t, tr, Options{BlockSize: 64 << 10, Level: level, Workers: workers}))
			if err != nil {
				t.Fatal(err)
			}
			got := sha256.Sum256(data)
			if i == 0 {
				want = got
			}
			if got != want {
				t.Errorf("level %d: %d workers write %x, 1 worker %x", level, workers, got, want)
			}
		}
	}
}

// TestImage holds the whole image to a known digest: the same on every
// processor, with and without assembly. A change here breaks reproducibility
// between versions, so it has to be meant.
func TestImage(t *testing.T) {
	tr := torture(t, 128<<10, false)
	data, err := os.ReadFile(write(t, tr, Options{BlockSize: 128 << 10, ModTime: 1_700_000_000}))
	if err != nil {
		t.Fatal(err)
	}
	const want = "737326455e90504d39993af24c7b4ac0cb24e60a28d9ed0c781f3fcf5bb6710b"
	if got := fmt.Sprintf("%x", sha256.Sum256(data)); got != want {
		t.Errorf("the image has digest %s, want %s", got, want)
	}
}

// TestDedupe looks at the size of images instead of asking the writer.
func TestDedupe(t *testing.T) {
	size := func(build func(tr *tree.Tree)) int64 {
		tr := tree.New()
		build(tr)
		fi, err := os.Stat(write(t, tr, Options{BlockSize: 64 << 10, Level: zstd.SpeedFastest}))
		if err != nil {
			t.Fatal(err)
		}
		return fi.Size()
	}
	data := random(300_000, 1)
	late := bytes.Clone(data)
	late[len(late)-1]++
	one := size(func(tr *tree.Tree) { add(t, tr, "a", file(data)) })
	for _, tt := range []struct {
		name string
		b    *tree.Inode
		want int64 // how much more than one
	}{
		{"same", file(bytes.Clone(data)), 0},
		{"differs in the last byte", file(late), 300_000},
		{"zeros", file(make([]byte, 10<<20)), 0},
	} {
		got := size(func(tr *tree.Tree) { add(t, tr, "a", file(data)); add(t, tr, "b", tt.b) }) - one
		if got < tt.want-4096 || got > tt.want+4096 {
			t.Errorf("%s: %d bytes more, want %d", tt.name, got, tt.want)
		}
	}
}

// short is a content that has less than it says.
type short struct{ extent.Source }

func (short) Size() int64 { return 500_000 }

type failing struct{ extent.Source }

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errors.New("the disk is on fire") }

func TestWriteErrors(t *testing.T) {
	xattr := func(name string, value []byte) *tree.Inode {
		return &tree.Inode{Mode: 0o644, Xattrs: map[string][]byte{name: value}}
	}
	data := extent.Bytes(random(400_000, 3))
	for _, tt := range []struct {
		ino  *tree.Inode
		want string
		is   error
	}{
		{&tree.Inode{Content: short{data}}, "dir/x: content ends at byte 400000 of 500000: unexpected EOF", io.ErrUnexpectedEOF},
		{&tree.Inode{Content: failing{data}}, "dir/x: the disk is on fire", nil},
		{&tree.Inode{Mode: fs.ModeIrregular}, "dir/x: file type ?---------: not supported", ErrUnsupported},
		{&tree.Inode{Mode: fs.ModeSymlink}, "dir/x: symbolic link target of 0 bytes: want 1 to 4095, without NUL: not supported", ErrUnsupported},
		{&tree.Inode{Mode: fs.ModeSymlink, Target: strings.Repeat("x", 4096)}, "dir/x: symbolic link target of 4096 bytes: want 1 to 4095, without NUL: not supported", ErrUnsupported},
		{&tree.Inode{Mode: fs.ModeDevice, Major: 4096}, "dir/x: device number 4096:0: want at most 4095:1048575: not supported", ErrUnsupported},
		{&tree.Inode{Mode: fs.ModeDevice, Minor: 1 << 20}, "dir/x: device number 0:1048576: want at most 4095:1048575: not supported", ErrUnsupported},
		{xattr("system.posix_acl_access", nil), `dir/x: extended attribute "system.posix_acl_access": want a name that begins with user., trusted., security.: not supported`, ErrUnsupported},
		{xattr("user.", nil), `dir/x: extended attribute "user.": name of 5 bytes, value of 0: want at most 255 and 65536: not supported`, ErrUnsupported},
		{xattr("user.big", make([]byte, 65537)), `dir/x: extended attribute "user.big": name of 8 bytes, value of 65537: want at most 255 and 65536: not supported`, ErrUnsupported},
	} {
		tr := tree.New()
		add(t, tr, "dir/x", tt.ino)
		_, err := Write(t.Context(), discard{}, tr, Options{BlockSize: 64 << 10})
		if err == nil || err.Error() != tt.want || tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}

	tr := tree.New()
	dir := &tree.Inode{Mode: fs.ModeDir | 0o755}
	add(t, tr, "a", dir)
	add(t, tr, "b", dir)
	if _, err := Write(t.Context(), discard{}, tr, Options{}); err == nil || err.Error() != "b: a hard link to directory a: not supported" {
		t.Error(err)
	}
	tr = tree.New()
	for i := range 70_000 {
		add(t, tr, fmt.Sprint(i), &tree.Inode{UID: uint32(i)})
	}
	if _, err := Write(t.Context(), discard{}, tr, Options{}); err == nil || !strings.Contains(err.Error(), ": more than 65535 different user and group ids: not supported") {
		t.Error(err)
	}
	for want, o := range map[string]Options{
		"squashfs: block size 5000: want a power of two from 4096 to 1048576":    {BlockSize: 5000},
		"squashfs: block size 2097152: want a power of two from 4096 to 1048576": {BlockSize: 2 << 20},
		"squashfs: no zstd level 5: want 1 to 4":                                 {Level: 5},
		"squashfs: -1 workers: want 1 or more":                                   {Workers: -1},
	} {
		if _, err := Write(t.Context(), discard{}, tree.New(), o); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	tr = tree.New()
	add(t, tr, "x", file(random(400_000, 3)))
	if _, err := Write(t.Context(), full{}, tr, Options{}); err != errFull {
		t.Errorf("on a full disk: %v", err)
	}
}

type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

var errFull = errors.New("no space left on device")

type full struct{}

func (full) WriteAt(p []byte, off int64) (int, error) {
	if off > 100_000 {
		return 0, errFull
	}
	return len(p), nil
}

// endless calls hit on the first read and goes on for ever.
type endless struct{ hit func() }

func (endless) Size() int64 { return math.MaxInt64 }

func (e endless) ReadAt(p []byte, off int64) (int, error) {
	e.hit()
	binary.LittleEndian.PutUint64(p, uint64(off))
	return len(p), nil
}

func TestCancel(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, twice := range []bool{false, true} { // once while writing, once while looking for duplicates
		ctx, cancel := context.WithCancel(t.Context())
		tr := tree.New()
		add(t, tr, "x", &tree.Inode{Content: endless{cancel}})
		if twice {
			add(t, tr, "y", &tree.Inode{Content: endless{cancel}})
		}
		start := time.Now()
		if _, err := Write(ctx, discard{}, tr, Options{Workers: 3}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("took %v to stop", d)
		}
	}
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("%d goroutines before, %d after", before, runtime.NumGoroutine())
}

// TestIncompressible checks that what does not shrink is stored as it is.
func TestIncompressible(t *testing.T) {
	c, err := newCompressor(Options{BlockSize: 1 << 20, Level: zstd.SpeedBestCompression, Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	half := random(1<<19, 1)
	for _, tt := range []struct {
		name string
		data []byte
		raw  bool
	}{
		{"random", random(1<<20, 2), true},
		{"one byte", []byte{7}, true},
		{"random, twice", append(bytes.Clone(half), half...), false},
		{"text", text(1<<20, 3), false},
		{"every byte once", func() (p []byte) {
			for i := range 4096 {
				p = append(p, byte(i))
			}
			return p
		}(), false},
	} {
		got := c.data(nil, tt.data)
		if (got == nil) != tt.raw {
			t.Errorf("%s: %d of %d bytes, stored as it is: %v", tt.name, len(got), len(tt.data), got == nil)
		}
	}
}
