package container

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/compress"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gcetar"
	"github.com/kilnhq/kiln/imager/ova"
	"github.com/kilnhq/kiln/imager/qcow2"
	"github.com/kilnhq/kiln/imager/vhd"
	"github.com/kilnhq/kiln/imager/vhdx"
	"github.com/kilnhq/kiln/imager/vmdk"
	"github.com/kilnhq/kiln/imager/xva"
	"github.com/kilnhq/kiln/internal/oracle"
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

// written returns what a writer of a stream writes.
func written(t testing.TB, write func(w io.Writer) error) *extent.Map {
	t.Helper()
	var b bytes.Buffer
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	m := extent.New(int64(b.Len()))
	if err := m.PutBytes(0, b.Bytes()); err != nil {
		t.Fatal(err)
	}
	return m
}

// images returns the disk in all formats.
func images(t testing.TB, disk *extent.Map) map[string]*extent.Map {
	t.Helper()
	must := func(m *extent.Map, err error) *extent.Map {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	large := extent.New(1 << 30) // Compute Engine takes whole GiB
	if err := large.Put(0, disk); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	all := map[string]*extent.Map{
		"raw":         disk,
		"qcow2":       must(qcow2.Map(disk, 0)),
		"vhd":         must(vhd.Map(disk, vhd.Options{Fixed: true})),
		"vhd-dynamic": must(vhd.Map(disk, vhd.Options{})),
		"vhdx":        must(vhdx.Map(disk, vhdx.Options{})),
		"vmdk":        written(t, func(w io.Writer) error { return vmdk.Write(ctx, w, disk, vmdk.Options{Name: "m.vmdk"}, nil) }),
		"ova": written(t, func(w io.Writer) error {
			return ova.Stream(ctx, w, disk, ova.Package{Machine: ova.Machine{Name: "m"}}, nil)
		}),
		"xva": written(t, func(w io.Writer) error {
			return xva.Write(ctx, w, disk, xva.Machine{Name: "m", CPUs: 1, Memory: 1 << 30}, nil)
		}),
		"gce":     written(t, func(w io.Writer) error { return gcetar.Write(ctx, w, large, 0, 1, nil) }),
		"gce tar": must(gcetar.Map(large, 0)),
	}
	for name, format := range map[string]compress.Format{"raw.gz": compress.Gzip, "raw.zst": compress.Zstd, "raw.xz": compress.XZ} {
		all[name] = written(t, func(w io.Writer) error { return compress.Write(ctx, w, disk, compress.Options{Format: format}, nil) })
	}
	return all
}

func TestOpen(t *testing.T) {
	disk, want := sample(t)
	for name, img := range images(t, disk) {
		d, err := Open(save(t, img))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		format, _, _ := strings.Cut(name, " ")
		size := int64(len(want))
		if format == "gce" {
			size = 1 << 30
		}
		got := make([]byte, len(want))
		if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: other content, %v", name, err)
		}
		if d.Format != format || d.Size() != size {
			t.Errorf("%s: opened as %s, %d bytes, want %s, %d", name, d.Format, d.Size(), format, size)
		}
		if d.Allocated() > 4<<20 {
			t.Errorf("%s: %d bytes are no hole", name, d.Allocated())
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Archives of other programs: no hints for how to read compressed ones in pieces,
// and other files in them.
func TestOpenArchivesOfGNUTar(t *testing.T) {
	disk, want := sample(t)
	dir := t.TempDir()
	if err := os.Rename(save(t, disk), filepath.Join(dir, "disk.raw")); err != nil {
		t.Fatal(err)
	}
	for flags, text := range map[string]string{
		"":                            "",
		"--sparse --format=oldgnu":    "",
		"--gzip":                      "unpack it first",
		"--transform=s/disk/another/": "no descriptor (*.ovf) in it",
	} {
		file := filepath.Join(t.TempDir(), "x.tar")
		args := append(strings.Fields(flags), "-C", dir, "-cf", file, "disk.raw")
		if out, err := exec.Command(oracle.Tool(t, "tar"), args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		d, err := Open(file)
		if text != "" {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v, want %q", flags, err, text)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", flags, err)
			continue
		}
		got := make([]byte, len(want))
		if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) || d.Format != "gce" {
			t.Errorf("%s: opened as %s, %v", flags, d.Format, err)
		}
		d.Close()
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
	for _, first := range []string{"ova.xml", "disk.raw", "m.ovf"} {
		h := make([]byte, 1024)
		copy(h, first)
		copy(h[257:], "ustar")
		f.Add(h)
	}
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
