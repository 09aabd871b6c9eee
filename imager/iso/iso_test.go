package iso

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/fat"
	"github.com/kilnhq/kiln/imager/gpt"
	"github.com/kilnhq/kiln/rootfs/tree"
)

const (
	mib   = 1 << 20
	epoch = 1767225600 // 2026-01-01
)

// guid returns an arbitrary GUID.
func guid(name string) gpt.GUID { return uuid.NewSHA1(uuid.NameSpaceOID, []byte(name)) }

func options() Options {
	return Options{VolumeID: "KILN_TEST", Epoch: epoch, DiskID: guid("disk"), FilesID: guid("files"), EFIID: guid("efi")}
}

// bios returns a BIOS part that executes nothing.
func bios() *BIOS {
	return &BIOS{BootCode: bytes.Repeat([]byte{0x90}, 440), Image: bytes.Repeat([]byte("boot"), 5000/4)}
}

func add(t testing.TB, tr *tree.Tree, name string, ino *tree.Inode) {
	t.Helper()
	if err := tr.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if ino.ModTime == 0 {
		ino.ModTime = epoch
	}
	if err := tr.Set(name, ino); err != nil {
		t.Fatal(err)
	}
}

func file(content string) *tree.Inode {
	return &tree.Inode{Mode: 0o644, Content: extent.Bytes([]byte(content))}
}

// everything returns a tree with all that Rock Ridge can represent.
func everything(t testing.TB) *tree.Tree {
	tr := tree.New()
	tr.Lookup(".").ModTime = epoch
	add(t, tr, "EFI/BOOT/BOOTX64.EFI", file(strings.Repeat("loader", 1000)))
	add(t, tr, "empty", &tree.Inode{Mode: 0o400, UID: 1000, GID: 70000})
	add(t, tr, "exactly one sector", file(strings.Repeat("s", SectorSize)))
	add(t, tr, "one more", file(strings.Repeat("m", SectorSize+1)))
	add(t, tr, "a.b.c-d.tar.gz", file("x"))
	add(t, tr, ".hidden", file("hidden"))
	add(t, tr, "grüße", file("utf-8"))
	add(t, tr, strings.Repeat("n", 253), file("long"))
	add(t, tr, strings.Repeat("n", 252)+"o", file("long as well"))
	add(t, tr, "modes/set", &tree.Inode{Mode: 0o755 | fs.ModeSetuid | fs.ModeSetgid, Content: extent.Bytes([]byte("s")), ModTime: -86400})
	add(t, tr, "modes/tmp", &tree.Inode{Mode: fs.ModeDir | 0o777 | fs.ModeSticky, ModTime: 5819817599})
	add(t, tr, "modes/fifo", &tree.Inode{Mode: fs.ModeNamedPipe | 0o600})
	add(t, tr, "modes/socket", &tree.Inode{Mode: fs.ModeSocket | 0o700})
	add(t, tr, "modes/null", &tree.Inode{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666, Major: 1, Minor: 3})
	add(t, tr, "modes/disk", &tree.Inode{Mode: fs.ModeDevice | 0o660, Major: 259, Minor: 1048575})
	for i, target := range []string{
		"/", "/usr/bin/env", "..", "../../x/./y", "dir/", strings.Repeat("c", 255), strings.Repeat("d/", 500) + "e", strings.Repeat("./../", 200) + "x",
		"/" + strings.Repeat(strings.Repeat("f", 251)+"/", 3) + "g", ".",
	} {
		add(t, tr, fmt.Sprintf("links/%d", i), &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: target})
	}
	add(t, tr, "links/"+strings.Repeat("l", 253), &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: strings.Repeat("h/", 500)})
	for n := range 260 { // all ways in which a target can be cut into entries
		add(t, tr, fmt.Sprintf("links/cut%d", n), &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: strings.Repeat("x", n) + "/y/z/" + strings.Repeat("z", 255-n%10) + "/.."})
	}
	shared := file(strings.Repeat("hard", 999))
	add(t, tr, "hard/one", shared)
	add(t, tr, "hard/two", shared)
	add(t, tr, "three", shared)
	for i := range 300 { // several sectors, and the same identifier
		add(t, tr, fmt.Sprintf("many/a file with a name of more than thirty letters, number %03d.txt", i), file(fmt.Sprint(i)))
	}
	add(t, tr, "deep/"+strings.Repeat("d/", 40)+"file", file("deep"))
	return tr
}

