package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
)

// TestOpensWhatQEMUWrites reads what qemu-img writes with each of its options.
func TestOpensWhatQEMUWrites(t *testing.T) {
	d := disktest.Mixed(t, 4<<20+512, 41)
	dir := t.TempDir()
	raw := filepath.Join(dir, "disk.raw")
	disktest.Write(t, raw, d)
	for _, options := range []string{
		"compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=4k", "cluster_size=2M",
		"preallocation=metadata", "preallocation=falloc", "preallocation=full",
		"lazy_refcounts=on", "refcount_bits=1", "refcount_bits=64",
		"compression_type=zstd",
	} {
		t.Run(options, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "disk.qcow2")
			disktest.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", options, raw, image)
			disktest.Same(t, disktest.Open(t, image, Open), d)
		})
	}
	for _, options := range []string{
		"compat=0.10", "compression_type=zlib", "compression_type=zstd",
		"cluster_size=512", "compression_type=zstd,cluster_size=512", "cluster_size=2M", "compression_type=zstd,cluster_size=2M",
	} {
		t.Run("compressed,"+options, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "disk.qcow2")
			disktest.Run(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, image)
			disktest.Same(t, disktest.Open(t, image, Open), d)
		})
	}
}

// TestChangedImages reads images after QEMU has written to them: zero clusters,
// discarded and rewritten ones, snapshots, and ours after it wrote to those.
func TestChangedImages(t *testing.T) {
	d := disktest.Mixed(t, 3<<20, 42)
	for kind, write := range kinds {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			image, raw := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "after.raw")
			write(t, image, d, 0)
			disktest.Run(t, "qemu-img", "snapshot", "-c", "before", image)
			disktest.Run(t, "qemu-io", "-f", "qcow2", "-d", "unmap", "-c", "write -P 7 70000 200000", "-c", "write -z 512k 512k",
				"-c", "write -z -u 1M 256k", "-c", "discard 2M 512k", "-c", "write -P 9 2100k 5k", image)
			disktest.Run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw)
			after, err := extent.File(raw)
			if err != nil {
				t.Fatal(err)
			}
			want := extent.New(after.Size())
			if err := want.Put(0, after); err != nil {
				t.Fatal(err)
			}
			got := disktest.Open(t, image, Open)
			disktest.Same(t, got, want)
			hole, err := extent.Section(got, 512<<10, 768<<10)
			if err != nil {
				t.Fatal(err)
			}
			if n := hole.(*extent.Map).Allocated(); n != 0 {
				t.Errorf("%d bytes of the zero clusters are not a hole", n)
			}
			disktest.Judge(t, "qcow2", raw, image)
		})
	}
}

// TestDirectExtents is about data that lies in a row in the file: it must come
// out as an extent of the file, which is copied without being looked at.
func TestDirectExtents(t *testing.T) {
	for _, clusterSize := range []int64{4096, 0, 2 << 20} {
		d := disktest.Disk(t, 32<<20, disktest.At(0, disktest.Noise(1, 1)), disktest.At(4<<20, disktest.Noise(8<<20, 2)), disktest.At(31<<20, disktest.Noise(100, 3)))
		image := filepath.Join(t.TempDir(), "disk.qcow2")
		writeMap(t, image, d, clusterSize)
		m := disktest.Open(t, image, Open)
		disktest.Same(t, m, d)
		var n int64
		for _, e := range m.Extents() {
			if _, ok := e.Source.(*extent.FileSource); ok {
				n += e.Length
			}
		}
		if n < 8<<20 {
			t.Errorf("cluster size %d: %d bytes in extents of the file, want 8 MiB", clusterSize, n)
		}
	}
}

// TestOpenRefuses is about what QEMU makes and Open does not read.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base.qcow2")
	disktest.Run(t, "qemu-img", "create", "-f", "qcow2", base, "1M")
	for _, tt := range []struct {
		want string
		args []string
	}{
		{fmt.Sprintf("it only has what differs from a backing file (%q); merge them with qemu-img convert", base),
			[]string{"-b", base, "-F", "qcow2"}},
		{"it is encrypted (LUKS)", []string{"--object", "secret,id=s,data=secret", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"}},
		{"it is encrypted (AES)", []string{"--object", "secret,id=s,data=secret", "-o", "encrypt.format=aes,encrypt.key-secret=s"}},
		{"its data is in an external data file", []string{"-o", "data_file=" + filepath.Join(dir, "data")}},
		{"it has subclusters (extended L2 entries); convert it with qemu-img convert -O qcow2 -o extended_l2=off", []string{"-o", "extended_l2=on"}},
	} {
		image := filepath.Join(t.TempDir(), "disk.qcow2")
		disktest.Run(t, "qemu-img", append(append([]string{"create", "-f", "qcow2"}, tt.args...), image, "1M")...)
		b, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(extent.Bytes(b)); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v, want %q", tt.args, err, tt.want)
		}
	}
}

// sample is a small compressed image: header, then a cluster with compressed
// data, then tables.
func sample(t testing.TB, c Compression) []byte {
	m := &memory{}
	d := disktest.Disk(t, 64<<10, disktest.At(0, disktest.Text(3000, 1)), disktest.At(8192, disktest.Noise(4096, 2)), disktest.At(20000, disktest.Text(30000, 3)))
	if err := Write(t.Context(), m, d, Options{4096, c}, nil); err != nil {
		t.Fatal(err)
	}
	return m.b
}

