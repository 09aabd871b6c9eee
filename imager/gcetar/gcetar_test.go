package gcetar

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnhq/kiln/imager/compress"
	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
)

const (
	mib   = 1 << 20
	gib   = 1 << 30
	mtime = 1_700_000_000
)

type part struct {
	at int64
	n  int
}

func disk(t testing.TB, size int64, parts ...part) *extent.Map {
	t.Helper()
	m := extent.New(size)
	for i, p := range parts {
		if err := m.PutBytes(p.at, disktest.Noise(p.n, uint64(i))); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// scattered is a disk with n pieces.
func scattered(t testing.TB, n int) *extent.Map {
	var parts []part
	for i := range n {
		parts = append(parts, part{int64(i) * 20_480, 700 + i})
	}
	return disk(t, int64(n)*20_480, parts...)
}

func disks(t testing.TB) map[string]*extent.Map {
	return map[string]*extent.Map{
		"a hole":           disk(t, 3*mib),
		"a sector":         disk(t, 512, part{0, 512}),
		"full":             disk(t, 2*mib+512, part{0, 2*mib + 512}),
		"unaligned":        disk(t, 4*mib, part{1, 5}, part{9000, 4}, part{12287, 2}, part{3*mib - 1, mib + 1}),
		"four pieces":      scattered(t, 3), // and the end
		"five pieces":      scattered(t, 4),
		"25 pieces":        scattered(t, 24),
		"26 pieces":        scattered(t, 25),
		"500 pieces":       scattered(t, 499),
		"12 GiB":           disk(t, 12*gib, part{0, 5000}, part{9 * gib, 70_000}, part{12*gib - 512, 512}),
		"ends in a sector": disk(t, mib+512, part{mib, 512}),
	}
}

func archive(t testing.TB, m *extent.Map) []byte {
	t.Helper()
	a, err := Map(m, mtime)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := a.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestGNUTarUnpacks(t *testing.T) {
	for name, m := range disks(t) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var gz bytes.Buffer
			if err := Write(context.Background(), &gz, m, mtime, 0, nil); err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				flag    string
				archive []byte
			}{{"-xSf", archive(t, m)}, {"-xzSf", gz.Bytes()}} {
				cmd := exec.Command(oracle.Tool(t, "tar"), c.flag, "-", "-C", dir, "--no-same-owner")
				cmd.Stdin = bytes.NewReader(c.archive)
				if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
					t.Fatalf("%v: %v: %s", cmd.Args, err, out)
				}
				got, err := extent.File(filepath.Join(dir, Name))
				if err != nil {
					t.Fatal(err)
				}
				disktest.Same(t, got, m)
				fi, err := os.Stat(got.Path())
				if err != nil {
					t.Fatal(err)
				}
				if used, most := fi.Sys().(*syscall.Stat_t).Blocks*512, m.Allocated()+int64(len(m.Extents())+1)*2*granule; used > most {
					t.Errorf("the file takes %d bytes, want at most %d", used, most)
				}
				if fi.Mode() != 0o644 || fi.ModTime().Unix() != mtime {
					t.Errorf("mode %v and time %v", fi.Mode(), fi.ModTime())
				}
			}
		})
	}
}

func TestGNUTarLists(t *testing.T) {
	cmd := exec.Command(oracle.Tool(t, "tar"), "-tvf", "-")
	cmd.Env = []string{"LC_ALL=C", "TZ=UTC"}
	cmd.Stdin = bytes.NewReader(archive(t, disks(t)["12 GiB"]))
	out, err := cmd.Output()
	if want := fmt.Sprintf("-rw-r--r-- root/root %d 2023-11-14 22:13 disk.raw\n", int64(12*gib)); err != nil || string(out) != want {
		t.Errorf("%v: %q, want %q", err, out, want)
	}
}

// The reader of Go's library is a third one.
func TestArchiveTarReads(t *testing.T) {
	for name, m := range disks(t) {
		t.Run(name, func(t *testing.T) {
			r := tar.NewReader(bytes.NewReader(archive(t, m)))
			h, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if h.Name != Name || h.Size != m.Size() || h.Typeflag != tar.TypeGNUSparse {
				t.Errorf("%s, %d bytes, type %c", h.Name, h.Size, h.Typeflag)
			}
			if m.Size() < gib {
				b, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				disktest.Same(t, extent.Bytes(b), m)
			}
			if _, err := r.Next(); err != io.EOF {
				t.Errorf("after the file: %v", err)
			}
		})
	}
}

func TestOpen(t *testing.T) {
	for name, m := range disks(t) {
		t.Run(name, func(t *testing.T) {
			var gz bytes.Buffer
			if err := Write(context.Background(), &gz, m, mtime, 1, nil); err != nil {
				t.Fatal(err)
			}
			for _, a := range [][]byte{archive(t, m), gz.Bytes()} {
				got, err := Open(extent.Bytes(a))
				if err != nil {
					t.Fatal(err)
				}
				disktest.Same(t, got, m)
				if most := m.Allocated() + int64(len(m.Extents()))*2*granule; got.Allocated() > most {
					t.Errorf("%d bytes are allocated, want at most %d", got.Allocated(), most)
				}
			}
		})
	}
}

