package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
)

// What the specification says, number by number: QEMU would repair or overlook
// some of it.

func TestGoldenHeader(t *testing.T) {
	const v3 = "514649fb" + "00000003" + // magic, version
		"0000000000000000" + "00000000" + // backing file
		"00000010" + "0000000060000000" + // cluster bits, size
		"00000000" + "00000003" + // encryption, L1 entries
		"0000000000030000" + // L1 table
		"0000000000010000" + "00000001" + // refcount table, clusters of it
		"00000000" + "0000000000000000" // snapshots
	for _, tt := range []struct {
		c    Compression
		want string
	}{
		{Zlib, v3 + "0000000000000000" + "0000000000000000" + "0000000000000000" + // features
			"00000004" + "00000068" + // refcount order, header length
			"00000000" + "00000000"}, // end of extensions
		{Zstd, v3 + "0000000000000008" + "0000000000000000" + "0000000000000000" +
			"00000004" + "00000070" +
			"01" + "00000000000000" + // compression type
			"6803f857" + "00000030" + "0003" + hex.EncodeToString([]byte("compression type")) + strings.Repeat("00", 30) +
			"00000000" + "00000000"},
	} {
		g, err := newGeometry(0x60000000, 0)
		if err != nil {
			t.Fatal(err)
		}
		got := hex.EncodeToString(g.header(tables{l1: 0x30000, refcountTable: 0x10000, refcountClusters: 1}, tt.c))
		if got != tt.want {
			t.Errorf("%v:\n got %s\nwant %s", tt.c, got, tt.want)
		}
	}
}

// TestGoldenTables reads the tables of a small image as the specification says.
func TestGoldenTables(t *testing.T) {
	// 512-byte clusters: 64 entries in an L2 table, 256 in a refcount block.
	// Clusters 1, 2 and 130 of the disk: L2 tables 0 and 2.
	d := disktest.Disk(t, 200*512, disktest.At(1000, disktest.Noise(40, 1)), disktest.At(130*512+5, disktest.Noise(1, 2)))
	m, err := Map(d, 512)
	if err != nil {
		t.Fatal(err)
	}
	const (
		refcountTable = 1 * 512
		refcountBlock = 2 * 512
		l1            = 3 * 512
		l2            = 4 * 512 // two
		data          = 6 * 512 // three
		copied        = 1 << 63
	)
	if m.Size() != 9*512 {
		t.Errorf("image of %d bytes, want 9 clusters", m.Size())
	}
	want := make([]byte, 8*512)
	put := func(at int, v uint64) { binary.BigEndian.PutUint64(want[at-512:], v) }
	put(refcountTable, refcountBlock)
	for i := range 9 {
		binary.BigEndian.PutUint16(want[refcountBlock-512+2*i:], 1)
	}
	put(l1, copied|l2)
	put(l1+2*8, copied|(l2+512))
	put(l2+1*8, copied|data)
	put(l2+2*8, copied|(data+512))
	put(l2+512+2*8, copied|(data+1024))
	copy(want[data-512:], disktest.Read(t, d, 512, 1024))
	copy(want[data-512+1024:], disktest.Read(t, d, 130*512, 512))
	if got := disktest.Read(t, m, 512, len(want)); !bytes.Equal(got, want) {
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("byte %#x is %#x, want %#x", 512+i, got[i], want[i])
			}
		}
	}
	// In pieces that cut through entries, too.
	for off := int64(512); off < m.Size(); off += 7 {
		n := min(7, m.Size()-off)
		if got := disktest.Read(t, m, off, int(n)); !bytes.Equal(got, want[off-512:off-512+n]) {
			t.Fatalf("7 bytes at %d: %x, want %x", off, got, want[off-512:off-512+n])
		}
	}
}

