package fat

import (
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
)

// disk is an image of which only what was written is in memory, by numbers of
// sectors of 512 bytes.
type disk struct {
	base    extent.Source
	sectors map[int64][]byte
	log     []operation
	fail    func(n int) error // of the write or Sync with this number
}

// operation is a write, or a Sync if there is no data.
type operation struct {
	off  int64
	data []byte
}

func newDisk(base extent.Source) *disk {
	return &disk{base: base, sectors: make(map[int64][]byte)}
}

func (d *disk) Size() int64 { return d.base.Size() }

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.base.ReadAt(p, off)
	for i := off / 512; i*512 < off+int64(n); i++ {
		if s, ok := d.sectors[i]; ok {
			copy(p[max(0, i*512-off):], s[max(0, off-i*512):])
		}
	}
	return n, err
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off%512 != 0 || len(p)%512 != 0 || off+int64(len(p)) > d.Size() {
		return 0, fmt.Errorf("%d bytes at %d of a disk of %d are not whole sectors", len(p), off, d.Size())
	}
	if err := d.operation(operation{off, slices.Clone(p)}); err != nil {
		return 0, err
	}
	for i := 0; i < len(p); i += 512 {
		d.sectors[(off+int64(i))/512] = slices.Clone(p[i : i+512])
	}
	return len(p), nil
}

func (d *disk) Sync() error { return d.operation(operation{}) }

func (d *disk) operation(op operation) error {
	if d.fail != nil {
		if err := d.fail(len(d.log)); err != nil {
			return err
		}
	}
	d.log = append(d.log, op)
	return nil
}

// fork returns a disk that continues from here, with nothing recorded.
func (d *disk) fork() *disk {
	return &disk{base: d.base, sectors: maps.Clone(d.sectors)}
}

// put writes all or some sectors of an operation, chosen by random.
func (d *disk) put(op operation, random *rand.Rand) {
	chance := 1.0
	if random != nil {
		chance = []float64{0, 0.5, 1}[random.IntN(3)]
	}
	for i := 0; i < len(op.data); i += 512 {
		if random == nil || random.Float64() < chance {
			d.sectors[(op.off+int64(i))/512] = op.data[i : i+512]
		}
	}
}

// cuts calls check with what may be on the medium after a cut: after every
// operation of log all so far, and torn times some sectors of those that were
// not flushed, in any order. d is as it was before the first one.
func (d *disk) cuts(log []operation, torn int, random *rand.Rand, check func(what string, cut *disk)) int {
	flushed, all := d.fork(), d.fork()
	check("cut at the start", all.fork())
	states, since := 1, 0
	for i, op := range log {
		if op.data == nil {
			flushed, since = all.fork(), i+1
			continue
		}
		all.put(op, nil)
		check(fmt.Sprintf("cut after operation %d", i), all.fork())
		states++
		for range torn {
			cut := flushed.fork()
			for _, k := range random.Perm(i + 1 - since) {
				cut.put(log[since+k], random)
			}
			check(fmt.Sprintf("cut after operation %d, some sectors of those before", i), cut)
			states++
		}
	}
	return states
}

// image writes the disk to a file that checkers can read.
type image struct {
	name    string
	base    extent.Source
	written []int64
}

func newImage(t testing.TB, base *extent.Map) *image {
	return &image{name: writeImage(t, base), base: base}
}

func (m *image) write(t testing.TB, d *disk) string {
	t.Helper()
	f, err := os.OpenFile(m.name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 512)
	for _, i := range m.written {
		if _, err := m.base.ReadAt(buf, i*512); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(buf, i*512); err != nil {
			t.Fatal(err)
		}
	}
	m.written = m.written[:0]
	for i, s := range d.sectors {
		if _, err := f.WriteAt(s, i*512); err != nil {
			t.Fatal(err)
		}
		m.written = append(m.written, i)
	}
	return m.name
}
