package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/tree"
)

const (
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
)

var testOptions = Options{
	Label: "KILN-TEST",
	UUID:  [16]byte{0x9e, 1, 2, 3, 4, 5, 0x46, 7, 0x88, 9, 10, 11, 12, 13, 14, 15},
	Time:  1_700_000_000,
}

func sized(size int64) Options {
	o := testOptions
	o.Size = size
	return o
}

// pattern is content that differs in every block and costs no memory.
type pattern struct {
	size int64
	salt byte
}

func (p pattern) Size() int64 { return p.size }

func (p pattern) ReadAt(b []byte, off int64) (int, error) {
	for i := range b {
		at := off + int64(i)
		b[i] = p.salt + byte(at) ^ byte(at>>12)*7 ^ byte(at>>20)
	}
	return len(b), nil
}

func add(t testing.TB, tr *tree.Tree, name string, ino *tree.Inode) {
	t.Helper()
	if err := tr.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := tr.Add(name, ino); err != nil {
		t.Fatal(err)
	}
}

func text(s string) *tree.Inode {
	return &tree.Inode{Mode: 0o644, Content: bytes.NewReader([]byte(s))}
}

// boot is a BOOT partition with small stand-ins for its contents.
func boot(t testing.TB) *tree.Tree {
	tr := tree.New()
	add(t, tr, "A/vmlinuz", &tree.Inode{Mode: 0o644, Content: pattern{1_234_567, 1}})
	add(t, tr, "A/initramfs", &tree.Inode{Mode: 0o644, Content: pattern{3_000_001, 2}})
	add(t, tr, "grub/grub.cfg", text("set default=A\n"))
	return tr
}

// everything has one of each kind of file and each size at which the encoding
// changes.
func everything(t testing.TB) *tree.Tree {
	tr := boot(t)
	for _, n := range []int{0, 1, 4095, 4096, 4097, 65536} {
		add(t, tr, fmt.Sprintf("sizes/%d", n), &tree.Inode{Mode: 0o600, ModTime: int64(n), Content: pattern{int64(n), byte(n)}})
	}
	for _, n := range []int{1, 59, 60, 61, 4095} {
		add(t, tr, fmt.Sprintf("links/%d", n), &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: strings.Repeat("t", n)})
	}
	for i, sec := range []int64{-1 << 31, -1, 0, 1<<31 - 1, 1 << 31, 1 << 32, 1<<34 - 1<<31 - 1} {
		add(t, tr, fmt.Sprintf("times/%d", i), &tree.Inode{Mode: 0o644, ModTime: sec})
	}
	for name, ino := range map[string]*tree.Inode{
		"dev/null": {Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666, Major: 1, Minor: 3},
		"dev/big":  {Mode: fs.ModeDevice | 0o660, Major: 4095, Minor: 1<<20 - 1, UID: 1 << 31, GID: 1<<32 - 2},
		"dev/fifo": {Mode: fs.ModeNamedPipe | 0o600},
		"dev/sock": {Mode: fs.ModeSocket | 0o755},
		"bin/su":   {Mode: fs.ModeSetuid | fs.ModeSetgid | 0o755, UID: 70000, GID: 80000},
		"tmp":      {Mode: fs.ModeDir | fs.ModeSticky | 0o777, ModTime: 77},
		"secret":   {Mode: fs.ModeDir},
		"x/small":  {Mode: 0o644, Xattrs: map[string][]byte{"user.a": []byte("b"), "user.empty": nil}},
		"x/caps":   {Mode: 0o755, Xattrs: map[string][]byte{"security.capability": {1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}},
		"x/large":  {Mode: 0o755, Content: pattern{5000, 9}, Xattrs: map[string][]byte{"user.big": bytes.Repeat([]byte("v"), 3000), "trusted.overlay.opaque": []byte("y"), "user.bb": []byte("12345")}},
		"x/link":   {Mode: fs.ModeSymlink | 0o777, Target: strings.Repeat("s", 100), Xattrs: map[string][]byte{"trusted.t": bytes.Repeat([]byte("w"), 200)}},
		"x/acl": {Mode: 0o664, Xattrs: map[string][]byte{aclAccess: {2, 0, 0, 0, // user::rw- user:1000:r-- group::r-- mask::rw- other::r--
			1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 0xe8, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255,
			16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255}}},
		"x/dir": {Mode: fs.ModeDir | 0o700, Xattrs: map[string][]byte{"security.selinux": []byte("system_u:object_r:etc_t:s0\x00")}},
	} {
		add(t, tr, name, ino)
	}
	shared := text("one file, three names\n")
	for _, name := range []string{"hard/a", "hard/b", "hard/sub/c"} {
		add(t, tr, name, shared)
	}
	add(t, tr, "names/"+strings.Repeat("n", 255), text("long"))
	add(t, tr, "names/b\xc3\xbccher \xff", text("bytes"))
	return tr
}

