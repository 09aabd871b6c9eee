package install

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/gpt"
)

// Pieces are whole blocks, in order and without gaps, whatever the extents are.
func TestCut(t *testing.T) {
	disk := extent.New(40 * mib)
	for _, e := range [][2]int{
		{mib - 100, 50},          // before the area
		{mib, 4097},              // a block and a byte
		{mib + 5000, 100},        // in the same block
		{mib + 9000, 1},          // behind a hole of less than a block
		{mib + 100_000, 1000},    // behind a hole worth the name
		{10*mib + 4095, 9 * mib}, // several pieces
		{29*mib - 10, 20},        // over the area's end
	} {
		if err := disk.Put(int64(e[0]), extent.Bytes(bytesOf(uint64(e[0]), e[1]))); err != nil {
			t.Fatal(err)
		}
	}
	w := &writer{disk: disk}
	a := area{mib, 29 * mib}
	at, data := a.start, int64(0)
	for _, p := range w.cut(nil, a) {
		if p.offset != at || p.length <= 0 || p.offset%blockSize != 0 || p.length%blockSize != 0 || !p.zero && p.length > pieceSize {
			t.Errorf("piece %+v at %d", p, at)
		}
		at += p.length
		if !p.zero {
			data += p.length
			continue
		}
		buf := make([]byte, p.length)
		if _, err := disk.ReadAt(buf, p.offset); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf, make([]byte, p.length)) {
			t.Errorf("piece %+v is not zero", p)
		}
	}
	if want := int64(3+1+1+9*256+1) * blockSize; at != a.end || data != want {
		t.Errorf("pieces up to %d with %d bytes of data, want %d with %d", at, data, a.end, want)
	}
}

// paced is a device that writes and reads bytes at rates, one request at a time, in
// bytes per second; it keeps nothing but the time.
type paced struct {
	size, write, read int64

	mu   sync.Mutex
	busy time.Time // until when
}

func (d *paced) work(n int, rate int64) (int, error) {
	d.mu.Lock()
	if now := time.Now(); d.busy.Before(now) {
		d.busy = now
	}
	d.busy = d.busy.Add(time.Duration(int64(n) * int64(time.Second) / rate))
	until := d.busy
	d.mu.Unlock()
	time.Sleep(time.Until(until))
	return n, nil
}

func (d *paced) ReadAt(p []byte, _ int64) (int, error)  { return d.work(len(p), d.read) }
func (d *paced) WriteAt(p []byte, _ int64) (int, error) { return d.work(len(p), d.write) }
func (d *paced) Sync() error                            { return nil }
func (d *paced) Size() int64                            { return d.size }
func (d *paced) Zero(_, _ int64) error                  { return nil }
func (d *paced) Discard(_, _ int64) error               { return nil }
func (d *paced) Forget(_, _ int64) error                { return nil }

// BenchmarkWrite writes to a device of 1 GB/s: the time is that of the device.
func BenchmarkWrite(b *testing.B) {
	const size, rate = 256 * mib, 1_000_000_000
	table := &gpt.Table{DiskID: gpt.GUID{2}, SectorSize: 512, Size: size, Partitions: []gpt.Partition{
		{Type: gpt.LinuxFilesystem, ID: gpt.GUID{1}, Name: "BOOT", Start: mib, Size: size - 2*mib},
	}}
	disk := extent.New(size)
	if err := disk.Put(mib, extent.Bytes(bytesOf(1, size-2*mib))); err != nil {
		b.Fatal(err)
	}
	dev := &paced{size: size, write: rate, read: rate}
	b.SetBytes(size)
	for b.Loop() {
		if err := Write(b.Context(), dev, disk, table, Options{Verify: None}); err != nil {
			b.Fatal(err)
		}
	}
	alone := float64(size) / rate
	ratio := b.Elapsed().Seconds() / float64(b.N) / alone
	b.ReportMetric(ratio, "device")
	if ratio > maxRatio {
		b.Errorf("%.2f times as long as the device takes, want at most %.1f", ratio, maxRatio)
	}
}

// maxRatio is what writing may take, as a multiple of what the device does.
const maxRatio = 1.2
