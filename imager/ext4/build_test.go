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
		"x/caps":   {Mode: 0o755, Xattrs: map[string][]byte{"security.capability": bytes.Repeat([]byte{1}, 20)}},
		"x/large":  {Mode: 0o755, Content: pattern{5000, 9}, Xattrs: map[string][]byte{"user.big": bytes.Repeat([]byte("v"), 3000), "trusted.overlay.opaque": []byte("y"), "user.bb": []byte("12345")}},
		"x/link":   {Mode: fs.ModeSymlink | 0o777, Target: strings.Repeat("s", 100), Xattrs: map[string][]byte{"trusted.t": bytes.Repeat([]byte("w"), 200)}},
		"x/dir":    {Mode: fs.ModeDir | 0o700, Xattrs: map[string][]byte{"security.selinux": []byte("system_u:object_r:etc_t:s0\x00")}},
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
			if size > 8*tib-1 {
				return // larger than a file may be here
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

func TestErrors(t *testing.T) {
	_, err := Build(boot(t), sized(3*mib))
	var space *SpaceError
	if !errors.As(err, &space) || space.Have != 3*mib || space.Need < 4*mib {
		t.Errorf("got %v", err)
	}
}