// many has directories of many entries and more inodes than a small group has.
func many(t testing.TB, files int) *tree.Tree {
	tr := tree.New()
	for i := range files {
		add(t, tr, fmt.Sprintf("many/file-with-a-name-%05d", i), &tree.Inode{Mode: 0o644, UID: uint32(i)})
	}
	return tr
}

func build(t testing.TB, tr *tree.Tree, opts Options) *extent.Map {
	t.Helper()
	m, err := Build(tr, opts)
	if err != nil {
		t.Fatal(err)
	}
	if m.Size() != opts.Size {
		t.Fatalf("the map has %d bytes, wanted %d", m.Size(), opts.Size)
	}
	return m
}

func writeImage(t testing.TB, m *extent.Map) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "ext4.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := extent.WriteSparse(t.Context(), f, m, nil); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// fsck wants e2fsck to find nothing: the five passes and the summary.
func fsck(t testing.TB, img string) {
	t.Helper()
	out, err := exec.Command(oracle.Tool(t, "e2fsck"), "-fn", img).CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err != nil || len(lines) != 7 || !strings.HasPrefix(lines[5], "Pass 5") || !strings.Contains(lines[6], " blocks") {
		t.Fatalf("e2fsck: %v\n%.4000s", err, out)
	}
}

func TestSizes(t *testing.T) {
	for _, size := range []int64{
		2 * mib, 2*mib + 4095, 7 * mib, 8 * mib, 9*mib + 4096, 64 * mib, 100 * mib, 128*mib - 4096, 128 * mib,
		128*mib + 4096, 128*mib + 3*mib, 130 * mib, 200 * mib, 256*mib + 1, gib, 2*gib + 12*mib, 8 * gib, 8*gib + 5*mib,
		100 * gib, tib, 8 * tib, 16*tib - 4096,
	} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			if testing.Short() && size > 100*gib {
				t.Skip("large")
			}
			m := build(t, tree.New(), sized(size))
			t.Logf("%d MiB: %d KiB in %d extents", size/mib, m.Allocated()>>10, len(m.Extents()))
			if size > tib { // e2fsck takes long, or a file may not be so large
				if _, err := Open(m, size); err != nil {
					t.Error(err)
				}
				return
			}
			fsck(t, writeImage(t, m))
		})
	}
}

func TestTrees(t *testing.T) {
	for name, tr := range map[string]*tree.Tree{
		"boot": boot(t), "everything": everything(t), "many": many(t, 10_000),
	} {
		for _, size := range []int64{12 * mib, 64 * mib, 300 * mib, 3 * gib} {
			t.Run(fmt.Sprintf("%s/%d", name, size/mib), func(t *testing.T) {
				fsck(t, writeImage(t, build(t, tr, sized(size))))
			})
		}
	}
}

// TestSmall wants empty file systems to be nearly all hole.
func TestSmall(t *testing.T) {
	for size, limit := range map[int64]int64{64 * mib: 48 << 10, gib: 96 << 10, 100 * gib: 1200 << 10, tib: 12 * mib} {
		if n := build(t, tree.New(), sized(size)).Allocated(); n > limit {
			t.Errorf("an empty file system of %d MiB has %d bytes, want at most %d", size/mib, n, limit)
		}
	}
}