// refcounts walks an image as the specification says, and compares how often
// each cluster is referred to with its refcount.
func checkRefcounts(t *testing.T, image []byte) {
	t.Helper()
	be := binary.BigEndian
	u64 := func(at uint64) uint64 { return be.Uint64(image[at:]) }
	clusterBits := be.Uint32(image[20:])
	cs := uint64(1) << clusterBits
	if uint64(len(image))%cs != 0 {
		t.Errorf("image of %d bytes is not whole clusters", len(image))
	}
	counted := make([]uint16, uint64(len(image))/cs)
	use := func(at, n uint64) {
		for c := at / cs; c <= (at+n-1)/cs; c++ {
			counted[c]++
		}
	}
	use(0, 1)
	table, tableClusters := u64(48), uint64(be.Uint32(image[56:]))
	use(table, tableClusters*cs)
	refcounts := make([]uint16, len(counted))
	for i := range tableClusters * cs / 8 {
		block := u64(table + i*8)
		if block == 0 {
			continue
		}
		use(block, cs)
		for j := range cs / 2 {
			v := be.Uint16(image[block+j*2:])
			if n := i*cs/2 + j; n < uint64(len(refcounts)) {
				refcounts[n] = v
			} else if v != 0 {
				t.Errorf("cluster %d behind the end has refcount %d", n, v)
			}
		}
	}
	l1, l1Entries := u64(40), uint64(be.Uint32(image[36:]))
	use(l1, l1Entries*8)
	var packed, plain int
	for i := range l1Entries {
		l2 := u64(l1+i*8) &^ (1 << 63)
		if l2 == 0 {
			continue
		}
		use(l2, cs)
		for j := range cs / 8 {
			switch e := u64(l2 + j*8); {
			case e == 0:
			case e>>62 == 1:
				x := 62 - (clusterBits - 8)
				at, more := e&(1<<x-1), e&(1<<62-1)>>x
				use(at/512*512, (more+1)*512)
				packed++
			case e>>63 == 1:
				use(e&^(1<<63), cs)
				plain++
			default:
				t.Errorf("L2 entry %#x", e)
			}
		}
	}
	for i := range counted {
		if counted[i] != refcounts[i] {
			t.Errorf("cluster %d: refcount %d, referred to %d times", i, refcounts[i], counted[i])
		}
		if counted[i] == 0 {
			t.Errorf("cluster %d is not used", i)
		}
	}
	if packed == 0 || plain == 0 {
		t.Errorf("%d compressed clusters and %d others: the test needs both", packed, plain)
	}
}

// memory is a Target.
type memory struct{ b []byte }

func (m *memory) Truncate(n int64) error {
	if n > int64(cap(m.b)) {
		m.b = append(make([]byte, 0, 2*n), m.b...)
	}
	old := len(m.b)
	m.b = m.b[:n]
	if int64(old) < n {
		clear(m.b[old:])
	}
	return nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if end := off + int64(len(p)); end > int64(len(m.b)) {
		if err := m.Truncate(end); err != nil {
			return 0, err
		}
	}
	return copy(m.b[off:], p), nil
}

func TestGoldenRefcounts(t *testing.T) {
	d := disktest.Mixed(t, 6<<20+512, 21)
	for _, c := range []Compression{Zlib, Zstd} {
		for _, clusterSize := range []int64{512, 4096, 65536} {
			m := &memory{b: []byte("what was there before")}
			if err := Write(t.Context(), m, d, Options{clusterSize, c}, nil); err != nil {
				t.Fatal(err)
			}
			checkRefcounts(t, m.b)
		}
	}
}

func TestSameBytesOnAnyNumberOfProcessors(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	d := disktest.Mixed(t, 24<<20, 22)
	for _, c := range []Compression{Zlib, Zstd} {
		var first []byte
		for _, n := range []int{1, 2, 7} {
			runtime.GOMAXPROCS(n)
			m := &memory{}
			if err := Write(t.Context(), m, d, Options{Compression: c}, nil); err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = m.b
			} else if !bytes.Equal(first, m.b) {
				t.Errorf("%v: with %d processors the image is another one", c, n)
			}
		}
	}
}

// TestPackedTight is about the space between clusters that are stored as they
// are: compressed ones fill it.
func TestPackedTight(t *testing.T) {
	const size = 64 << 20
	var pieces []disktest.Piece
	for off := int64(0); off < size; off += 128 << 10 {
		pieces = append(pieces, disktest.At(off, disktest.Noise(64<<10, uint64(off))), disktest.At(off+64<<10, disktest.Text(64<<10, uint64(off))))
	}
	d := disktest.Disk(t, size, pieces...)
	m := &memory{}
	if err := Write(t.Context(), m, d, Options{}, nil); err != nil {
		t.Fatal(err)
	}
	packed := 0
	z, err := newCompressor(Zlib, DefaultClusterSize)
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < d.Size(); off += 128 << 10 {
		b, err := z.compress(nil, disktest.Read(t, d, off+64<<10, 64<<10))
		if err != nil {
			t.Fatal(err)
		}
		packed += len(b)
	}
	least := int(d.Size()/2) + packed
	if most := least + least/50; len(m.b) > most {
		t.Errorf("image of %d bytes for %d of data, want at most %d", len(m.b), least, most)
	}
}

// TestRefcountLimit packs more compressed clusters into one than 16 bits count.
func TestRefcountLimit(t *testing.T) {
	p := placer{geometry: geometry{clusterBits: maxClusterBits}}
	p.allocate(1)
	refs := make(map[int64]int)
	for range 200_000 {
		at := p.pack(20)
		refs[at>>p.clusterBits]++
		if last := (at + 19) >> p.clusterBits; last != at>>p.clusterBits {
			refs[last]++
		}
	}
	for c, n := range refs {
		if n > maxRefcount || int(p.counts[c]) != n {
			t.Errorf("cluster %d: %d references, counted %d", c, n, p.counts[c])
		}
	}
	if len(refs) != 4 { // by size alone it would be 2
		t.Errorf("%d clusters, want 4", len(refs))
	}
}

