package fat

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

const mib = 1 << 20

// when is odd, so that the half of a FAT time that is 10 ms is used.
var when = time.Date(2024, 2, 29, 23, 58, 57, 0, time.UTC)

func options(size int64, sector int) Options {
	return Options{Size: size, SectorSize: sector, Label: "EFI", VolumeID: 0xCAFE1234, Time: when.Unix(), HiddenSectors: 2048}
}

// data is deterministic noise.
func data(seed uint64, n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	rng.Read(b)
	return b
}

func add(t testing.TB, tr *tree.Tree, name string, content []byte) {
	t.Helper()
	if i := strings.LastIndexByte(name, '/'); i > 0 {
		if err := tr.MkdirAll(name[:i], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ino := &tree.Inode{Mode: 0o644}
	if content != nil {
		ino.Content = bytes.NewReader(content)
	}
	if err := tr.Add(name, ino); err != nil {
		t.Fatal(err)
	}
}

// everything has every kind of name and size that has a case of its own.
func everything(t testing.TB) *tree.Tree {
	t.Helper()
	tr := tree.New()
	for i, name := range []string{
		"EFI/BOOT/BOOTX64.EFI", "EFI/Linux/kiln-A.efi", "EFI/Linux/kiln-B.efi", "loader/loader.conf", "loader/entries.srel",
		"names/LOADER~1.TXT", "names/loader file.txt", "names/loader_file.txt", "names/loader.file.txt", "names/.hidden", "names/..two",
		"names/NOEXT", "names/lower", "names/UPPER.low", "names/a.b.c.d", "names/+,;=[]", "names/eight888.thr", "names/ninechars.x",
		"names/grüße", "names/日本語のファイル.txt", "names/ leading", "names/A~1", "names/å~1",
		"names/" + strings.Repeat("x", 13), "names/" + strings.Repeat("y", 26), "names/" + strings.Repeat("z", 255), "names/~", "names/_",
		"deep/a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p",
	} {
		add(t, tr, name, data(uint64(i), 100+i))
	}
	for _, n := range []int{0, 1, 511, 512, 513, 1023, 1024, 4095, 4096, 4097, 32768, 3*mib + 17} {
		add(t, tr, fmt.Sprintf("sizes/%d.bin", n), data(uint64(n), n))
	}
	add(t, tr, "sizes/nil", nil)
	for i := range 700 {
		add(t, tr, fmt.Sprintf("many/similar name %d.data", i), data(1, i%3))
	}
	if err := tr.MkdirAll("empty/dir", 0o755); err != nil {
		t.Fatal(err)
	}
	add(t, tr, "read-only.txt", []byte("x"))
	tr.Lookup("read-only.txt").Mode = 0o444
	return tr
}

func build(t testing.TB, tr *tree.Tree, opts Options) *extent.Map {
	t.Helper()
	m, err := Build(tr, opts)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func writeImage(t testing.TB, m *extent.Map) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "fat.img")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := extent.WriteSparse(t.Context(), f, m, nil); err != nil {
		t.Fatal(err)
	}
	return name
}

// listing is a tree as one line for each path, without what FAT does not keep.
func listing(t testing.TB, tr *tree.Tree, stamp int64) string {
	t.Helper()
	var b strings.Builder
	for name, ino := range tr.All() {
		h := sha256.New()
		if ino.Content != nil {
			if _, err := io.Copy(h, io.NewSectionReader(ino.Content, 0, ino.Size())); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if stamp != 0 && name != "." && ino.ModTime != stamp {
			t.Errorf("%s: time %d, want %d", name, ino.ModTime, stamp)
		}
		fmt.Fprintf(&b, "%s %s %d %x\n", name, ino.Mode, ino.Size(), h.Sum(nil)[:4])
	}
	return b.String()
}

func TestRoundTrip(t *testing.T) {
	tr := everything(t)
	add(t, tr, "names/😀.efi", []byte("mtools does not know surrogates"))
	want := listing(t, tr, 0)
	for _, tt := range []struct {
		size    int64
		sector  int
		cluster int64
	}{{38 * mib, 512, 512}, {100 * mib, 512, 1024}, {512 * mib, 512, 4096}, {9 << 30, 512, 8192}, {300 * mib, 4096, 4096}, {100 << 30, 4096, 32768}} {
		m := build(t, tr, options(tt.size, tt.sector))
		if m.Size() != tt.size {
			t.Errorf("map of %d bytes, want %d", m.Size(), tt.size)
		}
		got, err := Open(m, m.Size())
		if err != nil {
			t.Errorf("%d: %v", tt.size, err)
			continue
		}
		if got.Bits != 32 || got.Label != "EFI" || got.VolumeID != 0xCAFE1234 || got.Cluster != tt.cluster || got.Size > tt.size || got.Size < tt.size-64<<10 {
			t.Errorf("%d: %+v", tt.size, got)
		}
		if l := listing(t, got.Tree, when.Unix()-1); l != want {
			t.Errorf("%d: got\n%s\nwant\n%s", tt.size, l, want)
		}
		info := make([]byte, bootSize)
		if _, err := m.ReadAt(info, int64(tt.sector)); err != nil {
			t.Fatal(err)
		}
		if free := int64(le.Uint32(info[atFree:])) * tt.cluster; got.Free != free {
			t.Errorf("%d: %d bytes free, FSInfo says %d", tt.size, got.Free, free)
		}
	}
}

// TestDeterministic adds the files in different orders.
func TestDeterministic(t *testing.T) {
	sum := func(seed uint64) [32]byte {
		names := make([]string, 300)
		for i := range names {
			names[i] = fmt.Sprintf("d%d/some long name %d", i%7, i)
		}
		rng := rand.New(rand.NewPCG(seed, 0))
		rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		tr := tree.New()
		for _, n := range names {
			add(t, tr, n, []byte(n))
			tr.Lookup(n).ModTime = int64(seed) // not in the image
		}
		h := sha256.New()
		if _, err := build(t, tr, options(34*mib, 512)).WriteTo(h); err != nil {
			t.Fatal(err)
		}
		return [32]byte(h.Sum(nil))
	}
	if sum(1) != sum(2) {
		t.Error("the image depends on the order of Add or on the tree's times")
	}
}

func TestMinSize(t *testing.T) {
	empty, one := tree.New(), tree.New()
	add(t, one, "payload", make([]byte, 90*mib+1))
	small := tree.New() // with clusters of 4 KiB it takes more than 512 MiB
	for i := range 70000 {
		add(t, small, fmt.Sprintf("%d/%d", i%100, i), []byte{1})
	}
	for _, tt := range []struct {
		name   string
		tree   *tree.Tree
		sector int
		atMost int64
	}{
		{"empty", empty, 512, 33 * mib}, {"empty", empty, 4096, 257 * mib},
		{"one file", one, 512, 90*mib + 800<<10}, {"one file", one, 4096, 257 * mib},
		{"many small files", small, 512, 37 * mib}, {"many small files", small, 4096, 277 * mib},
	} {
		opts := options(0, tt.sector)
		least, err := MinSize(tt.tree, opts)
		if err != nil || least > tt.atMost || least%int64(tt.sector) != 0 {
			t.Errorf("%s, sectors of %d: %d, %v, want at most %d", tt.name, tt.sector, least, err, tt.atMost)
			continue
		}
		v, err := collect(tt.tree, opts)
		if err != nil {
			t.Fatal(err)
		}
		sectors := least / int64(tt.sector)
		for n := sectors; n < sectors+600; n += 1 + int64(len(v.files))/1000 {
			if _, ok := v.fit(n); !ok {
				t.Errorf("%s, sectors of %d: %d do, but %d do not", tt.name, tt.sector, sectors, n)
				break
			}
		}
		opts.Size = least - int64(tt.sector)
		var space *SpaceError
		if _, err := Build(tt.tree, opts); !errors.As(err, &space) || *space != (SpaceError{Need: least, Have: opts.Size}) {
			t.Errorf("%s: a sector less: %v, want that it needs %d", tt.name, err, least)
		}
		opts.Size = least
		if m, err := Open(build(t, tt.tree, opts), least); err != nil {
			t.Errorf("%s: %+v, %v", tt.name, m, err)
		}
	}
	_, err := Build(one, options(64*mib, 512))
	want := "no space: it needs a FAT32 partition of 94710272 bytes, this one has 67108864; enlarge the partition or put less into it"
	if least, _ := MinSize(one, options(0, 512)); err == nil || err.Error() != strings.Replace(want, "94710272", fmt.Sprint(least), 1) {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestGeometry looks for sizes at which more space gives fewer clusters, and for
// FATs that are too small.
func TestGeometry(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		for c := sector; c <= maxClusterSize; c *= 2 {
			for _, start := range []int64{0, 66000 * c / sector, 1 << 21, 1<<32 - 3000} {
				var last geometry
				for n := start; n < start+2000; n++ {
					g := newGeometry(n, sector, c)
					if g.clusters == 0 {
						continue
					}
					if g.clusters < last.clusters || g.clusters > last.clusters+2*c && last.clusters > 0 {
						t.Fatalf("%d sectors of %d, clusters of %d: %+v after %+v", n, sector, c, g, last)
					}
					count := (g.sectors - g.data()) / g.cluster
					if count != g.clusters || 4*(count+2) > g.fatSize*sector || g.sectors > n || g.data()*sector%4096 != 0 || g.data()%g.cluster != 0 {
						t.Fatalf("%d sectors of %d, clusters of %d: %+v", n, sector, c, g)
					}
					last = g
				}
			}
		}
	}
}

// huge is content that is never read.
type huge int64

func (h huge) Size() int64                       { return int64(h) }
func (h huge) ReadAt([]byte, int64) (int, error) { return 0, errors.New("read") }

func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		ino  tree.Inode
		want string
	}{
		{"d/link", tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: "/etc"}, "d/link: not possible in FAT: a symbolic link, to /etc"},
		{"d/null", tree.Inode{Mode: fs.ModeDevice | fs.ModeCharDevice, Major: 1, Minor: 3}, "d/null: not possible in FAT: a device (1:3)"},
		{"d/sda", tree.Inode{Mode: fs.ModeDevice, Major: 8}, "d/sda: not possible in FAT: a device (8:0)"},
		{"d/pipe", tree.Inode{Mode: fs.ModeNamedPipe}, "d/pipe: not possible in FAT: a named pipe"},
		{"d/sock", tree.Inode{Mode: fs.ModeSocket}, "d/sock: not possible in FAT: a socket"},
		{"d/odd", tree.Inode{Mode: fs.ModeIrregular}, "d/odd: not possible in FAT: a file of the type ?"},
		{"d/4g", tree.Inode{Content: huge(4 << 30)}, "d/4g: not possible in FAT: a file of 4294967296 bytes, the largest is 4294967295"},
		{"d/COPY", tree.Inode{}, "d/copy: not possible in FAT: the name differs from COPY in the case of letters only"},
		{"d/É", tree.Inode{}, "d/é: not possible in FAT: the name differs from É in the case"},
		{"d/a:b", tree.Inode{}, `d/a:b: not possible in FAT: the name has the character ':'`},
		{"d/a\nb", tree.Inode{}, `not possible in FAT: the name has the character '\n'`},
		{"d/a.", tree.Inode{}, `d/a.: not possible in FAT: the name ends with '.'`},
		{"d/a ", tree.Inode{}, `d/a : not possible in FAT: the name ends with ' '`},
		{"d/\xff", tree.Inode{}, "not possible in FAT: the name is not valid UTF-8"},
	} {
		tr := tree.New()
		for _, name := range []string{"d/copy", "d/é"} {
			if !strings.Contains(tt.name, "4g") {
				add(t, tr, name, nil)
			}
		}
		if err := tr.MkdirAll("d", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := tr.Add(tt.name, &tt.ino); err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{"Build": second(Build(tr, options(64*mib, 512))), "MinSize": second(MinSize(tr, options(0, 512)))} {
			if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: got %v, want %q", what, err, tt.want)
			}
		}
	}
	tr := tree.New()
	for i := range (maxDirSlots - 2) / 3 {
		add(t, tr, fmt.Sprintf("d/a name of two %08d", i), nil)
	}
	if err := second(MinSize(tr, options(0, 512))); err != nil {
		t.Error(err)
	}
	add(t, tr, "d/one more of two parts", nil)
	if err := second(MinSize(tr, options(0, 512))); err == nil || !strings.HasPrefix(err.Error(), "d: not possible in FAT: a directory with 65537 entries") {
		t.Errorf("got %v", err)
	}
	// The largest file there is.
	tr = tree.New()
	if err := tr.Add("max", &tree.Inode{Content: huge(4<<30 - 1)}); err != nil {
		t.Fatal(err)
	}
	build(t, tr, options(5<<30, 512))
}