// TestJournal checks sizes of the journal, and that the blocks reserved for
// descriptors stay below a quarter of it.
func TestJournal(t *testing.T) {
	for _, tt := range []struct {
		size, option  int64
		journal, rsvd int64 // blocks
	}{
		{7 * mib, 0, 0, 0},
		{64 * mib, 0, 1024, 7},
		{64 * mib, NoJournal, 0, 7},
		{64 * mib, 16 * mib, 4096, 7},
		{100 * gib, 4 * mib, 1024, 224},
		{100 * gib, 0, 131072, 1024},
		{200 * gib, gib, 262144, 1024},
	} {
		opts := sized(tt.size)
		opts.Journal = tt.option
		g := newGeometry(tt.size, 11, opts)
		if g.journal != tt.journal || g.reservedGDT != tt.rsvd {
			t.Errorf("%d MiB, journal %d: %d blocks of journal, %d reserved, want %d and %d", tt.size/mib, tt.option, g.journal, g.reservedGDT, tt.journal, tt.rsvd)
		}
		if tt.size < 300*gib {
			fsck(t, writeImage(t, build(t, boot(t), opts)))
		}
	}
}

func TestMinSize(t *testing.T) {
	large := tree.New()
	add(t, large, "large", &tree.Inode{Mode: 0o644, Content: pattern{3*gib + 1, 1}})
	edge := tree.New() // more than one group holds, less than two may hold
	add(t, edge, "edge", &tree.Inode{Mode: 0o644, Content: pattern{117 * mib, 1}})
	inodes := many(t, 40_000)
	for name, tr := range map[string]*tree.Tree{
		"empty": tree.New(), "boot": boot(t), "everything": everything(t), "many": many(t, 10_000), "inodes": inodes, "large": large, "edge": edge,
	} {
		for _, journal := range []int64{0, NoJournal, 8 * mib} {
			t.Run(fmt.Sprintf("%s/%d", name, journal), func(t *testing.T) {
				opts := testOptions
				opts.Journal = journal
				size, err := MinSize(tr, opts)
				if err != nil {
					t.Fatal(err)
				}
				opts.Size = size - 1
				_, err = Build(tr, opts)
				var space *SpaceError
				if !errors.As(err, &space) || space.Need != size || space.Have != size-1 {
					t.Errorf("%d bytes: %v, want %d needed", size-1, err, size)
				}
				opts.Size = size
				m := build(t, tr, opts)
				if size < 300*mib {
					fsck(t, writeImage(t, m))
				}
			})
		}
	}
}

// TestMinSizeEdges lets the contents end around the ends of groups, where a last
// group is too short for its metadata.
func TestMinSizeEdges(t *testing.T) {
	for base := int64(100 * mib); base < 500*mib; base += 128 * mib {
		for extra := int64(0); extra < 32*mib; extra += 777 << 10 {
			tr := tree.New()
			add(t, tr, "file", &tree.Inode{Mode: 0o644, Content: pattern{base + extra, 1}})
			size, err := MinSize(tr, testOptions)
			if err != nil {
				t.Fatal(err)
			}
			build(t, tr, sized(size))
			var space *SpaceError
			if _, err := Build(tr, sized(size-blockSize)); !errors.As(err, &space) || space.Need != size {
				t.Errorf("%d bytes of content: MinSize is %d, but a block less: %v", base+extra, size, err)
			}
		}
	}
}

func TestDeterministic(t *testing.T) {
	opts := sized(300 * mib)
	a, b := build(t, everything(t), opts), build(t, everything(t), opts)
	if err := same(a, b); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*Options){
		"label": func(o *Options) { o.Label = "other" },
		"uuid":  func(o *Options) { o.UUID[3]++ },
		"time":  func(o *Options) { o.Time++ },
	} {
		opts := opts
		change(&opts)
		if same(a, build(t, everything(t), opts)) == nil {
			t.Errorf("the %s does not matter", what)
		}
	}
}