// TestHuge writes no more than a few clusters of a disk of 3 TiB, and lays out
// one of 64 TiB of data without taking the memory for its tables.
func TestHuge(t *testing.T) {
	d := disktest.Disk(t, 3<<40, disktest.At(0, disktest.Text(512, 1)), disktest.At(2<<40+12345, disktest.Text(100_000, 2)), disktest.At(3<<40-512, disktest.Noise(512, 3)))
	dir := t.TempDir()
	raw := filepath.Join(dir, "disk.raw")
	disktest.Write(t, raw, d)
	for kind, write := range kinds {
		image := filepath.Join(dir, kind)
		write(t, image, d, 0)
		disktest.Judge(t, "qcow2", raw, image)
		disktest.Same(t, disktest.Open(t, image, Open), d)
		if fi, err := os.Stat(image); err != nil || fi.Size() > 16*DefaultClusterSize {
			t.Errorf("%s: %d bytes, %v", kind, fi.Size(), err)
		}
	}

	full := extent.New(64 << 40)
	if err := full.Put(0, disktest.Broken(full.Size())); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	m, err := Map(full, 0)
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
		t.Errorf("Map of 64 TiB allocates %d bytes", n)
	}
	// The last cluster of the disk is the last of the file: L2 says so.
	g, _ := newGeometry(full.Size(), 0)
	be := binary.BigEndian
	l1 := int64(be.Uint64(disktest.Read(t, m, 40, 8)))
	l2 := int64(be.Uint64(disktest.Read(t, m, l1+(g.l1Entries()-1)*8, 8)) & offsetMask)
	last := int64(be.Uint64(disktest.Read(t, m, l2+(g.perL2()-1)*8, 8)) & offsetMask)
	if last != m.Size()-DefaultClusterSize {
		t.Errorf("last cluster at %d of %d", last, m.Size())
	}
	// And its refcount is one.
	n := last >> g.clusterBits
	table := int64(be.Uint64(disktest.Read(t, m, 48, 8)))
	block := int64(be.Uint64(disktest.Read(t, m, table+n/g.perRefcountBlock()*8, 8)))
	if c := be.Uint16(disktest.Read(t, m, block+n%g.perRefcountBlock()*2, 2)); c != 1 {
		t.Errorf("refcount of the last cluster is %d", c)
	}
}

func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		size int64
		o    Options
		want string
	}{
		{1 << 20, Options{ClusterSize: 256}, "cluster size 256, want a power of two from 512 to 2097152"},
		{1 << 20, Options{ClusterSize: 4 << 20}, "cluster size 4194304, want"},
		{1 << 20, Options{ClusterSize: 65000}, "cluster size 65000, want"},
		{1<<20 + 1, Options{}, "a disk of 1048577 bytes is not a whole number of 512-byte sectors"},
		{1 << 40, Options{ClusterSize: 512}, "a disk of 1099511627776 bytes; clusters of 512 bytes can hold 137438953472, larger clusters more"},
	} {
		d := extent.New(tt.size)
		if _, err := Map(d, tt.o.ClusterSize); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Map: %v, want %q", err, tt.want)
		}
		if err := Write(t.Context(), &memory{}, d, tt.o, nil); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Write: %v, want %q", err, tt.want)
		}
	}
	err := Write(t.Context(), &memory{}, extent.New(512), Options{Compression: 7}, nil)
	if want := "compression type 7, want zlib or zstd"; !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
		t.Errorf("Write: %v, want %q", err, want)
	}
	// 512-byte clusters hold a disk of 128 GiB, but QEMU counts only to 128 GiB of file.
	full := extent.New(128 << 30)
	if err := full.Put(0, disktest.Broken(full.Size())); err != nil {
		t.Fatal(err)
	}
	if _, err := Map(full, 512); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "more than QEMU can count; use larger clusters") {
		t.Errorf("Map: %v", err)
	}
}

// full is a Target on a disk that is full after so many bytes.
type full struct {
	memory
	left int
}

var errFull = errors.New("no space left")

func (f *full) WriteAt(p []byte, off int64) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errFull
	}
	return f.memory.WriteAt(p, off)
}

func TestWriteStops(t *testing.T) {
	d := disktest.Mixed(t, 24<<20, 23)
	if err := Write(t.Context(), &full{left: 3 << 20}, d, Options{}, nil); !errors.Is(err, errFull) {
		t.Errorf("full disk: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := Write(ctx, &memory{}, d, Options{}, func(int64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	bad := extent.New(8 << 20)
	if err := bad.Put(4<<20, disktest.Broken(1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := Write(t.Context(), &memory{}, bad, Options{}, nil); !errors.Is(err, disktest.ErrRead) {
		t.Errorf("source fails: %v", err)
	}
}