// What the tar program writes, in all its formats.
func TestOpenForeign(t *testing.T) {
	dir := t.TempDir()
	m := scattered(t, 60)
	f, err := os.Create(filepath.Join(dir, Name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := extent.WriteSparse(context.Background(), f, m, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "README"), []byte("an image\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args    string
		refused string
	}{
		{args: "--format=oldgnu -S"},
		{args: "--format=oldgnu"},
		{args: "--format=gnu -S"},
		{args: "--format=ustar"},
		{args: "--format=posix"},
		{args: "--format=oldgnu -S ./README"},
		{args: "--format=posix -S", refused: "not a tar archive with a disk.raw: a sparse file in the POSIX format; make the archive with --format=oldgnu"},
	} {
		args := append(strings.Fields(c.args), "-cf", "-", "./"+Name)
		cmd := exec.Command(oracle.Tool(t, "tar"), args...)
		cmd.Dir = dir
		a, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", c.args, err)
		}
		got, err := Open(extent.Bytes(a))
		if c.refused != "" {
			if !errors.Is(err, ErrCorrupt) || err.Error() != c.refused {
				t.Errorf("%s: %v, want %s", c.args, err, c.refused)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.args, err)
			continue
		}
		disktest.Same(t, got, m)
		if strings.Contains(c.args, "-S") && got.Allocated() == got.Size() {
			t.Errorf("%s: no holes", c.args)
		}
		var gz bytes.Buffer
		z := gzip.NewWriter(&gz)
		_, err = z.Write(a)
		if err := errors.Join(err, z.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(extent.Bytes(gz.Bytes())); !errors.Is(err, compress.ErrSequential) {
			t.Errorf("%s, compressed: %v, want %v", c.args, err, compress.ErrSequential)
		}
	}
}

// Byte for byte what GNU tar writes, but for the owner.
func TestHeader(t *testing.T) {
	a := archive(t, disk(t, 12*gib, part{4096, 10}, part{9 * gib, 5000}))
	for _, c := range []struct {
		at   int
		want string
	}{
		{0, "disk.raw\x00"},
		{100, "0000644\x000000000\x000000000\x00"},
		{124, "00000030000\x00"}, // 3 * 4096
		{136, "14524770400\x00"},
		{156, "S\x00"},
		{257, "ustar  \x00root\x00"},
		{386, "00000010000\x0000000010000\x00"},
		{410, "\x80\x00\x00\x00\x00\x00\x00\x02\x40\x00\x00\x0000000020000\x00"},
		{434, "\x80\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x0000000000000\x00"},
		{458, "\x00\x00\x00\x00"},
		{482, "\x00"},
		{483, "\x80\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00"},
	} {
		if got := string(a[c.at : c.at+len(c.want)]); got != c.want {
			t.Errorf("at %d: %q, want %q", c.at, got, c.want)
		}
	}
	if want := 512 + 3*4096 + 1024; len(a) != want {
		t.Errorf("%d bytes, want %d", len(a), want)
	}
}

func TestInvalid(t *testing.T) {
	for _, c := range []struct {
		size, mtime int64
		want        string
	}{
		{513, 0, "cannot put the disk into a tar archive: its size is 513 bytes, want a multiple of 512"},
		{0, 0, "cannot put the disk into a tar archive: its size is 0 bytes, want a multiple of 512"},
		{512, -1, "cannot put the disk into a tar archive: its time is -1, want 0 to 8589934591 seconds since 1970"},
	} {
		if err := Write(context.Background(), io.Discard, extent.New(c.size), c.mtime, 0, nil); !errors.Is(err, ErrInvalid) || err.Error() != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}

func TestDamage(t *testing.T) {
	good := archive(t, scattered(t, 30))
	change := func(at int, s string) []byte {
		b := bytes.Clone(good)
		copy(b[at:], s)
		copy(b[checksumField:], fmt.Sprintf("%06o\x00 ", checksum(b)))
		return b
	}
	for _, c := range []struct {
		name string
		b    []byte
		want string
	}{
		{"empty", nil, "ends at 0"},
		{"not tar", []byte(strings.Repeat("kiln", 200)), "no header with a right checksum at 0"},
		{"no file", make([]byte, 1024), "there is no such file in it"},
		{"other file", change(0, "disk.vhd"), "there is no such file in it"},
		{"cut", good[:2000], "disk.raw has 122880 bytes, 1488 are left"},
		{"backwards", change(410, "00000000000"), "map of disk.raw: 4096 bytes at 0, after 4096 and in 614400"},
		{"too long", change(410+12, "77777777777"), "map of disk.raw: 8589934591 bytes at 20480, after 4096 and in 614400"},
		{"smaller", change(422, "00000000001"), "map of disk.raw: pieces of 119296 bytes, the archive has 122880"},
		{"not a number", change(386, "disk"), `map of disk.raw: not a number: "disk0000000\x00"`},
	} {
		_, err := Open(extent.Bytes(c.b))
		if want := ErrCorrupt.Error() + ": " + c.want; !errors.Is(err, ErrCorrupt) || err.Error() != want {
			t.Errorf("%s: %v, want %s", c.name, err, want)
		}
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(archive(f, scattered(f, 3)))
	f.Add(archive(f, scattered(f, 30))[:3000])
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Open(extent.Bytes(b))
		if err != nil {
			return
		}
		for _, x := range m.Extents() {
			if x.Offset < 0 || x.End() > m.Size() {
				t.Errorf("extent [%d, %d) in %d", x.Offset, x.End(), m.Size())
			}
		}
	})
}
