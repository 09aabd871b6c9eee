package fat

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// file is a device in a file, without the wait for a disk.
type file struct{ *os.File }

func (file) Sync() error { return nil }

// format returns the name of an image with a file system that mkfs.fat made.
func format(t testing.TB, size int64, args ...string) string {
	t.Helper()
	name := writeImage(t, extent.New(size))
	run(t, oracle.Tool(t, "mkfs.fat"), append(append([]string{"-n", "EFI", "-i", "12ab34cd"}, args...), name)...)
	return name
}

// TestUpgrades lets two slots take turns, as on a node, on file systems that are
// as good as full. In each round the UKI of one slot is replaced by another one,
// systemd-boot counts an attempt, for which mtools stands, and the node says that
// it is good.
func TestUpgrades(t *testing.T) {
	const room = 61 * mib
	mren := oracle.Tool(t, "mren")
	all := data(5, 31*mib)
	for _, tt := range []struct {
		name   string
		rounds int
		image  func() string
	}{
		{"Build", 50, func() string { return writeImage(t, build(t, tree.New(), options(64*mib, 512))) }},
		{"mkfs.fat", 6, func() string { return format(t, 64*mib, "-F", "32", "-s", "1") }},
		{"FAT16", 6, func() string { return format(t, 64*mib, "-F", "16") }},
		{"FAT16 by 4096", 6, func() string { return format(t, 64*mib, "-F", "16", "-S", "4096", "-s", "1") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := tt.image()
			f, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			random := rand.New(rand.NewPCG(3, 0))
			sizes := map[string]int{} // of the files there are
			var free int64
			for round := range tt.rounds {
				e, err := Edit(file{f}, 64*mib)
				if err != nil {
					t.Fatal(err)
				}
				if round == 0 {
					create(t, e, "EFI/BOOT/BOOTX64.EFI", all[:100_000])
					create(t, e, "fill", make([]byte, e.Free()-room))
					free = e.Free()
				}
				old := fmt.Sprintf("EFI/Linux/kiln-%d-%c.efi", round-1, 'A'+round%2)
				good := fmt.Sprintf("EFI/Linux/kiln-%d-%c.efi", round+1, 'A'+round%2)
				base := strings.TrimSuffix(good, ".efi")
				if round > 1 {
					if err := e.Remove(old); err != nil {
						t.Fatal(err)
					}
					delete(sizes, old)
				}
				size := 29*mib + random.IntN(mib)
				if free := e.Free(); free < int64(size) {
					t.Fatalf("round %d: %d bytes are free", round, free)
				}
				create(t, e, base+".new", all[:size])
				if err := e.Rename(base+".new", base+"+3.efi"); err != nil {
					t.Fatal(err)
				}
				run(t, mren, "-i", name, "::"+base+"+3.efi", "::"+base+"+2-1.efi")
				if e, err = Edit(file{f}, 64*mib); err != nil {
					t.Fatal(err)
				}
				if err := e.Rename(base+"+2-1.efi", good); err != nil {
					t.Fatal(err)
				}
				sizes[good] = size
				sameUpgrade(t, f, all, sizes)
				if err := fsck(t, name); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				var used int64
				for _, n := range sizes {
					used += ceil(int64(n), e.cluster) * e.cluster
				}
				if lost := free - used - e.Free(); lost < 0 || lost > 4*e.cluster {
					t.Fatalf("round %d: %d bytes are in nothing but directories", round, lost)
				}
			}
			if list := run(t, oracle.Tool(t, "mdir"), "-b", "-i", name, "::EFI/Linux"); strings.Count(list, "\n") != 2 || !strings.Contains(list, fmt.Sprintf("kiln-%d-%c.efi\n", tt.rounds, 'A'+(tt.rounds-1)%2)) {
				t.Errorf("mdir lists %q", list)
			}
		})
	}
}