// partition returns a FAT file system.
func partition(t testing.TB, tr *tree.Tree) *extent.Map {
	t.Helper()
	opts := fat.Options{SectorSize: 512, Label: "EFI", VolumeID: 1, Time: epoch}
	size, err := fat.MinSize(tr, opts)
	if err != nil {
		t.Fatal(err)
	}
	opts.Size = size
	m, err := fat.Build(tr, opts)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// loader returns a tree with a boot loader.
func loader(t testing.TB) *tree.Tree {
	tr := tree.New()
	add(t, tr, "EFI/BOOT/BOOTX64.EFI", file(strings.Repeat("loader", 1000)))
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

// write writes a map to a new file.
func write(t testing.TB, m *extent.Map) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "test.iso"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := extent.WriteSparse(context.Background(), f, m, nil); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// sameTree compares two trees in all but extended attributes.
func sameTree(t *testing.T, got, want *tree.Tree) {
	t.Helper()
	first := map[*tree.Inode]string{}
	firstGot := map[*tree.Inode]string{}
	for name, w := range want.All() {
		g := got.Lookup(name)
		if g == nil {
			t.Errorf("%q is missing", name)
			continue
		}
		if g.Mode != w.Mode || g.UID != w.UID || g.GID != w.GID || g.ModTime != w.ModTime ||
			g.Major != w.Major || g.Minor != w.Minor || g.Target != w.Target || g.Size() != w.Size() {
			t.Errorf("%q is\n%+v, want\n%+v", name, *g, *w)
			continue
		}
		if w.Size() < mib && !bytes.Equal(content(t, g), content(t, w)) {
			t.Errorf("%q has other contents", name)
		}
		if first[w] == "" {
			first[w], firstGot[g] = name, name
		}
		if first[w] != firstGot[g] {
			t.Errorf("%q is another link of %q, want %q", name, firstGot[g], first[w])
		}
	}
	if got.Len() != want.Len() {
		t.Errorf("%d paths, want %d", got.Len(), want.Len())
	}
}

func content(t testing.TB, ino *tree.Inode) []byte {
	t.Helper()
	b := make([]byte, ino.Size())
	if len(b) == 0 {
		return b
	}
	if n, err := ino.Content.ReadAt(b, 0); n != len(b) {
		t.Fatal(err)
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	tr := everything(t)
	// xorriso refuses targets of 1024 bytes and more, and drops slashes.
	for _, part := range []string{"h/", strings.Repeat("i", 252) + "/", "./../", "//"} {
		target := strings.Repeat(part, maxTarget/len(part))
		add(t, tr, fmt.Sprintf("links/%d of %d", maxTarget/len(part), len(part)), &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: target})
	}
	for _, tt := range []struct {
		name   string
		change func(*Options)
		boot   []BootImage
	}{
		{"data", func(*Options) {}, nil},
		{"bios", func(o *Options) { o.BIOS = bios() }, []BootImage{{0, true, 0, 20 * SectorSize, SectorSize}}},
		{"uefi", func(o *Options) { o.EFI = partition(t, loader(t)) }, []BootImage{{0xEF, true, 0, 0, 0}}},
		{"both", func(o *Options) { o.BIOS, o.EFI = bios(), partition(t, loader(t)) },
			[]BootImage{{0, true, 0, 20 * SectorSize, SectorSize}, {0xEF, true, 0, 0, 0}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opts := options()
			tt.change(&opts)
			m := build(t, tr, opts)
			got, err := Open(m)
			if err != nil {
				t.Fatal(err)
			}
			sameTree(t, got.Tree, tr)
			if got.VolumeID != opts.VolumeID || got.Created != epoch || !got.RockRidge || got.Size > m.Size() {
				t.Errorf("%+v", got)
			}
			if len(got.Boot) != len(tt.boot) {
				t.Fatalf("boot catalog %+v, want %+v", got.Boot, tt.boot)
			}
			for i, b := range got.Boot {
				if b.Platform == platformUEFI {
					if b.Offset%mib != 0 || b.Offset == 0 {
						t.Errorf("the EFI image is at %d, want a multiple of 1 MiB", b.Offset)
					}
					efi, err := fat.Open(io.NewSectionReader(m, b.Offset, opts.EFI.Size()), opts.EFI.Size())
					if err != nil {
						t.Fatal(err)
					}
					sameContents(t, efi.Tree, loader(t))
					b.Offset = 0
				}
				if b != tt.boot[i] {
					t.Errorf("boot catalog entry %+v, want %+v", b, tt.boot[i])
				}
			}
		})
	}
}

// sameContents compares contents only.
func sameContents(t *testing.T, got, want *tree.Tree) {
	t.Helper()
	for name, ino := range want.All() {
		if g := got.Lookup(name); ino.Content != nil && (g == nil || !bytes.Equal(content(t, g), content(t, ino))) {
			t.Errorf("%s is missing or different", name)
		}
	}
}

// TestDeterministic builds twice, from trees that were filled in different orders.
func TestDeterministic(t *testing.T) {
	sum := func(m *extent.Map) (s [32]byte) {
		h := sha256.New()
		if _, err := m.WriteTo(h); err != nil {
			t.Fatal(err)
		}
		return [32]byte(h.Sum(nil))
	}
	opts := options()
	opts.BIOS = bios()
	tr := everything(t)
	reversed := tree.New()
	*reversed.Lookup(".") = *tr.Lookup(".")
	var names []string
	for name, ino := range tr.All() {
		if ino.Mode.IsDir() {
			if err := reversed.MkdirAll(name, 0o755); err != nil {
				t.Fatal(err)
			}
			*reversed.Lookup(name) = *ino
		} else {
			names = append(names, name)
		}
	}
	for i := len(names) - 1; i >= 0; i-- {
		if err := reversed.Add(names[i], tr.Lookup(names[i])); err != nil {
			t.Fatal(err)
		}
	}
	a, b := sum(build(t, tr, opts)), sum(build(t, reversed, opts))
	if a != b {
		t.Errorf("%x, then %x", a, b)
	}
}

// TestShared checks that what the EFI system partition holds, or another file, is
// stored once.
func TestShared(t *testing.T) {
	big, header := extent.Bytes(bytes.Repeat([]byte("big"), mib)), extent.Bytes([]byte("header"))
	image, err := extent.Concat(SectorSize, header, big)
	if err != nil {
		t.Fatal(err)
	}
	part, err := extent.Section(big, 7*SectorSize, mib)
	if err != nil {
		t.Fatal(err)
	}
	between, err := extent.Section(big, SectorSize/2, mib) // where no file can begin
	if err != nil {
		t.Fatal(err)
	}
	esp, tr := tree.New(), tree.New()
	add(t, esp, "EFI/BOOT/BOOTX64.EFI", &tree.Inode{Mode: 0o644, Content: image})
	add(t, tr, "EFI/BOOT/BOOTX64.EFI", &tree.Inode{Mode: 0o644, Content: image})
	add(t, tr, "boot/big", &tree.Inode{Mode: 0o644, Content: big})
	add(t, tr, "a part", &tree.Inode{Mode: 0o644, Content: part})
	add(t, tr, "between", &tree.Inode{Mode: 0o644, Content: between})
	add(t, tr, "other", file("other"))
	efi, err := fat.Build(esp, fat.Options{Size: 300 * mib, SectorSize: 512}) // clusters of 4 KiB
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		efi  *extent.Map
		once int64 // bytes that must be there
	}{{"EFI", efi, efi.Allocated()}, {"files", nil, image.Size()}} {
		t.Run(tt.name, func(t *testing.T) {
			opts := options()
			if tt.efi != nil {
				opts.EFI = tt.efi
			}
			m := build(t, tr, opts)
			if n := m.Allocated() - tt.once - between.Size(); n > 200<<10 {
				t.Errorf("%d bytes besides what there is once", n)
			}
			got, err := Open(m)
			if err != nil {
				t.Fatal(err)
			}
			sameContents(t, got.Tree, tr)
		})
	}
}

func TestMultiExtent(t *testing.T) {
	const size = 9<<30 + 1
	big := extent.New(size)
	for _, off := range []int64{0, maxExtent - 2, 2*maxExtent - 2, size - 4} {
		if err := big.PutBytes(off, []byte("mark")); err != nil {
			t.Fatal(err)
		}
	}
	tr := tree.New()
	add(t, tr, "big", &tree.Inode{Mode: 0o600, Content: big})
	add(t, tr, "next", file("next"))
	opts := options()
	opts.EFI = partition(t, loader(t))
	m := build(t, tr, opts)
	got, err := Open(m)
	if err != nil {
		t.Fatal(err)
	}
	sameTree(t, got.Tree, func() *tree.Tree { tr.Lookup(".").ModTime = 0; return tr }())
	b := make([]byte, 4)
	for _, off := range []int64{0, maxExtent - 2, 2*maxExtent - 2, size - 4} {
		if _, err := got.Tree.Lookup("big").Content.ReadAt(b, off); string(b) != "mark" || (err != nil && err != io.EOF) {
			t.Errorf("%q at %d, want mark; %v", b, off, err)
		}
	}
	if n := m.Allocated(); n > 2*mib {
		t.Errorf("%d bytes are allocated, want holes to stay holes", n)
	}
}

func TestBuildErrors(t *testing.T) {
	huge := tree.New()
	add(t, huge, "huge", &tree.Inode{Content: extent.New(9 << 40)})
	irregular := tree.New()
	add(t, irregular, "dir/x", &tree.Inode{Mode: fs.ModeIrregular})
	link := tree.New()
	add(t, link, "dir/x", &tree.Inode{Mode: fs.ModeSymlink, Target: strings.Repeat("x/", 2048)})
	name := tree.New()
	add(t, name, strings.Repeat("n", 254), file("x"))
	for _, tt := range []struct {
		tree   *tree.Tree
		change func(*Options)
		is     error
		want   string
	}{
		{huge, func(*Options) {}, ErrUnsupported, "not possible in ISO 9660: a volume of 4831838366 sectors of 2048 bytes, at most 4294967295"},
		{irregular, func(*Options) {}, ErrUnsupported, "dir/x: not possible in ISO 9660: a file of type ?---------"},
		{name, func(*Options) {}, ErrUnsupported, "not possible in ISO 9660: a name of 254 bytes, Linux reads at most 253"},
		{link, func(*Options) {}, ErrUnsupported, "want 1 to 4095 bytes without NUL"},
		{tree.New(), func(o *Options) { o.VolumeID = strings.Repeat("V", 33) }, ErrOptions, "has 33 bytes, at most 32 fit"},
		{tree.New(), func(o *Options) { o.VolumeID = "ü" }, ErrOptions, `invalid option: volume ID "ü", want printable ASCII characters`},
		{tree.New(), func(o *Options) { o.EFI = extent.New(1000) }, ErrOptions, "invalid option: EFI image of 1000 bytes, want a multiple of 512"},
		{tree.New(), func(o *Options) { o.BIOS = &BIOS{Image: make([]byte, 4096)} }, ErrOptions, "invalid option: BIOS boot code of 0 bytes, want 1 to 440"},
		{tree.New(), func(o *Options) { o.BIOS = &BIOS{BootCode: []byte{1}, Image: make([]byte, 512)} }, ErrOptions,
			"invalid option: BIOS boot image of 512 bytes, want at least the 2048 that a BIOS loads"},
		{tree.New(), func(o *Options) { o.BIOS, o.DiskID = bios(), gpt.GUID{} }, gpt.ErrInvalid, "DiskID is zero"},
	} {
		opts := options()
		tt.change(&opts)
		if _, err := Build(tt.tree, opts); !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Build: %v, want %q", err, tt.want)
		}
	}
}

func TestIdentifiers(t *testing.T) {
	for _, tt := range []struct {
		name string
		file bool
		want string
	}{
		{"vmlinuz", true, "VMLINUZ.;1"},
		{"BOOTX64.EFI", true, "BOOTX64.EFI;1"},
		{"rootfs.tar.gz", true, "ROOTFS_TAR.GZ;1"},
		{".profile", true, "_PROFILE.;1"},
		{"linux-6.12.117+deb12", true, "LINUX_6_12_117_DEB12.;1"},
		{"a.not-an-extension", true, "A_NOT_AN_EXTENSION.;1"},
		{"conf.d", false, "CONF_D"},
		{strings.Repeat("x", 40) + ".efi", true, strings.Repeat("X", 27) + ".EFI;1"},
		{"grün", false, "GR__N"},
	} {
		if got := newIdentifier(tt.name, tt.file).String(); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.name, got, tt.want)
		}
	}
}
