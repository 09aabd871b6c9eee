package udf

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// image returns an image that another program wrote:
//
//	genisoimage -udf -V AZURE -o genisoimage.iso DIRECTORY
//	pycdlib 1.12: new(udf='2.60'), add_fp, add_directory, write
//
// Both have ISO 9660 in it, too, which is erased here.
func image(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open("testdata/" + name + ".gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	for s := 16; string(b[s*sectorSize+1:][:5]) == "CD001"; s++ {
		clear(b[s*sectorSize:][:sectorSize])
	}
	return b
}

func contents(t testing.TB, fs *tree.Tree) map[string]string {
	t.Helper()
	got := map[string]string{}
	for name, ino := range fs.All() {
		if !ino.Mode.IsRegular() {
			got[name] = ino.Mode.String()
			continue
		}
		b := make([]byte, ino.Size())
		if _, err := io.ReadFull(io.NewSectionReader(ino.Content, 0, ino.Size()), b); err != nil {
			t.Fatal(err)
		}
		got[name] = string(b)
	}
	return got
}

func TestOpen(t *testing.T) {
	for _, c := range []struct {
		name, label string
		want        []string
		file        string
	}{
		{"genisoimage.iso", "AZURE", []string{".", "ovf-env.xml", "tools", "tools/deep", "tools/deep/file.txt", "Größe 日本.txt"}, "tools/deep/file.txt"},
		{"pycdlib.iso", "CDROM", []string{".", "ovf-env.xml", "dir1", "dir1/file.txt"}, "dir1/file.txt"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs, err := Open(extent.Bytes(image(t, c.name)))
			if err != nil {
				t.Fatal(err)
			}
			got := contents(t, fs.Tree)
			if fs.Label != c.label || len(got) != len(c.want) {
				t.Errorf("label %q, files %d, want %q and %d", fs.Label, len(got), c.label, len(c.want))
			}
			for _, name := range c.want {
				if _, ok := got[name]; !ok {
					t.Errorf("%s is missing", name)
				}
			}
			if got[c.file] != strings.Repeat("a", 5000) {
				t.Errorf("%s has %d bytes", c.file, len(got[c.file]))
			}
			if !strings.HasPrefix(got["ovf-env.xml"], "<?xml") || !strings.HasSuffix(got["ovf-env.xml"], "</ns0:Environment>\n") {
				t.Errorf("ovf-env.xml is %q", got["ovf-env.xml"])
			}
		})
	}
}

func TestDamage(t *testing.T) {
	good := image(t, "genisoimage.iso")
	if _, err := Open(extent.Bytes(make([]byte, 1<<20))); !errors.Is(err, ErrFormat) {
		t.Errorf("zeros: %v, want ErrFormat", err)
	}
	for _, n := range []int{0, 1, 256 * sectorSize, 257 * sectorSize, 258 * sectorSize, 260 * sectorSize} {
		if _, err := Open(extent.Bytes(good[:n])); err == nil {
			t.Errorf("%d bytes were accepted", n)
		}
	}
	flipped := bytes.Clone(good)
	flipped[256*sectorSize+6] ^= 1
	if _, err := Open(extent.Bytes(flipped)); !errors.Is(err, ErrFormat) ||
		err.Error() != "not a UDF file system: sector 256: found no tag with a right checksum" {
		t.Errorf("a changed byte: %v", err)
	}
	// A directory that is in itself.
	loop := bytes.Clone(good)
	i := bytes.Index(loop, append([]byte{8}, "tools"...))
	if i < 0 {
		t.Fatal("no such directory")
	}
	copy(loop[i-38+20:][:16], rootAllocation(t, loop))
	if _, err := Open(extent.Bytes(loop)); err == nil || !strings.Contains(err.Error(), "16 levels deep") {
		t.Errorf("a loop: %v", err)
	}
}

// rootAllocation returns the allocation of the root directory.
func rootAllocation(t *testing.T, b []byte) []byte {
	t.Helper()
	for at := 0; at+sectorSize <= len(b); at += sectorSize {
		if tag, err := checkTag(b[at:]); err == nil && tag == tagFileSet {
			return b[at+400:][:16]
		}
	}
	t.Fatal("no file set")
	return nil
}

func FuzzOpen(f *testing.F) {
	for _, name := range []string{"genisoimage.iso", "pycdlib.iso"} {
		b := image(f, name)
		// The anchor and what is behind it, and the volume descriptors.
		f.Add(b[256*sectorSize:min(len(b), 290*sectorSize)], b[32*sectorSize:40*sectorSize])
	}
	f.Fuzz(func(t *testing.T, anchor, descriptors []byte) {
		m := extent.New(256*sectorSize + int64(len(anchor)))
		if len(descriptors) > 0 && len(descriptors) < 200*sectorSize {
			if err := m.PutBytes(32*sectorSize, descriptors); err != nil {
				t.Skip()
			}
		}
		if len(anchor) > 0 {
			if err := m.PutBytes(256*sectorSize, anchor); err != nil {
				t.Skip()
			}
		}
		fs, err := Open(m)
		if err != nil {
			return
		}
		for _, ino := range fs.Tree.All() {
			if ino.Content != nil {
				b := make([]byte, min(ino.Size(), 1<<20))
				_, _ = ino.Content.ReadAt(b, 0)
			}
		}
	})
}