func TestErrors(t *testing.T) {
	long := strings.Repeat("x", 17)
	for _, tt := range []struct {
		change func(*Options)
		name   string
		ino    *tree.Inode
		want   error
		text   string
	}{
		{func(o *Options) { o.Label = long }, "", nil, ErrOptions, `Label "xxxxxxxxxxxxxxxxx" has 17 bytes, at most 16 fit`},
		{func(o *Options) { o.Journal = mib }, "", nil, ErrOptions, "Journal is 1048576 bytes, the smallest is 4194304"},
		{func(o *Options) { o.Size = 16 * tib }, "", nil, ErrOptions, "the largest is 17592186040320 (16 TiB less a block)"},
		{func(o *Options) { o.Time = -1 }, "", nil, ErrOptions, "Time -1 is not between 0 and 15032385535"},
		{nil, "a", &tree.Inode{Mode: 0o644, ModTime: 1 << 34}, ErrUnsupported, "a: ext4: not supported: modification time 17179869184"},
		{nil, "b", &tree.Inode{Mode: fs.ModeSymlink, Target: strings.Repeat("t", 4096)}, ErrUnsupported, "b: ext4: not supported: link target of 4096 bytes, wanted 1 to 4095"},
		{nil, "c", &tree.Inode{Mode: fs.ModeDevice, Major: 4096}, ErrUnsupported, "c: ext4: not supported: device 4096:0, the largest is 4095:1048575"},
		{nil, "d", &tree.Inode{Xattrs: map[string][]byte{"system.nfs4_acl": nil}}, ErrUnsupported, `d: ext4: not supported: extended attribute "system.nfs4_acl", wanted a name in`},
		{nil, "e", &tree.Inode{Xattrs: map[string][]byte{"user.e": make([]byte, 4090)}}, ErrUnsupported, "e: ext4: not supported: extended attributes of more than 4060 bytes"},
		{nil, "acl", &tree.Inode{Xattrs: map[string][]byte{aclAccess: {1, 0, 0, 0}}}, ErrUnsupported, "acl: ext4: not supported: access control list of 4 bytes, wanted version 2"},
		{nil, "lost+found", &tree.Inode{}, ErrUnsupported, "lost+found: ext4: not supported: it must be a directory"},
		{nil, "f", &tree.Inode{Mode: fs.ModeIrregular}, ErrUnsupported, "f: ext4: not supported: file type ?"},
	} {
		tr, opts := tree.New(), sized(64*mib)
		if tt.change != nil {
			tt.change(&opts)
		}
		if tt.ino != nil {
			add(t, tr, tt.name, tt.ino)
		}
		if _, err := Build(tr, opts); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("got %v, want %q", err, tt.text)
		}
	}
	_, err := Build(boot(t), sized(3*mib))
	if want := "need a file system of 4575232 bytes, this one has 3145728"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

// BenchmarkBuild lays out a BOOT partition of 1 GiB with four large files,
// which are not read.
func BenchmarkBuild(b *testing.B) {
	tr := tree.New()
	for _, name := range []string{"A/vmlinuz", "A/initramfs", "B/vmlinuz", "B/initramfs"} {
		add(b, tr, name, &tree.Inode{Mode: 0o644, Content: unread{}})
	}
	for b.Loop() {
		build(b, tr, sized(gib))
	}
}

// unread is 100 MB that must not be read.
type unread struct{}

func (unread) Size() int64 { return 100_000_000 }

func (unread) ReadAt([]byte, int64) (int, error) { panic("read") }

func BenchmarkBuildEmpty(b *testing.B) {
	for _, size := range []int64{64 * mib, 100 * gib, tib} {
		b.Run(fmt.Sprint(size/mib), func(b *testing.B) {
			for b.Loop() {
				build(b, tree.New(), sized(size))
			}
		})
	}
}

func BenchmarkMinSize(b *testing.B) {
	tr := many(b, 10_000)
	for b.Loop() {
		if _, err := MinSize(tr, testOptions); err != nil {
			b.Fatal(err)
		}
	}
}
