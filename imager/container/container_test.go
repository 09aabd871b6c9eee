package container

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/qcow2"
	"github.com/kilnhq/kiln/imager/vhd"
)

// sample is a disk with a hole, and its content.
func sample(t testing.TB) (*extent.Map, []byte) {
	t.Helper()
	m := extent.New(8 << 20)
	if err := m.PutBytes(0, []byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := m.PutBytes(6<<20, bytes.Repeat([]byte("far"), 1<<16)); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := m.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return m, b.Bytes()
}

func save(t testing.TB, m *extent.Map) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image")
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

func TestOpen(t *testing.T) {
	disk, want := sample(t)
	q, err := qcow2.Map(disk, 0)
	if err != nil {
		t.Fatal(err)
	}
	fixed, err := vhd.Map(disk, vhd.Options{Fixed: true})
	if err != nil {
		t.Fatal(err)
	}
	for format, file := range map[string]string{"raw": save(t, disk), "qcow2": save(t, q), "vhd": save(t, fixed)} {
		d, err := Open(file)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if _, err := d.WriteTo(&got); err != nil {
			t.Fatal(err)
		}
		if d.Format != format || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s: opened as %s, %d bytes", format, d.Format, got.Len())
		}
		if d.Allocated() > 2<<20 {
			t.Errorf("%s: %d bytes are no hole", format, d.Allocated())
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	if _, err := Open("none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if _, err := Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "want a file or a block device") {
		t.Errorf("directory: %v", err)
	}
	name := filepath.Join(t.TempDir(), "x.qcow2")
	if err := os.WriteFile(name, []byte("QFI\xfb\x00\x00\x00\x09rest"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(name); err == nil || !strings.Contains(err.Error(), "x.qcow2: ") {
		t.Errorf("damaged: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	disk, _ := sample(f)
	q, err := qcow2.Map(disk, 0)
	if err != nil {
		f.Fatal(err)
	}
	head := make([]byte, 4096)
	if _, err := q.ReadAt(head, 0); err != nil {
		f.Fatal(err)
	}
	f.Add(head)
	f.Add([]byte("text"))
	f.Fuzz(func(t *testing.T, data []byte) {
		name := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if d, err := Open(name); err == nil {
			_, _ = d.ReadAt(make([]byte, 4096), 0)
			d.Close()
		}
	})
}