func sameUpgrade(t *testing.T, f *os.File, all []byte, sizes map[string]int) {
	t.Helper()
	got, err := Open(f, 64*mib)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(got.Tree.Children("EFI/Linux")); n != len(sizes) {
		t.Fatalf("%d files, want %d: %q", n, len(sizes), got.Tree.Children("EFI/Linux"))
	}
	buf := make([]byte, mib)
	for name, size := range sizes {
		ino := got.Tree.Lookup(name)
		if ino == nil || ino.Size() != int64(size) {
			t.Fatalf("%s is %+v, want %d bytes", name, ino, size)
		}
		for off := 0; off < size; off += len(buf) {
			part := buf[:min(len(buf), size-off)]
			if _, err := ino.Content.ReadAt(part, int64(off)); err != nil || !bytes.Equal(part, all[off:off+len(part)]) {
				t.Fatalf("%s: the content differs from %d on, %v", name, off, err)
			}
		}
	}
}

// TestMtoolsReads compares names and contents with what mtools sees.
func TestMtoolsReads(t *testing.T) {
	mtype, mcopy := oracle.Tool(t, "mtype"), oracle.Tool(t, "mcopy")
	for _, tt := range []struct {
		size int64
		args []string
	}{{40 * mib, []string{"-F", "32", "-s", "1"}}, {20 * mib, []string{"-F", "16"}}, {300 * mib, []string{"-F", "32", "-S", "4096", "-s", "1"}}} {
		name := format(t, tt.size, tt.args...)
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		e, err := Edit(file{f}, tt.size)
		if err != nil {
			t.Fatal(err)
		}
		want := everything(t)
		want.Remove("names/" + strings.Repeat("z", 255)) // too long for an Editor
		want.Remove("empty")
		for i := range 600 {
			want.Remove(fmt.Sprintf("many/similar name %d.data", i))
		}
		want.Lookup("read-only.txt").Mode = 0o644
		for path, ino := range want.All() {
			if !ino.Mode.IsRegular() {
				continue
			}
			var content io.Reader = bytes.NewReader(nil)
			if ino.Content != nil {
				content = io.NewSectionReader(ino.Content, 0, ino.Size())
			}
			if err := e.Create(t.Context(), path, content, ino.Size(), when.Unix()); err != nil {
				t.Fatal(err)
			}
		}
		if err := fsck(t, name); err != nil {
			t.Errorf("%q: %v", tt.args, err)
		}
		dir := t.TempDir()
		run(t, mcopy, "-s", "-n", "-m", "-i", name, "::/", dir)
		sameFiles(t, dir, want)
		if got := run(t, mtype, "-i", name, "::EFI/BOOT/BOOTX64.EFI"); got != string(data(0, 100)) {
			t.Errorf("mtype prints %q", got)
		}
	}
}

// TestFullRoot fills the root directory of a FAT16, which cannot grow.
func TestFullRoot(t *testing.T) {
	name := format(t, 20*mib, "-F", "16", "-r", "128")
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	e, err := Edit(file{f}, 20*mib)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for err == nil {
		n++
		err = e.Create(t.Context(), fmt.Sprintf("FILE%d", n), bytes.NewReader(nil), 0, 0)
	}
	if n != 128 || !errors.Is(err, ErrUnsupported) || err.Error() != "FILE128: not possible in FAT: the directory is full with 128 entries, counting several for a long name" {
		t.Errorf("file %d: %v", n, err)
	}
	if err := e.Rename("FILE1", "FILE0"); err != nil { // takes the same slot
		t.Error(err)
	}
	if err := fsck(t, name); err != nil {
		t.Error(err)
	}
}

// BenchmarkCreate writes a UKI of 100 MiB to a file; compare with dd.
func BenchmarkCreate(b *testing.B) {
	f, err := os.OpenFile(writeImage(b, build(b, tree.New(), options(200*mib, 512))), os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	content := data(1, 100*mib)
	b.SetBytes(100 * mib)
	for b.Loop() {
		e, err := Edit(file{f}, 200*mib)
		if err != nil {
			b.Fatal(err)
		}
		if err := e.Create(b.Context(), "EFI/Linux/kiln-2-B.efi", bytes.NewReader(content), 100*mib, 0); err != nil {
			b.Fatal(err)
		}
		if err := e.Remove("EFI/Linux/kiln-2-B.efi"); err != nil {
			b.Fatal(err)
		}
	}
}