func TestOpenDamaged(t *testing.T) {
	be := binary.BigEndian
	l1 := func(b []byte) uint64 { return be.Uint64(b[40:]) }
	l2 := func(b []byte) uint64 { return be.Uint64(b[l1(b):]) & offsetMask }
	for _, tt := range []struct {
		name   string
		damage func(b []byte) []byte
		err    error
		want   string
	}{
		{"empty", func(b []byte) []byte { return nil }, ErrCorrupt, "does not begin with a qcow2 header"},
		{"magic", func(b []byte) []byte { b[0]++; return b }, ErrCorrupt, "does not begin with a qcow2 header"},
		{"version", func(b []byte) []byte { b[7] = 1; return b }, ErrUnsupported, "version 1, want 2 or 3"},
		{"dirty", func(b []byte) []byte { b[79] |= 1; return b }, ErrUnsupported, "it is marked dirty, as it was not closed; repair it with qemu-img check -r all"},
		{"corrupt", func(b []byte) []byte { b[79] |= 2; return b }, ErrUnsupported, "it is marked corrupt"},
		{"feature", func(b []byte) []byte { b[78] = 2; return b }, ErrUnsupported, "unknown incompatible feature, bit 9"},
		{"compression", func(b []byte) []byte { b[79] |= 8; b[104] = 9; b[103] = 112; return b }, ErrUnsupported, "compression type 9, want zlib or zstd"},
		{"no compression", func(b []byte) []byte { b[79] |= 8; return b }, ErrCorrupt, "the compression type is announced and missing"},
		{"header length", func(b []byte) []byte { b[103] = 100; return b }, ErrCorrupt, "header of 100 bytes, want 104 or more and a multiple of 8"},
		{"method", func(b []byte) []byte { b[35] = 3; return b }, ErrUnsupported, "it is encrypted (method 3)"},
		{"cluster bits", func(b []byte) []byte { b[23] = 22; return b }, ErrCorrupt, "clusters of 2^22 bytes, want 2^9 to 2^21"},
		{"size", func(b []byte) []byte { b[24] = 0xff; return b }, ErrCorrupt, "disk of "},
		{"large", func(b []byte) []byte { b[27] = 1; return b }, ErrCorrupt, "L1 table of 1 entries, a disk of 4295032832 bytes needs 2049"},
		{"L1 table", func(b []byte) []byte { b[41] = 1; return b }, ErrCorrupt, "L1 table of 1 entries at 281474976"},
		{"L1 entry", func(b []byte) []byte { b[l1(b)+7] = 1; return b }, ErrCorrupt, "L1 entry 0 is 0x"},
		{"cut", func(b []byte) []byte { return b[:4096] }, ErrCorrupt, "in a file of 4096 bytes"},
		{"L2 table", func(b []byte) []byte { b[l1(b)+2] = 1; return b }, ErrCorrupt, "unexpected EOF"},
		{"reserved", func(b []byte) []byte { b[l2(b)+2*8+7] |= 4; return b }, ErrCorrupt, "cluster 2 of the disk: entry 0x"},
		{"data", func(b []byte) []byte { b[l2(b)+2*8+2] = 1; return b }, ErrCorrupt, "cluster 2 of the disk is at "},
		{"packed", func(b []byte) []byte { b[l2(b)+2] = 1; return b }, ErrCorrupt, "cluster 0 of the disk: compressed data at "},
		{"zero in version 2", func(b []byte) []byte { b[7] = 2; b[l2(b)+2*8+7] |= 1; return b }, ErrCorrupt, "cluster 2 of the disk: entry 0x"},
	} {
		_, err := Open(extent.Bytes(tt.damage(sample(t, Zlib))))
		if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}

	// A table that is used twice, as many times as one likes.
	b := sample(t, Zlib)
	be.PutUint64(b[24:], 4<<20)
	be.PutUint32(b[36:], 2)
	copy(b[l1(b)+8:], b[l1(b):l1(b)+8])
	if _, err := Open(extent.Bytes(b)); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "is used twice") {
		t.Errorf("table used twice: %v", err)
	}

	// Damage inside compressed data shows when it is read.
	for _, c := range []Compression{Zlib, Zstd} {
		b := sample(t, c)
		at := be.Uint64(b[l2(b):]) & (1<<(62-4) - 1)
		for i := range 40 {
			b[at+uint64(i)] ^= 0xa5
		}
		m, err := Open(extent.Bytes(b))
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("%v data at %d: ", c, at)
		if _, err := m.ReadAt(make([]byte, 5000), 0); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), want) {
			t.Errorf("damaged %v: %v, want %q", c, err, want)
		}
	}
}

func FuzzOpen(f *testing.F) {
	for _, c := range []Compression{Zlib, Zstd} {
		m := &memory{}
		if err := Write(f.Context(), m, disktest.Disk(f, 2048, disktest.At(0, disktest.Text(1000, 1)), disktest.At(1300, disktest.Noise(600, 2))), Options{512, c}, nil); err != nil {
			f.Fatal(err)
		}
		f.Add(m.b)
	}
	m, err := Map(disktest.Disk(f, 64<<10, disktest.At(0, []byte("a")), disktest.At(50_000, []byte("b"))), 512)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(disktest.Read(f, m, 0, int(m.Size())))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Open(extent.Bytes(b))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("error of another kind: %v", err)
			}
			return
		}
		p := make([]byte, 10_000)
		for _, e := range m.Extents()[:min(len(m.Extents()), 20)] {
			_, _ = m.ReadAt(p[:min(int64(len(p)), e.Length)], e.Offset)
			_, _ = m.ReadAt(p[:min(int64(len(p)), e.Length)], e.End()-min(int64(len(p)), e.Length))
		}
	})
}