func second[T any](_ T, err error) error { return err }

func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		change func(*Options)
		want   string
	}{
		{func(o *Options) { o.SectorSize = 1024 }, "SectorSize is 1024, want 512 or 4096"},
		{func(o *Options) { o.Size++ }, "Size is 67108865 bytes, not a multiple of the sector size 512"},
		{func(o *Options) { o.Size = -512 }, "Size is -512 bytes"},
		{func(o *Options) { o.Size = 2 << 40 }, "Size is 2199023255552 bytes, the largest is 2199023255040"},
		{func(o *Options) { o.Label = "TWELVE BYTES" }, `Label "TWELVE BYTES" has 12 bytes, at most 11 fit`},
		{func(o *Options) { o.Label = "efi" }, `Label "efi" has 'e'; use A to Z`},
		{func(o *Options) { o.Label = "A.B" }, `Label "A.B" has '.'; use A to Z`},
		{func(o *Options) { o.Label = "A " }, `Label "A " begins or ends with a space`},
	} {
		opts := options(64*mib, 512)
		tt.change(&opts)
		if _, err := Build(tree.New(), opts); !errors.Is(err, ErrOptions) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

func TestStamp(t *testing.T) {
	for _, tt := range []struct{ in, want int64 }{
		{0, firstTime.Unix()}, {-1 << 60, firstTime.Unix()}, {1 << 60, lastTime.Unix() - 1},
		{when.Unix(), when.Unix() - 1}, {when.Unix() - 1, when.Unix() - 1},
	} {
		if got := newStamp(tt.in).unix(); got != tt.want {
			t.Errorf("%d: %d, want %d", tt.in, got, tt.want)
		}
	}
	if s := newStamp(when.Unix()); s != (stamp{date: 44<<9 | 2<<5 | 29, time: 23<<11 | 58<<5 | 28, tens: 100}) {
		t.Errorf("%+v", s)
	}
}

func TestAliases(t *testing.T) {
	names := []string{
		"BOOTX64.EFI", "LOADER~1.CON", "config", "kiln-A.efi", "loader.config", "loader.configuration", "loader.conf", "日本.txt", ".config", "a b", "ab.", "a.b.c",
	}
	want := []string{
		"BOOTX64.EFI", "LOADER~1.CON", "CONFIG", "KILN-A.EFI", "LOADER~2.CON", "LOADER~3.CON", "LOADER~4.CON", "__~1.TXT", "CONFIG~1", "AB~1", "AB", "AB~1.C",
	}
	got, err := aliases(names)
	if err != nil {
		t.Fatal(err)
	}
	var short []string
	for _, s := range got {
		short = append(short, s.String())
	}
	if !slices.Equal(short, want) {
		t.Errorf("got  %q\nwant %q", short, want)
	}
	many := make([]string, 120_000)
	for i := range many {
		many[i] = fmt.Sprintf("similar name %d", i)
	}
	if got, err = aliases(many); err != nil {
		t.Fatal(err)
	}
	if last := got[len(got)-1].String(); last != "S~120000" {
		t.Errorf("the last one is %s", last)
	}
	slices.SortFunc(got, func(a, b shortName) int { return bytes.Compare(a[:], b[:]) })
	if n := len(slices.Compact(got)); n != len(many) {
		t.Errorf("%d different aliases for %d names", n, len(many))
	}
}

func BenchmarkBuild(b *testing.B) {
	tr := tree.New()
	for _, name := range []string{"EFI/BOOT/BOOTX64.EFI", "EFI/Linux/kiln-A.efi"} {
		if err := tr.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := tr.Add(name, &tree.Inode{Content: huge(100 << 20)}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		build(b, tr, options(250*mib, 512))
	}
}
